"""LoRA patches on a MODEL over ComfyUI's own classes, in every checkout's interpreter (see patch_checks.py)."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def checks(run_in_checkout) -> dict:
    (line,) = [line for line in run_in_checkout("patch_checks.py").splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.parametrize("gate", ["scalar", "none"])
def test_the_core_loader_reads_our_file_to_the_same_output(checks, gate):
    found = checks["core_loader"][gate]
    assert found["acts"] > 0.01
    assert found["core"] < 1e-6
    assert found["after_saving"] < 1e-6
    assert found["gone_afterwards"]
    assert all(name.startswith("lora_unet_") for name in found["names"])
    assert found["taken"] == found["layers"] == len(found["names"])


@pytest.mark.parametrize("family", ["SD", "SDXL", "SD 3", "Flux"])
def test_the_core_key_map_reads_every_layers_name(checks, family):
    """kohya's keys; diffusers' own names in them for Stable Diffusion, which diffusers reads, too."""
    found = checks["names"][family]
    assert found["missed"] == []
    assert found["read"] == found["layers"] == found["different"] > 20
    assert (found["diffusers"] > 10) == (family in ("SD", "SDXL"))


@pytest.mark.parametrize("gate", ["none", "scalar", "input", "channel"])
def test_every_gate_acts_as_pefts_layers_do(checks, gate):
    assert checks["gates"][gate]["acts"] > 0.01
    assert checks["gates"][gate]["peft"] < 1e-4


def test_patches_add_up(checks):
    assert checks["stacking"]["error"] < 1e-4


def test_training_through_the_model_lowers_the_loss_and_leaves_it_whole(checks):
    found = checks["training"]
    assert found["last"] < 0.9 * found["first"]
    assert found["acts"] > 1e-3
    assert found["stopped"]
    assert found["same_modules"]
    assert found["unpatched_is_identical"]


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("architecture", "not for this network"),
        ("adaptive_export", "depends on the picture"),
        ("nothing", "Nothing to patch"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(checks, case, sentence):
    assert sentence in checks["refusals"][case]
    assert "\n" not in checks["refusals"][case]
