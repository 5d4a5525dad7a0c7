"""A full-size Stable Diffusion 1.5 in real servers: protected through the MODEL in the graph, on the CPU.

Slow (minutes and some 10 GB of memory for each version), so only where COMFYUI_SD_CHECKPOINT names a checkpoint:
    python tools/make_sd_checkpoint.py ~/sd15_random.safetensors
    COMFYUI_SD_CHECKPOINT=~/sd15_random.safetensors COMFYUI_PATH=~/comfyui pytest tests/comfyui/test_sd_server.py -s
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

MINUTES = 20
LEVELS = 8


@pytest.fixture
def checkpoint(comfyui) -> Path:
    named = os.environ.get("COMFYUI_SD_CHECKPOINT")
    if not named:
        pytest.skip(
            "set COMFYUI_SD_CHECKPOINT to an SD 1.5 checkpoint (tools/make_sd_checkpoint.py writes a random one)"
        )
    path = Path(named).expanduser()
    link = comfyui.base / "models" / "checkpoints" / "sd15.safetensors"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(path)
    return path


def graph(*parts: dict) -> dict:
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}}
    text = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}}
    return {"1": loader, "2": text, **{str(i): part for i, part in enumerate(parts, start=3)}}


def sampling(name: str) -> dict:
    sampler = {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 7,
        "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    return graph(
        {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        {"class_type": "KSampler", "inputs": sampler},
        {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0], "filename_prefix": f"{name}/latent"}},
        {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": f"{name}/image"}},
    )


def protecting() -> dict:
    settings = {"preset": "strong", "levels": LEVELS, "steps": 2, "seed": 0}
    return graph(
        {"class_type": "LoadImage", "inputs": {"image": "face128.png"}},
        {
            "class_type": "AntiPureDenoiserFromModel",
            "inputs": {"model": ["1", 0], "vae": ["1", 2], "conditioning": ["2", 0]},
        },
        {"class_type": "AntiPureProtect", "inputs": {"image": ["3", 0], "denoiser": ["4", 0], **settings}},
        {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "protected/image"}},
    )


def run(comfyui, prompt: dict) -> None:
    """Run a prompt to its end."""
    began = time.monotonic()
    prompt_id = json.loads(comfyui.post("/prompt", {"prompt": prompt}))["prompt_id"]
    while time.monotonic() - began < 60 * MINUTES:
        history = comfyui.json(f"/history/{prompt_id}")
        if prompt_id in history:
            status = history[prompt_id]["status"]
            assert status["status_str"] == "success", status["messages"][-1]
            return
        assert comfyui.process.poll() is None, comfyui.log()[-2000:]
        time.sleep(0.2)
    raise AssertionError("The prompt did not end.")


def latent(comfyui, name: str) -> torch.Tensor:
    (file,) = (comfyui.base / "output" / name).glob("*.latent")
    return load_file(file)["latent_tensor"]


def test_protect_through_the_model_in_the_graph(comfyui, checkpoint, record_property):
    with Image.open(Path(__file__).parents[2] / "bundled" / "astronaut_face.png") as face:
        face.convert("RGB").resize((128, 128)).save(comfyui.base / "input" / "face128.png")
    run(comfyui, sampling("before"))
    before, began = comfyui.resident(), time.monotonic()
    most = comfyui.peak_during(lambda: run(comfyui, protecting()))
    after, seconds = comfyui.resident(), time.monotonic() - began
    run(comfyui, sampling("after"))

    pictures = [
        np.asarray(Image.open(path)).astype(int)
        for path in (comfyui.base / "input" / "face128.png", *(comfyui.base / "output" / "protected").glob("*.png"))
    ]
    assert np.abs(pictures[1] - pictures[0]).max() == LEVELS
    assert torch.equal(latent(comfyui, "before"), latent(comfyui, "after"))

    # On the CPU the weights stand in memory as fp32, twice the file.
    weights = 2 * checkpoint.stat().st_size
    peak, rest = (most - before) / weights, (after - before) / weights
    figures = f"{seconds:.0f} s, memory {peak:+.1%} of the weights at most, {rest:+.1%} afterwards"
    record_property("figures", figures)
    print(f"\nComfyUI {comfyui.version}: {figures}")
    assert rest < 0.05
    assert peak < 0.05  # activations included
