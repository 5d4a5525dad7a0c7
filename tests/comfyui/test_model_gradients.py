"""Denoiser from Model over ComfyUI's own classes, in every checkout's interpreter (see model_checks.py)."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def checks(run_in_checkout) -> dict:
    (line,) = [line for line in run_in_checkout("model_checks.py").splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def test_gradient_equals_a_float64_copy_outside_comfyui(checks):
    found = checks["gradient"]
    assert found["finite_differences"] < 1e-6  # of the reference itself
    for policy in ("STORE", "BLOCKS", "SEGMENT", "SEGMENT_AND_BLOCKS"):
        assert found[policy] < 1e-3
    assert found["alphas_cumprod"] < 1e-6


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_costs_no_more_than_in_the_bare_network(checks, name):
    found = checks["precision"]
    for policy in ("STORE", "BLOCKS"):
        assert 0 < found[f"{name}_{policy}"] < 1.2 * found[f"{name}_bare"]


@pytest.mark.parametrize("name", ["float16_cast", "float8_cast"])
def test_small_weights_that_the_host_casts_carry_the_full_gradient(checks, name):
    for policy in ("STORE", "BLOCKS"):
        assert 0 < checks["precision"][f"{name}_{policy}"] < 1e-3


def test_less_is_held_the_more_is_computed_again(checks):
    saved = checks["gradient"]["saved"]
    assert 0 < saved["BLOCKS"] < saved["STORE"] / 2
    assert saved["SEGMENT"] == saved["SEGMENT_AND_BLOCKS"] < saved["BLOCKS"]


def test_blocks_that_run_again_see_their_own_number(checks):
    assert checks["block_numbers"]["acts"] > 0.01
    assert checks["block_numbers"]["in_blocks"] < 1e-5


def test_weights_are_borrowed_without_memory_and_returned_however_it_ends(checks):
    assert checks["restored"].pop("all_inference")
    assert len(checks["restored"]) == 11
    assert all(checks["restored"].values()), checks["restored"]


def test_a_lora_on_the_model_acts_and_only_there(checks):
    assert checks["lora"]["changes_the_gradient"] > 0.01
    assert checks["lora"]["error"] < 1e-3
    assert checks["lora"]["gone_afterwards"]


def test_every_pixel_of_an_odd_size_gets_a_gradient(checks):
    assert checks["sizes"]["strong"] == checks["sizes"]["paper"] == 0
    assert checks["sizes"]["tiles"] == [40, 512, 512]


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_predicted_noise_follows_from_the_models_own_output(checks, kind):
    assert checks["formulas"][kind] < 1e-3


def test_a_flow_timestep_has_its_levels_noise_to_signal_ratio(checks):
    assert checks["formulas"]["flow_noise_to_signal"] < 1e-3


def test_nodes_work_and_sampling_is_bit_identical_afterwards(checks):
    found = checks["sampling"]
    assert 3 < found["levels"] <= 4.002  # values within .001 of a level count as it
    assert 3 < found["combined_levels"] <= 4.002
    for method in ("gridpure", "diffpure", "vae"):
        assert found[method] == [[1, 35, 33, 3], True, True]
    assert found["identical"]


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("SD15 with SDXL's VAE", "is one for SDXL and the MODEL is SD 1.x"),
        ("SDXL with SD15's VAE", "is one for SD 1.x or 2.x and the MODEL is SDXL"),
        ("SD3 with Flux's VAE", "is one for Flux and the MODEL is SD 3"),
        ("SD15 with SD15's VAE", "accepted"),
        ("Flux with Flux's VAE", "accepted"),
        ("conditioning", "32 wide and the MODEL expects 24"),
        ("probed", "does not work with this CONDITIONING"),
        ("control", "carries a ControlNet"),
        ("empty", "CONDITIONING is empty"),
        ("inpainting", "more than the noisy latent"),
        ("vae", "16 latent channels and the MODEL 4"),
        ("video_vae", "not one for single images"),
        ("video", "not an image"),
    ],
)
def test_wrong_pairings_get_one_sentence(checks, case, sentence):
    assert sentence in checks["refusals"][case]
    assert "\n" not in checks["refusals"][case]
