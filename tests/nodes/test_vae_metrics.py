"""VAE Metrics without ComfyUI; tests/comfyui/test_vaes.py has it over real VAEs of the host."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from antipure.methods.diffusion.autoencoder import NetworkAutoencoder
from antipure.methods.diffusion.taesd import TinyAutoencoder
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.latent import latent_shift
from antipure.nodes.latent_autoencoder import HostAutoencoder, check_vae
from antipure.nodes.vae_metrics import VaeMetrics


@pytest.fixture(scope="module")
def vae() -> NetworkAutoencoder:
    torch.manual_seed(0)
    return NetworkAutoencoder(TinyAutoencoder(4, 8), "tiny")


def images(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(count, 40, 64, 3, generator=generator)
    return clean, (clean + 0.05 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def test_it_shows_what_latent_shift_finds(vae):
    clean, moved = images()
    found = VaeMetrics().measure(clean, moved, vae, "none", 3)
    shift, report = found["result"]
    expected = latent_shift(clean.movedim(-1, 1), moved.movedim(-1, 1), vae, seed=3)
    assert shift == pytest.approx(float(expected.value.mean()))
    (shown,) = found["ui"]["metrics"]
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown["pictures"][1]["low"] == pytest.approx(float(expected.low[1]))
    assert report.splitlines()[1].startswith(f"picture 2: latent shift {float(expected.value[1]):.3f} (")
    assert report.splitlines()[2:] == ["4 channels, 8 pixels a place", "view: none"]
    assert VaeMetrics().measure(clean, clean, vae, "none")["result"][0] == 0


def test_one_reference_serves_a_batch_and_small_pictures_have_no_interval(vae):
    clean, moved = (x[:, :8, :8] for x in images())
    found = VaeMetrics().measure(clean[:1], moved, vae, "none")
    assert found["ui"]["metrics"][0]["pictures"][0].keys() == {"shift"}
    assert ".." not in found["result"][1]


def test_both_go_through_the_view(vae):
    clean, moved = images(1)
    plain, blurred = (VaeMetrics().measure(clean, moved, vae, view)["result"] for view in ("none", "blur2"))
    assert blurred[0] < plain[0] / 2
    assert blurred[1].endswith("view: blur2")
    noisy = [VaeMetrics().measure(clean, moved, vae, "noise8", seed)["result"][0] for seed in (1, 1, 2)]
    assert noisy[0] == noisy[1] != noisy[2]


def test_a_view_that_is_none_is_refused_before_the_graph_runs():
    assert VaeMetrics.VALIDATE_INPUTS() is True
    assert VaeMetrics.VALIDATE_INPUTS("jpeg75+resize0.5") is True
    assert "'sharpen' is no transform" in VaeMetrics.VALIDATE_INPUTS("sharpen")


def test_running_out_of_memory_is_one_sentence(vae, no_room, monkeypatch):
    monkeypatch.setattr(vae.network, "moments", no_room)
    with pytest.raises(AntiPureError, match="not enough memory for this picture at once; take a smaller picture"):
        VaeMetrics().measure(*images(1), vae, "none")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"first_stage_model": None}, "This VAE is empty"),
        ({"latent_dim": 3}, "not one for single images"),
        ({"extra_1d_channel": 16}, "not one for single images"),
        ({"output_channels": 4}, "not one for single images"),
    ],
)
def test_what_is_no_vae_for_pictures_is_refused(changes, sentence):
    check_vae(types.SimpleNamespace(first_stage_model=object(), latent_dim=2))
    with pytest.raises(AntiPureError, match=sentence):
        check_vae(types.SimpleNamespace(**{"first_stage_model": object(), "latent_dim": 2, **changes}))


class Says(torch.nn.Module):
    """Encodes with a reduction of its own, whatever its owner says."""

    def __init__(self, reduction: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.reduction = reduction

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_unshuffle(image, self.reduction) * self.weight


def host_vae(reduction: int):
    network = Says(reduction)
    return types.SimpleNamespace(
        first_stage_model=network,
        patcher=types.SimpleNamespace(model=network),
        latent_dim=2,
        latent_channels=4,
        device="cpu",
        vae_dtype=torch.float32,
        spacial_compression_encode=lambda: 8,
        process_input=lambda image: image * 2 - 1,
        memory_used_encode=lambda shape, dtype: 1.0,
    )


def test_the_network_is_asked_what_it_makes():
    autoencoder = HostAutoencoder(host_vae(16))
    with autoencoder.session():
        assert (autoencoder.multiple, autoencoder.channels) == (16, 3 * 16**2)
        assert autoencoder.encode_padded(torch.zeros(1, 3, 17, 9)).shape == (1, 768, 2, 1)


def test_cancelling_reaches_into_the_work(comfyui):
    autoencoder = HostAutoencoder(host_vae(8))
    comfyui.interrupt = True
    assert "comfy.model_management" in sys.modules
    with autoencoder.session(), pytest.raises(comfyui.interrupted):
        autoencoder.encode(torch.zeros(1, 3, 8, 8))
