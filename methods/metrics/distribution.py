"""How sets of pictures differ: FID, KID, diversity, on features B×D of a named encoder.

The numbers belong to the feature space: FID in the literature means InceptionV3's, and one space's figure cannot be
set against another's. The functions on features take N×D tensors and work in float64 on their device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.denoiser import add_noise
from ..diffusion.pixel import PixelDenoiser
from ..errors import AntiPureError, sizes
from ..pictures import check_picture, pad_reflect, random_stream, round_8bit, round_up, to_pixels
from ..progress import Progress, silent

ENOUGH = 2048  # pictures, as many as InceptionV3 has features: below it the covariances of FID have not full rank


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (FID, Heusel et al. 2017, eq. 6).

        |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½

    first: N×D, second: M×D, at least 2 each; covariances divide by N - 1. The last trace is exact for covariances
    without full rank: with S1 = A^T A and S2 = B^T B it is the sum of the singular values of A B^T.
    """
    a, b = _features(first, second, 2)
    mean_a, mean_b = a.mean(0), b.mean(0)
    root_a, root_b = ((x - m) / (len(x) - 1) ** 0.5 for x, m in ((a, mean_a), (b, mean_b)))
    traces = root_a.square().sum() + root_b.square().sum()
    # Many pictures: A's triangular factor has the same A^T A, and D rows only.
    root_a, root_b = (torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x for x in (root_a, root_b))
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return float(((mean_a - mean_b).square().sum() + traces - 2 * overlap).clamp(min=0))


def kernel_distance(
    first: Tensor, second: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018): unbiased squared MMD with the kernel (x·y / D + 1)³; may fall below 0.

    first: N×D, second: M×D, at least 2 each. Mean and standard deviation over random subsets of `subset_size`
    pictures; sets that are not larger are compared whole, once, with a deviation of 0.
    """
    a, b = _features(first, second, 2)
    size = min(len(a), len(b), subset_size)
    if size < 2 or subsets < 1:
        raise AntiPureError("KID needs at least one subset of at least 2 pictures.")
    if max(len(a), len(b)) <= subset_size:
        return float(_mmd(a, b)), 0.0
    generator = random_stream(seed)
    values = []
    for _ in range(subsets):
        chosen = [x[torch.randperm(len(x), generator=generator)[:size].to(x.device)] for x in (a, b)]
        values.append(_mmd(*chosen))
    drawn = torch.stack(values)
    return float(drawn.mean()), float(drawn.std(correction=0))


def _mmd(a: Tensor, b: Tensor) -> Tensor:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_of_others(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))

    return mean_of_others(a) + mean_of_others(b) - 2 * kernel(a, b).mean()


def feature_diversity(features: Tensor) -> float:
    """Mean cosine distance (0..2) over all pairs of one set. features: N×D, at least 2."""
    a, _ = _features(features, features, 2)
    unit = F.normalize(a, dim=1)
    pairs = unit @ unit.T
    return float(1 - (pairs.sum() - pairs.diagonal().sum()) / (len(a) * (len(a) - 1)))


def pairwise_diversity(
    picture: Tensor, distance: Callable[[Tensor, Tensor], Tensor], *, pairs: int = 100, seed: int = 0
) -> tuple[float, int]:
    """Mean `distance` (such as `Lpips`) over pairs of one set, and how many pairs: all, or `pairs` drawn ones.

    picture: N×3×H×W in 0..1, at least 2.
    """
    check_picture(picture)
    if len(picture) < 2:
        raise AntiPureError("Diversity is the distance between pictures of a set; give at least 2 pictures.")
    every = torch.combinations(torch.arange(len(picture)))
    if len(every) > pairs:
        every = every[torch.randperm(len(every), generator=random_stream(seed))[:pairs]]
    values = [distance(picture[i : i + 1], picture[j : j + 1]) for i, j in every.tolist()]
    return float(torch.cat(values).mean()), len(every)


def _features(first: Tensor, second: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        shapes = f"{sizes(first.shape)} and {sizes(second.shape)}"
        raise AntiPureError(f"The features have shapes {shapes}; give N×D and M×D of one encoder.")
    if min(len(first), len(second)) < least:
        counts = f"{len(first)} and {len(second)}"
        raise AntiPureError(f"The sets have {counts} pictures; a distribution needs at least {least} of each.")
    for x in (first, second):
        if not torch.isfinite(x).all():
            raise AntiPureError("The encoder gave NaN or infinite features; use it in float32, or another one.")
    return first.double(), second.double()


def size_warning(first: int, second: int) -> str | None:
    """What to say about FID of that many pictures: one sentence below `ENOUGH`, else None."""
    if min(first, second) >= ENOUGH:
        return None
    return f"Fewer than {ENOUGH} pictures: FID is biased upwards, compare it only at equal n and read KID beside it."


@torch.no_grad()
def extract(
    picture: Tensor,
    encoder: Callable[[Tensor], Tensor],
    *,
    device: torch.device | str = "cpu",
    batch: int = 16,
    progress: Progress = silent,
) -> Tensor:
    """Features N×D on the CPU of pictures N×3×H×W in 0..1, rounded to 8 bits, by an encoder of pixels in [-1, 1]."""
    check_picture(picture)
    found = []
    for part in picture.split(batch):
        found.append(encoder(to_pixels(round_8bit(part)).to(device)).float().cpu())
        progress(sum(map(len, found)), len(picture))
    return torch.cat(found)


class DenoiserFeatures:
    """The middle block of a pixel denoiser as an encoder: mean and deviation over positions of its channels.

    Pixels B×3×H×W in [-1, 1] are noised to `timestep` with fixed noise, the same for every picture. Always available
    (the bundled denoiser), and no InceptionV3: figures in this space compare only with one another.
    """

    def __init__(self, denoiser: PixelDenoiser, name: str, timestep: int = 20):
        if not hasattr(denoiser.network, "mid_block"):
            raise AntiPureError("This denoiser's network has no middle block to take features from.")
        self.denoiser, self.timestep = denoiser, timestep
        self.name = f"{name}, middle block at timestep {timestep}"

    def __call__(self, pixels: Tensor) -> Tensor:
        multiple = self.denoiser.multiple
        x = pad_reflect(pixels, *(round_up(side, multiple) for side in pixels.shape[-2:]))
        eps = torch.randn(x.shape[1:], generator=random_stream(0, self.timestep)).to(x)
        x_t = add_noise(x, eps.expand_as(x), self.denoiser.alphas_cumprod[self.timestep])
        kept: list[Tensor] = []
        middle = self.denoiser.network.get_submodule("mid_block")
        handle = middle.register_forward_hook(lambda module, inputs, out: kept.append(out))
        try:
            self.denoiser.predict(x_t, torch.full((len(x),), self.timestep, device=x.device))
        finally:
            handle.remove()
        flat = kept[0].float().flatten(2)
        return torch.cat([flat.mean(2), flat.std(2, correction=0)], 1)
