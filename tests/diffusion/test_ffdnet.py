"""FFDNet, a stranger's denoiser: against a plain forward of its own, and that the real file removes noise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from antipure.benchmarks import strangers
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.diffusion.denoiser import add_noise, predict_x0
from antipure.methods.errors import AntiPureError
from antipure.methods.purification.diffpure import diffpure
from antipure.methods.purification.purifiers import parse_purifier
from PIL import Image
from safetensors.torch import save_file

WIDTH, LAYERS = 6, 4


def weights(step=1, seed=0):
    """A small one's, in the layout of the real file: "0.weight", "0.bias", "1.weight", ..."""
    g = torch.Generator().manual_seed(seed)
    channels = [13, *[WIDTH] * (LAYERS - 1), 12]
    state = {}
    for i, (before, after) in enumerate(zip(channels, channels[1:], strict=False)):
        state[f"{i * step}.weight"] = torch.randn(after, before, 3, 3, generator=g) / (9 * before) ** 0.5
        state[f"{i * step}.bias"] = torch.randn(after, generator=g) * 0.1
    return state


def reference(state, picture, sigma):
    """The paper's network on a picture 3×H×W in 0..1, in float64: four sub-pictures, the level beside them, back."""
    height, width = picture.shape[1:]
    folded = [picture[c, i::2, j::2] for c in range(3) for i in range(2) for j in range(2)]
    h = torch.stack([*folded, torch.full((height // 2, width // 2), sigma)]).double()[None]
    for i in range(LAYERS):
        h = F.conv2d(F.pad(h, (1, 1, 1, 1)), state[f"{i}.weight"].double(), state[f"{i}.bias"].double())
        h = h.clamp(min=0) if i < LAYERS - 1 else h
    out = torch.zeros(3, height, width, dtype=torch.float64)
    for place in range(12):
        c, (i, j) = place // 4, divmod(place % 4, 2)
        out[c, i::2, j::2] = h[0, place]
    return out


@pytest.fixture
def small(tmp_path):
    save_file(weights(), tmp_path / "ffdnet.safetensors")
    return load_denoiser(tmp_path / "ffdnet.safetensors")


@pytest.mark.parametrize("t", [0, 9, 120])
def test_the_noise_it_predicts_follows_from_the_picture_it_gives(small, t):
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)[t]
    x = torch.randn(2, 3, 14, 22, generator=torch.Generator().manual_seed(t))
    sigma = 0.5 * ((1 - abar) / abar) ** 0.5
    expected = torch.stack([2 * reference(weights(), (one.double() / abar**0.5 + 1) / 2, sigma) - 1 for one in x])
    eps, variance = small.predict(x, torch.tensor([t, t]))
    x0 = predict_x0(x, eps, small.alphas_cumprod[t])
    assert variance is None
    torch.testing.assert_close(x0.double(), expected, rtol=0, atol=2e-5)


def test_its_schedule_ends_where_its_training_did(small):
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    levels = 255 * 0.5 * ((1 - abar) / abar).sqrt()
    assert small.timesteps == int((levels <= 75).sum()) == 168
    with pytest.raises(AntiPureError, match="1..168"):
        parse_purifier("diffpure200", {"ffdnet": small})


def test_files_that_count_the_activations_and_wrapped_ones_are_the_same(tmp_path, small):
    torch.save({"params": {f"model.{key}": value for key, value in weights(step=2).items()}}, tmp_path / "f.pth")
    other, x, t = load_denoiser(tmp_path / "f.pth"), torch.rand(1, 3, 8, 8), torch.tensor([5])
    assert torch.equal(other.predict_noise(x, t), small.predict_noise(x, t))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"1.weight": torch.zeros(WIDTH, WIDTH + 1, 3, 3)}, "shape"),
        ({"2.bias": torch.full((WIDTH,), torch.nan)}, "NaN"),
        ({"0.weight": torch.zeros(WIDTH, 5, 3, 3), "3.weight": torch.zeros(4, WIDTH, 3, 3)}, "ADM"),  # grey pictures
        ({"out.weight": torch.zeros(3)}, "ADM"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, named):
    save_file({**weights(), **change}, tmp_path / "odd.safetensors")
    with pytest.raises(AntiPureError, match=f"odd.safetensors.*{named}"):
        load_denoiser(tmp_path / "odd.safetensors")


def test_a_bias_that_is_missing_is_named(tmp_path):
    state = weights()
    del state["2.bias"]
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(AntiPureError, match="half.safetensors.*incomplete"):
        load_denoiser(tmp_path / "half.safetensors")


def test_half_precision_does_not_reach_the_picture(tmp_path, small):
    save_file(weights(), tmp_path / "f.safetensors")
    half = load_denoiser(tmp_path / "f.safetensors", precision="bf16")
    x, t = torch.rand(1, 3, 8, 8), torch.tensor([0])
    assert torch.equal(half.predict_noise(x, t), small.predict_noise(x, t))


def test_purifiers_and_protections_run_on_it(small, face):
    picture = face[..., :70, :90]
    with small.session():
        pure = parse_purifier("gridpure1@2+diffpure3", {"ffdnet": small})(picture)
        settings = AttackSettings(levels=8, steps=2)
        protected = protect(picture, small, PRESETS["strong"], settings)
    assert pure.shape == protected.shape == picture.shape
    assert (pure - picture).abs().max() > 0
    assert 0 < (protected - picture).abs().max() <= 8 / 255 + 1e-6


@pytest.mark.skipif(strangers.ffdnet_file() is None or not strangers.pictures(), reason=strangers.missing())
def test_the_real_one_removes_noise():
    """A photograph with noise of 25 levels gains 10 dB and more, about what the paper reports for Kodak (31-32 dB)."""
    denoiser = load_denoiser(strangers.ffdnet_file())
    assert sum(p.numel() for p in denoiser.network.parameters()) == 852_108
    photo = torch.from_numpy(np.array(Image.open(next(iter(strangers.pictures().values()))).convert("RGB")))
    clean = photo.permute(2, 0, 1)[None, :, :256, :256].float() / 127.5 - 1
    sigma = 0.5 * ((1 - denoiser.alphas_cumprod) / denoiser.alphas_cumprod).sqrt() * 255
    t = int((sigma - 25).abs().argmin())
    abar = denoiser.alphas_cumprod[t]
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    x_t = add_noise(clean, eps, abar)
    with torch.no_grad():
        x0 = predict_x0(x_t, denoiser.predict_noise(x_t, torch.tensor([t])), abar)

    def psnr(x):
        return float(-10 * ((x - clean) / 2).square().mean().log10())

    noisy, denoised = psnr(x_t / abar.sqrt()), psnr(x0)
    assert noisy == pytest.approx(20.17, abs=0.15)
    assert denoised > noisy + 10.5, f"{denoised:.2f} dB"
    pure = diffpure((x_t / abar.sqrt() + 1).clamp(0, 2) / 2, denoiser, timestep=t + 1, substeps=1)
    assert psnr(2 * pure - 1) > noisy + 5
