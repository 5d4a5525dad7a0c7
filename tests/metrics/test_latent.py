"""The latent shift: against numpy, by its properties, and how often its interval holds the true value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from antipure.methods.diffusion.autoencoder import Autoencoder
from antipure.methods.errors import AntiPureError
from antipure.methods.memory import enough_memory
from antipure.methods.metrics.latent import latent_shift, shift_of_latents
from antipure.methods.pictures import round_8bit
from torch import Tensor


class Folding(Autoencoder):
    """Pixels folded into channels and mixed by a fixed matrix: a VAE whose latents numpy can tell."""

    name, multiple, channels = "folding", 4, 6

    def __init__(self, most: int | None = None):
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(self.channels, 3 * self.multiple**2, generator=generator) / 4
        self.shapes: list[tuple[int, ...]] = []
        self.most = most

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode(self, pixels: Tensor) -> Tensor:
        self.shapes.append(tuple(pixels.shape))
        if self.most is not None and len(pixels) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return torch.einsum("oi,bihw->bohw", self.matrix.to(pixels), F.pixel_unshuffle(pixels, self.multiple))

    def bytes_per_pixel(self) -> float:
        return 100.0

    def decode(self, latent: Tensor) -> Tensor:
        back = torch.einsum("oi,bohw->bihw", self.matrix.to(latent), latent)
        return F.pixel_shuffle(back, self.multiple)


def pictures(count: int = 3, height: int = 64, width: int = 80, levels: float = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    clean = F.interpolate(torch.rand(count, 3, height // 4, width // 4, generator=generator), (height, width))
    clean = round_8bit(clean)
    return clean, round_8bit(clean + levels / 255 * torch.randn(clean.shape, generator=generator))


def by_numpy(vae: Folding, clean: Tensor, moved: Tensor, channels: slice = slice(None)) -> list[float]:
    """The definition, once more: with numpy's mirroring, folding and moments."""
    found = []
    for pair in zip(clean.numpy(), moved.numpy(), strict=True):
        latents = []
        for picture in pair:
            pixels = np.rint(picture.astype(np.float64) * 255) / 127.5 - 1
            h, w = pixels.shape[1:]
            pixels = np.pad(pixels, ((0, 0), (0, -h % 4), (0, -w % 4)), mode="reflect")
            rows, columns = pixels.shape[1] // 4, pixels.shape[2] // 4
            folded = pixels.reshape(3, rows, 4, columns, 4).transpose(0, 2, 4, 1, 3).reshape(48, rows, columns)
            latents.append(np.tensordot(vae.matrix.numpy().astype(np.float64), folded, 1)[channels])
        a, b = latents
        found.append(float(np.sqrt(np.mean((b - a) ** 2)) / np.std(a)))
    return found


@pytest.mark.parametrize("size", [(64, 80), (37, 30), (6, 5), (4, 4)])
def test_it_is_numpys(size):
    vae = Folding()
    clean, moved = (x[..., : size[0], : size[1]] for x in pictures())
    found = latent_shift(clean, moved, vae, groups=3)
    assert found.value.tolist() == pytest.approx(by_numpy(vae, clean, moved), rel=1e-5)
    for i in range(3):
        part = by_numpy(vae, clean, moved, slice(2 * i, 2 * i + 2))
        assert found.groups[:, i].tolist() == pytest.approx(part, rel=1e-5)


def test_nothing_is_nothing_and_more_is_more():
    clean, _ = pictures()
    assert latent_shift(clean, clean, Folding()).value.tolist() == [0, 0, 0]
    flat = torch.full((1, 3, 16, 16), 0.5)
    assert latent_shift(flat, flat, Folding()).value.tolist() == [0]
    grown = [latent_shift(*pictures(levels=levels), Folding()).value for levels in (2, 4, 8, 16)]
    assert all((less < more).all() for less, more in zip(grown, grown[1:], strict=False))


def test_both_go_through_the_view():
    vae = Folding()
    clean, moved = pictures()

    def half(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=0.5, mode="area")

    found = latent_shift(clean, moved, vae, view=half)
    assert found.value.tolist() == pytest.approx(
        by_numpy(vae, round_8bit(half(clean)), round_8bit(half(moved))), rel=1e-5
    )
    assert {shape[2:] for shape in vae.shapes} == {(32, 40)}
    blind = latent_shift(clean, moved, Folding(), view=lambda x: 0 * x + torch.linspace(0, 1, x.shape[-1]))
    assert blind.value.tolist() == [0, 0, 0]


def test_the_interval_covers_the_true_value():
    """Latents whose true shift is known: noise of .5 on noise of 1, of one to three places' size."""
    generator = torch.Generator().manual_seed(8)
    for scale in (1, 2):
        trials = 400

        def noise(scale: int = scale, trials: int = trials) -> Tensor:
            fine = torch.randn(trials, 4, 32 // scale, 32 // scale, generator=generator)
            return F.interpolate(fine, (32, 32))

        clean = noise()
        found = shift_of_latents(clean, clean + 0.5 * noise(), draws=400)
        inside = float(((found.low <= 0.5) & (found.high >= 0.5)).float().mean())
        assert 0.9 < inside < 0.99, "95 % of 400, give or take"
        assert float((found.value - 0.5).mean().abs()) < 0.01
        assert (found.low < found.value).all()
        assert (found.value < found.high).all()


def test_the_interval_is_the_seeds():
    clean, moved = pictures()
    first, again, other = (latent_shift(clean, moved, Folding(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.low, again.low)
    assert torch.equal(first.high, again.high)
    assert not torch.equal(first.low, other.low)
    assert torch.equal(first.value, other.value)
    alone = latent_shift(clean[1:2], moved[1:2], Folding(), seed=1)
    assert torch.allclose(alone.low, first.low[1:2])
    assert torch.allclose(alone.high, first.high[1:2])


def test_one_tile_has_no_interval():
    found = latent_shift(*(x[..., :16, :16] for x in pictures()), Folding())
    assert found.low.isnan().all()
    assert found.high.isnan().all()
    assert ".." not in str(found)
    assert str(latent_shift(*pictures(), Folding())).count("..") == 3


def test_batches_fit_and_shrink_when_memory_runs_out():
    clean, moved = pictures()
    whole, small, poor = Folding(), Folding(), Folding(most=1)
    small.memory_bytes = 2.5 * small.bytes_per_pixel() * 64 * 80
    found = [latent_shift(clean, moved, vae) for vae in (whole, small, poor)]
    assert [shape[0] for shape in whole.shapes] == [6]
    assert [shape[0] for shape in small.shapes] == [2, 2, 2]
    assert [shape[0] for shape in poor.shapes][-6:] == [1] * 6
    assert torch.allclose(found[0].value, found[1].value)
    assert torch.allclose(found[0].value, found[2].value)
    with (
        pytest.raises(AntiPureError, match="not enough memory for one; take another"),
        enough_memory("one", "take another"),
    ):
        latent_shift(clean, moved, Folding(most=0))


def test_mistakes_are_one_sentence():
    clean, moved = pictures()
    broken = moved.clone()
    broken[0, 0, 0, 0] = float("nan")

    class Overflowing(Folding):
        def encode(self, pixels: Tensor) -> Tensor:
            return super().encode(pixels) * float("inf")

    cases = {
        "differ in size": lambda: latent_shift(clean, moved[..., :-1], Folding()),
        "picture holds NaN": lambda: latent_shift(clean, broken, Folding()),
        "6 latent channels cannot be cut into 4 groups": lambda: latent_shift(clean, moved, Folding(), groups=4),
        "0 times; at least 1": lambda: latent_shift(clean, moved, Folding(), draws=0),
        "NaN or infinite latents": lambda: latent_shift(clean, moved, Overflowing()),
    }
    for sentence, work in cases.items():
        with pytest.raises(AntiPureError, match=sentence) as caught:
            work()
        assert "\n" not in str(caught.value)
