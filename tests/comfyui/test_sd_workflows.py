"""The shipped workflows with a Stable Diffusion model, in real servers, on a small random checkpoint."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from antipure.cli.graph import read_workflow, set_inputs
from antipure.cli.server import run_on_server
from antipure.methods.errors import AntiPureError
from PIL import Image

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"  # as the workflows name it
SMALL = {
    "sd_protect": ["5.steps=2"],
    "sd_purification_customization": [
        *("5.width=64", "5.height=64", "6.steps=2", "8.timestep=5", "9.timestep=5"),
        *("12.width=64", "12.height=64", "12.batch_size=2"),
        *(f"{node}.steps=2" for node in (21, 31, 23, 33)),
    ],
    "lora_patch_sd": [
        *("5.width=64", "5.height=64", "8.steps=4", "8.rank=2"),
        *("13.width=64", "13.height=64", "13.batch_size=1", "20.steps=2", "30.steps=2"),
    ],
}


@pytest.fixture
def server(comfyui, random_checkpoint):
    comfyui.offer(random_checkpoint("sd15-small"), CHECKPOINT)
    return comfyui


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def run(server, name: str, out, *settings: str):
    return run_on_server(server.url, set_inputs(read_workflow(name), [*SMALL[name], *settings]), out)


def test_core_nodes_are_described_as_the_server_has_them(comfyui):
    """The table that tools/api_twins.py reads; Train LoRA has less inputs in older versions, in the same order."""
    table = json.loads((Path(__file__).resolve().parents[2] / "tools" / "core_nodes.json").read_text(encoding="utf-8"))
    known = comfyui.json("/object_info")
    later = {"LoadImageDataSetFromFolder"} if comfyui.version == "0.3.64" else set()
    assert set(table) - set(known) == later
    for kind, described in ((kind, table[kind]) for kind in table if kind not in later):
        for section in ("required", "optional"):
            ours, theirs = described["input"].get(section, {}), known[kind]["input"].get(section, {})
            assert [name for name in ours if name in theirs] == list(theirs), kind
            assert kind == "TrainLoraNode" or len(ours) == len(theirs)
            for name, (server_type, *options) in theirs.items():
                assert ours[name][0] == ("COMBO" if isinstance(server_type, list) else server_type), (kind, name)
                if len(ours[name]) > 1:
                    assert ours[name][1]["default"] == options[0]["default"], (kind, name)


def test_protect_with_the_model_in_the_graph(server, tmp_path):
    result = run(server, "sd_protect", tmp_path)
    change = pixels(result.files["6"][0]) - pixels(server.base / "input" / "example.png")
    assert np.abs(change).max() == 8
    assert result.ui["8"]["metrics"][0]["levels"] == 8
    assert result.files["10"]


def test_the_whole_loop_with_core_training(server, tmp_path):
    result = run(server, "sd_purification_customization", tmp_path / "protected")
    generated = {branch: [pixels(path) for path in result.files[node]] for branch, node in (("p", "25"), ("o", "35"))}
    assert len(generated["p"]) == len(generated["o"]) == len(result.files["43"]) == 2
    assert all(picture.shape == (64, 64, 3) for pictures in generated.values() for picture in pictures)
    assert pixels(result.files["43"][0]).shape == (64, 64 + 8 + 64, 3)
    assert any((p != o).any() for p, o in zip(generated["p"], generated["o"], strict=True))
    assert result.ui["40"]["metrics"][0]["structural_distortion"] > 0
    assert np.isfinite(result.ui["41"]["metrics"][0]["psnr"])

    # Nothing but the picture differs between the branches: the smallest budget rounds to none, and all is equal.
    same = run(server, "sd_purification_customization", tmp_path / "same", "6.preset=random", "6.levels=0.25")
    assert same.ui["41"]["metrics"][0]["levels"] == 0
    assert (pixels(same.files["35"][0]) == generated["o"][0]).all()

    # The training is what makes the generated pictures differ from the untrained model's.
    untrained = set_inputs(read_workflow("sd_purification_customization"), SMALL["sd_purification_customization"])
    untrained["22"]["inputs"]["strength"] = 0.0
    first = run_on_server(server.url, untrained, tmp_path / "untrained").files["25"][0]
    assert (pixels(first) != generated["p"][0]).any()


def test_wrong_wires_of_the_trained_lora_get_one_sentence(server, tmp_path):
    prompt = set_inputs(read_workflow("sd_purification_customization"), SMALL["sd_purification_customization"])
    prompt["22"]["inputs"]["output_1"] = prompt["22"]["inputs"]["output_2"] = ["2", 0]
    with pytest.raises(AntiPureError) as caught:
        run_on_server(server.url, prompt, tmp_path)
    assert "Apply Trained LoRA" in str(caught.value)
    sys.stdout.write(f"{server.version}: {caught.value}\n")


def test_a_patch_for_the_model_and_its_standard_lora(server, tmp_path):
    result = run(server, "lora_patch_sd", tmp_path)
    patched, plain = (pixels(result.files[node][0]) for node in ("22", "32"))
    assert patched.shape == plain.shape == (64, 64, 3)
    assert (patched != plain).any()

    # At strength 0 the patch does nothing, and the MODEL that trained it is as it was.
    off = run(server, "lora_patch_sd", tmp_path / "off", "10.strength=0")
    assert (pixels(off.files["22"][0]) == plain).all()
    assert (pixels(off.files["32"][0]) == plain).all()

    # The file is one that core's loader applies: the same picture as with the patch itself.
    (path,) = result.ui["11"]["text"]
    loras = server.base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, loras / "warning.safetensors")
    prompt = set_inputs(read_workflow("lora_patch_sd"), SMALL["lora_patch_sd"])
    prompt["10"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": "warning.safetensors", "strength_model": 1.0},
    }
    prompt["20"]["inputs"]["model"] = ["10", 0]
    loaded = pixels(run_on_server(server.url, prompt, tmp_path / "core").files["22"][0])
    assert np.abs(loaded - patched).max() <= 1


def test_patching_the_toy(comfyui, tmp_path):
    """The in-process workflows on a server: the same nodes there, and core's text preview."""
    few = ["2.count=1", "3.edits=glasses", "5.count=1", "6.edits=glasses"]
    result = run_on_server(comfyui.url, set_inputs(read_workflow("lora_patch_evaluation"), few), tmp_path)
    assert result.ui["7"]["text"] == result.ui["6"]["text"]
    assert "Disrupting, leaked patch" in result.ui["7"]["text"][0]
    assert result.files["8"]
    few = ["2.count=2", "3.epochs=1", "3.batch=2", "6.count=2"]
    result = run_on_server(comfyui.url, set_inputs(read_workflow("lora_patch_defensive"), few), tmp_path)
    assert len(result.files["11"]) == len(result.files["12"]) == 2
