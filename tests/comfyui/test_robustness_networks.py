"""VAEs and an upscale model wired to Robustness Report and VAE Metrics, in real servers, with random weights.

They come through the host's own loaders: TAESD's two files in models/vae_approx, a checkpoint's VAE, and a small
network that spandrel knows (Compact of Real-ESRGAN) in models/upscale_models.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from antipure.cli.server import run_on_server
from antipure.methods.diffusion.autoencoder import load_autoencoder
from antipure.methods.diffusion.taesd import TinyAutoencoder
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.latent import latent_shift
from PIL import Image
from safetensors.torch import save_file

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
UPSCALER = "random_compact.safetensors"
LIST = "gridpure1@1, vae, vae_2:vae, vae_2:impress2, upscale2, noise8+upscale, shrink0.5"
COLUMNS = ["gridpure1@1", "vae1", "vae_2:vae1", "vae_2:impress2", "upscale2", "noise8+upscale", "shrink0.5"]


@pytest.fixture(scope="module")
def server(comfyui, random_checkpoint):
    """The server with these files."""
    comfyui.offer(random_checkpoint("sd15-small"), CHECKPOINT)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        fan_in = max(int(np.prod(shape[1:])), 1)
        return torch.randn(shape, generator=generator) / fan_in**0.5

    approx, upscalers = (comfyui.base / "models" / name for name in ("vae_approx", "upscale_models"))
    approx.mkdir(exist_ok=True)
    upscalers.mkdir(exist_ok=True)
    network = TinyAutoencoder(4, 64, False)
    for part in ("encoder", "decoder"):
        state = {k: drawn(*v.shape) if v.ndim > 1 else v for k, v in getattr(network, part).state_dict().items()}
        save_file({k: v.clone().contiguous() for k, v in state.items()}, approx / f"taesd_{part}.safetensors")
    body = {"0": (8, 3, 3, 3), "1": (8,), "2": (8, 8, 3, 3), "3": (8,), "4": (12, 8, 3, 3)}
    state = {f"body.{place}.weight": 0.1 * drawn(*shape) for place, shape in body.items()}
    state |= {f"body.{place}.bias": 0.1 * drawn(shape[0]) for place, shape in body.items() if len(shape) > 1}
    save_file(state, upscalers / UPSCALER)
    return comfyui


def prompt(**changes) -> dict:
    """A picture, random noise on it, and a report with everything wired."""
    report = {
        "original": ["1", 0], "image": ["2", 0], "denoiser": ["3", 0], "vae": ["4", 2], "vae_2": ["5", 0],
        "upscale_model": ["6", 0], "names": "", "purifiers": LIST, "made_against": "vae1", "curve_iterations": 0,
        "seed": 0, "seeds": 1, "shown": 1, **changes,
    }  # fmt: skip
    protect = {"image": ["1", 0], "denoiser": ["3", 0], "preset": "random", "levels": 8, "steps": 1, "seed": 0}
    nodes = {
        "1": ("LoadImage", {"image": "example.png"}),
        "2": ("AntiPureProtect", protect),
        "3": ("AntiPureLoadDenoiser", {"denoiser": "bundled", "precision": "fp32", "compile": "off"}),
        "4": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        "5": ("VAELoader", {"vae_name": "taesd"}),
        "6": ("UpscaleModelLoader", {"model_name": UPSCALER}),
        "7": ("AntiPureRobustnessReport", {k: v for k, v in report.items() if v is not None}),
        "8": ("AntiPureVaeMetrics", {"reference": ["1", 0], "image": ["2", 0], "vae": ["5", 0], "view": "train512"}),
        # The host's own node uses the same upscale model after the report has.
        "9": ("ImageUpscaleWithModel", {"upscale_model": ["6", 0], "image": ["2", 0]}),
        "10": ("SaveImage", {"images": ["9", 0], "filename_prefix": "upscaled"}),
        "11": ("SaveImage", {"images": ["2", 0], "filename_prefix": "noisy"}),
    }
    return {node: {"class_type": kind, "inputs": inputs} for node, (kind, inputs) in nodes.items()}


def test_vaes_and_an_upscale_model_measure_and_purify(server, tmp_path):
    before = len(server.log())
    result = run_on_server(server.url, prompt(), tmp_path)
    assert "Traceback" not in server.log()[before:]
    report = result.shown("7", "report", dict)
    assert [column["name"] for column in report["purifiers"]] == COLUMNS
    assert report["autoencoders"] == ["vae", "vae_2"]
    assert [column["network"] for column in report["purifiers"]][:6] == [
        "denoiser", "VAE", "VAE", "VAE", "upscale model", "upscale model",
    ]  # fmt: skip
    assert report["purifiers"][1]["denoiser"] == "vae"
    (row,) = (row for row in report["rows"] if row["kind"] == "protection")
    for column in COLUMNS:
        cell = row["cells"][column]
        assert 0 < cell["distortion"][0] <= 2, column
        assert all(np.isfinite(cell["latent"][vae][0]) for vae in ("vae", "vae_2")), column

    # The shift against the pack's own reading of the same two files: the host's scale and shift cancel out.
    original, noisy = (
        torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        for file in (server.base / "input" / "example.png", *result.files["11"])
    )
    folder = server.base / "models" / "vae_approx"
    ours = load_autoencoder([folder / f"taesd_{part}.safetensors" for part in ("encoder", "decoder")])
    assert row["latent"]["vae_2"][0] == pytest.approx(
        latent_shift(original, noisy, ours, draws=1).value.item(), rel=1e-2
    )
    through_view = result.shown("8", "metrics", dict)
    assert through_view["view"] == "train512"
    assert through_view["latent_shift"] > 0
    (upscaled,) = result.files["10"]
    assert Image.open(upscaled).size == (128, 128)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"purifiers": "jpeg75"}, "upscale_model is wired, but no purifier uses it"),
        ({"purifiers": "upscale, vae_3:vae", "made_against": ""}, "no VAE 'vae_3'; the names are vae, vae_2"),
        ({"purifiers": "upscale", "upscale_model": None, "made_against": ""}, "needs an upscale model; wire one"),
    ],
)
def test_what_does_not_fit_the_list_is_one_sentence(server, tmp_path, changes, sentence):
    with pytest.raises(AntiPureError, match=sentence) as caught:
        run_on_server(server.url, prompt(**{"made_against": "", **changes}), tmp_path)
    assert "\n" not in str(caught.value)
