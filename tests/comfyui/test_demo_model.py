"""Load Demo Model over ComfyUI's own classes in every checkout (see demo_checks.py), and its workflows in servers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from antipure.cli.graph import read_workflow, set_inputs
from antipure.cli.server import run_on_server
from PIL import Image


@pytest.fixture(scope="module")
def checks(run_in_checkout) -> dict:
    (line,) = [line for line in run_in_checkout("demo_checks.py").splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def test_core_detects_it(checks):
    assert checks["kind"] == "SD3"
    assert checks["channels"] == 16
    assert checks["latent"] == [5, 16, 16, 16]
    assert checks["portraits"] == [5, 128, 128, 3]
    assert "person: any, person 0" in checks["classes"]


def test_core_computes_what_was_trained(checks):
    """Against the networks of the training, fed from the same files by other code."""
    assert checks["denoised"] < 1e-3
    assert checks["round trip"] > 20


def test_it_draws_what_it_is_told(checks):
    assert checks["sampled"] == {"finite": True, "repeats": True, "told": True}


def test_the_packs_nodes_take_it(checks):
    assert checks["protected"] == checks["vae protected"] == 8
    assert checks["purified"] == [1, 128, 128, 3]
    assert checks["patched"] == {"acts": True, "nothing at strength 0": True}
    assert checks["weights as before"]
    assert checks["loaded anew"], "what core does where it copies a model to train it"


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


SMALL = {
    "demo_protect_latent": ["4.steps=2", "5.timestep=20", "6.timestep=20"],
    "demo_purification_customization": [
        *("3.steps=2", "4.timestep=20", "5.timestep=20", "7.batch_size=1"),
        *(f"{branch}{node}.steps=2" for branch in (1, 2, 3, 4) for node in (1, 3)),
    ],
}


def run(server, name: str, out, *settings: str):
    return run_on_server(server.url, set_inputs(read_workflow(name), [*SMALL[name], *settings]), out)


def test_protect_with_the_demo_model(comfyui, tmp_path):
    result = run(comfyui, "demo_protect_latent", tmp_path)
    assert result.files["9"]
    assert result.ui["10"]["metrics"][0]["structural_distortion"] > 0

    # The smallest budget rounds to none, and all is equal.
    same = run(comfyui, "demo_protect_latent", tmp_path / "same", "4.preset=random", "4.levels=0.25")
    assert same.ui["10"]["metrics"][0]["levels"] == 0


def test_the_whole_loop_without_a_download(comfyui, tmp_path):
    result = run(comfyui, "demo_purification_customization", tmp_path / "protected")
    (sheet,) = (pixels(path) for path in result.files["54"])
    assert sheet.shape == (128, 4 * 128 + 3 * 4, 3)
    clean, purified, protected, both = (sheet[:, i * 132 : i * 132 + 128] for i in range(4))
    assert (clean != purified).any()
    assert (clean != protected).any()
    assert (purified != both).any()
    assert result.ui["57"]["metrics"][0]["structural_distortion"] > 0
    judged = {branch: result.ui[f"{branch}5"]["text"][0] for branch in (1, 2, 3, 4)}
    assert all("drawn portraits only" in text and "FDFR" in text for text in judged.values())
    assert all("reference: 5 of 5 clean pictures" in text for text in judged.values())

    # Nothing but the pictures differs between the branches: without a protection they are two and two.
    none = run(comfyui, "demo_purification_customization", tmp_path / "none", "3.preset=random", "3.levels=0.25")
    (sheet,) = (pixels(path) for path in none.files["54"])
    assert (sheet[:, :128] == sheet[:, 264:392]).all()
    assert (sheet[:, 132:260] == sheet[:, 396:]).all()
    assert none.ui["15"]["text"] == none.ui["35"]["text"]
    assert none.ui["25"]["text"] == none.ui["45"]["text"]
