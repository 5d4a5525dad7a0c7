"""VAEs and upscalers as purifiers: the list language, and each against a slow loop that shares no code with it."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from antipure.benchmarks import strangers
from antipure.methods.diffusion.autoencoder import NetworkAutoencoder, load_autoencoder
from antipure.methods.errors import AntiPureError
from antipure.methods.purification.impress import impress
from antipure.methods.purification.purifiers import Purification, parse_purifier, parse_purifiers
from antipure.methods.purification.restorations import Restoration
from antipure.methods.purification.upscaling import Upscaler, upscale
from antipure.methods.purification.vae import vae_round_trip
from torch import nn


class SmallVae(nn.Module):
    multiple, channels = 4, 5

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.inward, self.outward = nn.Conv2d(3, 5, 4, stride=4), nn.ConvTranspose2d(5, 3, 4, stride=4)

    def moments(self, pixels):
        return self.inward(pixels), None

    def decode(self, latent):
        return torch.tanh(self.outward(torch.tanh(latent)))


def vae(seed=0):
    return NetworkAutoencoder(SmallVae(seed), f"small{seed}")


class Doubling(Upscaler):
    """Every pixel four times, one channel darker; notes its sessions."""

    name, scale = "doubling", 2
    open = False

    @contextmanager
    def session(self):
        self.open = True
        yield
        self.open = False

    def enlarge(self, picture):
        assert self.open
        large = picture.repeat_interleave(2, -1).repeat_interleave(2, -2)
        large[..., ::2, ::2] += 0.1  # one pixel of four: .025 of the mean
        return large


@pytest.fixture
def picture(face):
    return face[..., 30:53, 40:70]  # 23×30: no multiples


def test_the_round_trip_is_encoding_and_decoding(picture):
    network, x = vae().network, picture[0].numpy()
    for _ in range(2):
        padded = np.pad(x, ((0, 0), (0, 1), (0, 2)), mode="reflect")
        with torch.no_grad():
            out = network.decode(network.inward(torch.from_numpy(2 * padded - 1)[None].float()))[0].numpy()
        x = np.clip(np.round((out[:, :23, :30] + 1) * 127.5), 0, 255) / 255
    np.testing.assert_allclose(vae_round_trip(picture, vae(), iterations=2)[0], x, atol=1.01 / 255)


def slow_impress(x, network, steps):
    """The authors' loop: Adam by its definition (Kingma and Ba, alg. 1), the rate along a cosine; and our bound."""
    start = torch.from_numpy(np.pad(2 * x.double().numpy() - 1, ((0, 0), (0, 0), (0, 1), (0, 2)), mode="reflect"))
    network, x, m, v = network.double(), start.clone(), 0, 0
    for k in range(steps):
        x.requires_grad_(True)
        loss = F.mse_loss(network.decode(network.inward(x)), x)
        (g,) = torch.autograd.grad(loss, x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = 1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * k / steps)) / 2
        step = rate * (m / (1 - 0.9 ** (k + 1))) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-5)
        x = (x.detach() - step).clamp(start - 16 / 127.5, start + 16 / 127.5).clamp(-1, 1)
    network.float()
    return ((x[..., :23, :30] + 1) * 127.5).round().clamp(0, 255) / 255


def test_impress_is_the_slow_loop(picture):
    autoencoder = vae()
    expected = slow_impress(picture, SmallVae(0), 25)
    found = impress(picture, autoencoder, steps=25)
    apart = (found.double() - expected).abs() * 255
    assert apart.max() <= 1.01
    assert (apart > 0.5).double().mean() < 0.01
    assert (found - picture).abs().max() > 0.5 / 255


def test_impress_makes_pictures_consistent_within_the_bound(picture):
    autoencoder = vae()

    def inconsistency(x):
        pixels = 2 * F.pad(x, (0, 2, 0, 1), mode="reflect") - 1
        return float((autoencoder.decode(autoencoder.encode(pixels)) - pixels).square().mean())

    with torch.inference_mode():  # where ComfyUI runs nodes
        pure = impress(picture, autoencoder, steps=60)
    with torch.no_grad():
        assert inconsistency(pure) < 0.98 * inconsistency(picture)
    assert (pure - picture).abs().max() <= 16.01 / 255
    assert torch.equal(impress(torch.cat([picture, picture.flip(-1)]), autoencoder, steps=3)[:1],
                       impress(picture, autoencoder, steps=3))  # fmt: skip


def test_upscaling_comes_back_to_the_size_by_areas(picture):
    upscaler = Doubling()
    with upscaler.session():
        found = upscale(picture, upscaler, factor=2)
    levels = np.round(picture[0].numpy() * 255)
    large = np.stack([levels] * 4)
    large[0] = np.clip(np.round(large[0] + 25.5), 0, 255)
    np.testing.assert_allclose(found[0] * 255, large.mean(0), atol=1)
    assert found.shape == picture.shape


def test_the_list_language(picture, tiny):
    vaes, upscalers = {"sd15": vae(0), "sdxl": vae(1)}, {"esrgan": Doubling()}
    networks = {"autoencoders": vaes, "upscalers": upscalers}
    texts = (
        "vae1, sdxl:vae2, impress3, sdxl:impress5, upscale, esrgan:upscale4, noise8+upscale, jpeg75+vae1+gridpure1@2"
    )
    listed = parse_purifiers(texts, {"denoiser": tiny}, **networks)
    assert [str(each) for each in listed] == [name.strip() for name in texts.split(",")]
    assert not any(each.is_transform or each.changes_size for each in listed)
    second = listed[1]
    with second.session():
        assert torch.equal(second(picture), vae_round_trip(picture, vaes["sdxl"], iterations=2))
    noisy = listed[6]
    with noisy.session():
        assert noisy(picture).shape == picture.shape
        assert torch.equal(noisy(picture), noisy(picture))
    assert not upscalers["esrgan"].open
    assert str(parse_purifier("vae", {}, **networks)) == "vae1"
    assert str(parse_purifier("impress", {}, **networks)) == "impress100"


def test_a_latent_denoisers_vae_stays_the_first(tiny):
    class Latent(type(tiny)):
        latent = True

    latent = Latent(tiny.unet, tiny.alphas_cumprod, tile=16)
    networks = {"autoencoders": {"sd15": vae()}}
    assert isinstance(parse_purifier("vae", {"d": latent}, **networks).steps[0], Purification)
    assert isinstance(parse_purifier("d:vae", {"d": latent}, **networks).steps[0], Purification)
    assert isinstance(parse_purifier("sd15:vae", {"d": latent}, **networks).steps[0], Restoration)
    assert isinstance(parse_purifier("vae", {"d": tiny}, **networks).steps[0], Restoration)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("impress0", "from 1 up"),
        ("none:impress", "no VAE 'none'.*sd15"),
        ("none:upscale", "no upscale model 'none'.*esrgan"),
        ("upscale64", "1..16"),
        ("upscal", "impress100, upscale"),
    ],
)
def test_what_cannot_be_run_is_said_before(text, said, tiny):
    with pytest.raises(AntiPureError, match=said):
        parse_purifier(text, {"d": tiny}, autoencoders={"sd15": vae()}, upscalers={"esrgan": Doubling()})


@pytest.mark.parametrize(("text", "kind"), [("impress", "VAE"), ("vae", "VAE"), ("upscale", "upscale model")])
def test_networks_that_are_not_wired_are_asked_for(text, kind):
    with pytest.raises(AntiPureError, match=f"needs a {kind}|needs a denoiser"):
        parse_purifier(text, {})


def test_a_network_of_another_size_than_it_says_is_refused(picture):
    class Odd(Doubling):
        scale = 3

    odd = Odd()
    with odd.session(), pytest.raises(AntiPureError, match="another model"):
        upscale(picture, odd)


@pytest.mark.skipif("sdxl" not in strangers.vae_files(), reason=strangers.missing() or "no VAE")
def test_a_real_vae_gets_more_consistent(face):
    autoencoder = load_autoencoder(strangers.vae_files()["sdxl"])
    picture = face[..., :64, :64]
    pure = impress(picture, autoencoder, steps=10)

    def inconsistency(x):
        return float((autoencoder.decode(autoencoder.encode(2 * x - 1)) - (2 * x - 1)).square().mean())

    with torch.no_grad():
        assert inconsistency(pure) < 0.95 * inconsistency(picture)
