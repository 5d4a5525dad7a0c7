"""A small SDXL in real servers: full layout of inputs (two text encoders, pooled text, sizes), random weights, CPU.

Written on the spot by tools/make_sd_checkpoint.py; COMFYUI_SDXL_CHECKPOINT names another one, such as a real SDXL.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.cli.graph import read_workflow, set_inputs
from antipure.cli.server import run_on_server
from PIL import Image
from safetensors.torch import load_file

LEVELS = 8
NAME = "sdxl.safetensors"


@pytest.fixture
def checkpoint(comfyui, random_checkpoint) -> Path:
    named = os.environ.get("COMFYUI_SDXL_CHECKPOINT")
    path = Path(named).expanduser() if named else random_checkpoint("sdxl-small")
    comfyui.offer(path, NAME)
    return path


def sampling(name: str) -> dict:
    sampler = {
        "model": ["2", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["21", 0], "seed": 7,
        "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    nodes = {  # checkpoint and text with the ids they have in sd_protect, so that they are loaded once
        "2": ("CheckpointLoaderSimple", {"ckpt_name": NAME}),
        "3": ("CLIPTextEncode", {"clip": ["2", 1], "text": ""}),
        "21": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 1}),
        "22": ("KSampler", sampler),
        "23": ("SaveLatent", {"samples": ["22", 0], "filename_prefix": f"sdxl_{name}/latent"}),
        "24": ("VAEDecode", {"samples": ["22", 0], "vae": ["2", 2]}),
        "25": ("VAEEncode", {"pixels": ["24", 0], "vae": ["2", 2]}),
        "26": ("SaveLatent", {"samples": ["25", 0], "filename_prefix": f"sdxl_{name}_again/latent"}),
    }
    return {node: {"class_type": kind, "inputs": inputs} for node, (kind, inputs) in nodes.items()}


def latent(comfyui, name: str) -> torch.Tensor:
    (file,) = (comfyui.base / "output" / f"sdxl_{name}").glob("*.latent")
    return load_file(file)["latent_tensor"]


def test_protect_through_an_sdxl_in_the_graph(comfyui, checkpoint, tmp_path, record_property):
    picture = comfyui.base / "input" / "face128.png"
    with Image.open(Path(__file__).parents[2] / "bundled" / "astronaut_face.png") as face:
        face.convert("RGB").resize((128, 128)).save(picture)
    prompt = set_inputs(read_workflow("sd_protect"), [f"1.image={picture.name}", f"2.ckpt_name={NAME}", "5.steps=2"])
    results = []

    log = len(comfyui.log())
    run_on_server(comfyui.url, sampling("before"), tmp_path)
    before = comfyui.resident()
    peak = comfyui.peak_during(lambda: results.append(run_on_server(comfyui.url, prompt, tmp_path / "protected")))
    after = comfyui.resident()
    run_on_server(comfyui.url, sampling("after"), tmp_path)

    assert "SDXL" in comfyui.log()[log:]  # taken for the family it is to stand for
    change = np.asarray(Image.open(results[0].files["6"][0])).astype(int) - np.asarray(Image.open(picture)).astype(int)
    assert np.abs(change).max() == LEVELS
    assert torch.isfinite(latent(comfyui, "before")).all()
    assert torch.equal(latent(comfyui, "before"), latent(comfyui, "after"))
    # On the CPU the weights stand in memory as fp32, twice the file. What stays: modules first imported here.
    weights = 2 * checkpoint.stat().st_size
    most, rest = (peak - before) / weights, (after - before) / weights
    figures = f"memory {most:+.1%} of the weights at most, {rest:+.1%} afterwards"
    record_property("figures", figures)
    print(f"\nComfyUI {comfyui.version}: {figures}")
    assert rest < 0.05
    assert most < 0.05  # activations included
