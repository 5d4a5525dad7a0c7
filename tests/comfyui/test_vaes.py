"""VAEs of the graph over ComfyUI's own classes, in every checkout's interpreter (see vae_checks.py)."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def checks(run_in_checkout) -> dict:
    (line,) = [line for line in run_in_checkout("vae_checks.py").splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.parametrize(
    ("name", "channels", "multiple"),
    [("sd15", 4, 8), ("sd3", 16, 8), ("taesd4", 4, 8), ("taesd16", 16, 8), ("taef2", 128, 16)],
)
def test_a_vae_is_what_the_host_makes_of_it(checks, name, channels, multiple):
    found = checks["vaes"].get(name)
    if found is None:
        pytest.skip("this version knows no layout of FLUX.2")
    assert (found["channels"], found["multiple"]) == (channels, multiple)
    half = found["dtype"] != "torch.float32"
    assert found["encode"] < (1e-2 if half else 1e-5)
    assert found["decode"] < (1e-2 if half else 1e-5)
    assert found["gradient"] < (0.2 if half else 1e-2)
    assert found["no_weight_gradients"]
    assert found["positive bytes"]
    assert found["returned"], "the very same tensors are back in place"
    assert found["host as before"]
    assert found.get("padded", [128, 2, 3]) == [128, 2, 3], "24×33 pixels, mirrored up to 32×48"


def test_the_node_measures(checks):
    found = checks["node"]
    assert found["same"] == 0
    assert 0 < found["less"] < found["more"]
    assert "picture 2: latent shift" in found["report"]
    assert "4 channels, 8 pixels a place" in found["report"]
    assert found["repeats"]


def test_moments_are_what_the_networks_parts_give(checks):
    found = checks["moments"]
    assert found["sd15"]["variance"]
    assert not found["taesd4"]["variance"]
    assert max(found["sd15"]["mean"], found["taesd4"]["mean"], found["sd15"]["log variance"]) < 1e-5
    assert found["sd15"]["gradient"]


def test_the_gradient_is_the_same_however_little_is_held(checks):
    assert checks["memory"]["held"] == ["STORE", "SEGMENT_AND_BLOCKS"]
    assert checks["memory"]["error"] < 1e-5


@pytest.mark.parametrize("preset", ["robust", "robust_set", "photoguard", "mist_textural", "pid"])
def test_vae_targets_protect_and_give_back_what_they_borrowed(checks, preset):
    found = checks["targets"]
    assert found[preset]["repeats"]
    assert 3.9 <= found[preset]["change"] <= 8.01  # Mist's steps are a sixteenth of the budget
    assert "over 2 VAEs" in found[preset]["report"]
    if preset in ("robust", "robust_set", "pid"):  # the others pull towards a picture: no shift is what they raise
        assert max(found[preset]["over random"]) > 1.5
        assert preset == "pid" or min(found[preset]["over random"]) > 1.5  # PID sums squares: the larger latent leads
    assert found["host as before"]
    assert found["returned"], "the very same tensors are back in place"
    assert found["no hooks"]


def test_what_is_no_vae_for_pictures_is_one_sentence(checks):
    assert "This VAE is empty" in checks["refusals"]["empty"]
    assert "not one for single images" in checks["refusals"]["video"]
