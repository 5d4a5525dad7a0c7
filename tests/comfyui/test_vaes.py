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


def test_what_is_no_vae_for_pictures_is_one_sentence(checks):
    assert "This VAE is empty" in checks["refusals"]["empty"]
    assert "not one for single images" in checks["refusals"]["video"]
