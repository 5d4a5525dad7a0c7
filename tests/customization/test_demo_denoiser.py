"""The demo model as a denoiser outside ComfyUI, against the equations of flow matching and the networks of tools/.

That the transformer is core's own is held in tests/comfyui/demo_checks.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from antipure.methods.customization import demo_model
from antipure.methods.customization.demo_denoiser import DEMO_SETTINGS, SHIFT, load_demo_denoiser
from antipure.methods.customization.dreambooth_lora import adapted_layers, customized
from antipure.methods.diffusion.ddim import generate
from antipure.methods.diffusion.loss import noised_loss
from antipure.methods.errors import AntiPureError
from antipure.methods.pictures import noise, random_stream, to_pixels


@pytest.fixture(scope="module")
def denoiser():
    return load_demo_denoiser({"person": "stranger 1", "style": "ink"})


def velocity(denoiser, x: torch.Tensor, sigma: torch.Tensor, chosen: dict[str, str]) -> torch.Tensor:
    told = demo_model.prompt(chosen)
    return denoiser.transformer(x, sigma, *(part.expand(len(x), *part.shape[1:]) for part in told))


def sigma_of(k: torch.Tensor) -> torch.Tensor:
    """Core's SD 3 schedule, k in 1..1000: comfy's time_snr_shift."""
    t = k / 1000
    return SHIFT * t / (1 + (SHIFT - 1) * t)


@torch.no_grad()
def test_the_noise_it_predicts_is_that_of_the_flow(denoiser):
    """x = (1 - s) z + s n: the noise that goes with the predicted velocity is x + (1 - s) v, whatever the scaling."""
    torch.manual_seed(0)
    t = torch.tensor([0, 120, 700])
    s = sigma_of(t + 1.0).view(-1, 1, 1, 1)
    z, n = torch.randn(2, 3, 16, 16, 16)
    x = (1 - s) * z + s * n
    expected = x + (1 - s) * velocity(denoiser, x, s.flatten(), {"person": "stranger 1", "style": "ink"})
    abar = denoiser.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * z + (1 - abar).sqrt() * n
    torch.testing.assert_close(abar, (1 - s) ** 2 / ((1 - s) ** 2 + s**2))
    torch.testing.assert_close(denoiser.predict_noise(x_t, t), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_its_weighted_loss_is_that_of_flow_matching(denoiser):
    torch.manual_seed(0)
    t = torch.tensor([5, 300, 900])
    z = torch.randn(3, 16, 16, 16)
    streams = [random_stream(1, i) for i in range(3)]
    n = noise((16, 16, 16), [random_stream(1, i) for i in range(3)], z.device)
    s = sigma_of(t + 1.0)
    v = velocity(denoiser, torch.lerp(z, n, s.view(-1, 1, 1, 1)), s, {"person": "stranger 1", "style": "ink"})
    expected = (v - (n - z)).square().flatten(1).mean(1)
    found = noised_loss(denoiser, z, t, streams) * denoiser.loss_weight(t)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_its_autoencoder_is_that_of_the_training(denoiser, tool):
    network = tool("latent_networks").Autoencoder().eval()
    tool("latent_training").read_autoencoder(demo_model.FOLDER, network)
    pictures = demo_model.portraits()[:2]
    z = denoiser.encode(to_pixels(pictures))
    torch.testing.assert_close(z, network.encode(pictures), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close((denoiser.decode(z) + 1) / 2, network.decode(z), rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_it_draws_by_eulers_method_along_the_flow(denoiser):
    """DDIM of the equivalent process is Euler's method of the flow, with guidance as without."""
    steps = 4
    times = torch.linspace(999, 0, steps, dtype=torch.float64).round().long()
    sigmas = [*sigma_of(times + 1.0).tolist(), 0.0]
    x = noise((16, 8, 8), [random_stream(3, 0)], torch.device("cpu"))
    for here, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        level = torch.full((1,), here)
        told = velocity(denoiser, x, level, {"person": "stranger 1", "style": "ink"})
        free = velocity(denoiser, x, level, {})
        x = x + (after - here) * (free + 2.5 * (told - free))
    expected = ((denoiser.decode(x) + 1) / 2).clamp(0, 1)
    with denoiser.guided(2.5):
        found = generate(denoiser, 1, 64, seed=3, steps=steps)
    assert denoiser.guidance == 1
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert (generate(denoiser, 1, 64, seed=3, steps=steps) - expected).abs().max() > 0.05


def test_a_failure_ends_the_guidance(denoiser):
    with pytest.raises(RuntimeError, match="stop"), denoiser.guided(3.0):
        raise RuntimeError("stop")
    assert denoiser.guidance == 1


def test_adapters_are_where_diffusers_puts_them(denoiser):
    """to_q, to_k, to_v and the two added ones of every block, and both ways out: here qkv and proj of both streams, the
    context's way out in all blocks but the last."""
    layers = adapted_layers(denoiser.network, convolutions=False)
    blocks = len(denoiser.network.joint_blocks)
    assert len(layers) == 4 * blocks - 1
    assert all(name.startswith("joint_blocks.") for name in layers)


def test_it_learns_a_person_and_forgets_him(denoiser):
    pictures = demo_model.portraits()
    before = {k: v.clone() for k, v in denoiser.network.state_dict().items()}
    z, t = torch.zeros(1, 16, 16, 16), torch.tensor([500])
    with torch.no_grad():
        plain = denoiser.predict_noise(z, t)
    with denoiser.session(), customized(denoiser, pictures, replace(DEMO_SETTINGS, steps=8, batch=2), 0) as learned:
        with torch.no_grad():
            assert not torch.equal(denoiser.predict_noise(z, t), plain)
        assert len(learned.losses) == 8
    after = denoiser.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())
    with torch.no_grad():
        assert torch.equal(denoiser.predict_noise(z, t), plain)


def test_it_takes_gradients_and_knows_its_cost(denoiser):
    pixels = to_pixels(demo_model.portraits()[:1, :, :64, :64]).requires_grad_()
    noised_loss(denoiser, denoiser.encode(pixels), torch.tensor([100]), [random_stream(0)]).sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert 1e3 < denoiser.bytes_per_pixel() < 1e6


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(AntiPureError, match="knows no person 'Anna'"):
        load_demo_denoiser({"person": "Anna"})
    with pytest.raises(AntiPureError, match="precision 'fp64' is unknown"):
        load_demo_denoiser(precision="fp64")
    with pytest.raises(AntiPureError, match="is missing"):
        load_demo_denoiser(folder=tmp_path)
