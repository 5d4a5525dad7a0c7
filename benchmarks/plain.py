"""The algorithms as one would first write them, for `benchmarks.speed`: tile by tile, nothing in closed form.

They draw the same numbers as the pack, so their results must be the same up to rounding.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from antipure.methods.antipure.objective import Objective
from antipure.methods.diffusion.denoiser import Denoiser
from antipure.methods.pictures import grid_positions, random_positions, random_stream
from antipure.methods.purification.transforms import resize
from PIL import Image
from torch import Tensor


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II, row k the k-th cosine."""
    k, n = torch.arange(size)[:, None], torch.arange(size)[None]
    matrix = torch.cos(math.pi * (2 * n + 1) * k / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def l_fre(x0_hat: Tensor, size: int) -> Tensor:
    """PFG through the transform itself: every coefficient of every patch, then the high ones are summed."""
    matrix = dct_matrix(size).to(x0_hat)
    patches = F.unfold(x0_hat.transpose(0, 1), size, stride=size).transpose(1, 2).reshape(-1, size, size)
    coefficients = matrix @ patches @ matrix.T
    return torch.sigmoid((coefficients[:, size // 2 :, size // 2 :].sum((1, 2)) * 4 / size**2).mean())


def paper_loss(denoiser: Denoiser, tile: Tensor, generator: torch.Generator, o: Objective) -> Tensor:
    """The paper's three terms for one tile, a forward for each timestep."""
    t = torch.randint(o.t_p, (1,), generator=generator)
    eps = torch.randn(tile.shape[1:], generator=generator)[None].to(tile)
    a = denoiser.alphas_cumprod[int(t)]
    x_t = a.sqrt() * tile + (1 - a).sqrt() * eps
    eps_hat = denoiser.predict_noise(x_t, t.to(tile.device))
    eps_err = denoiser.predict_noise(x_t, torch.full_like(t, o.t_err - 1).to(tile.device))
    x0_hat = (x_t - (1 - a).sqrt() * eps_hat) / a.sqrt()
    errt = -(eps_err - eps_hat).square().mean()
    return (
        o.ddpm * (eps_hat - eps).square().mean()
        + o.pfg * torch.exp(a - 1) * l_fre(x0_hat, o.patch_size)
        + o.etg * torch.exp(errt)
    )


def strong_loss(denoiser: Denoiser, tile: Tensor, clean: Tensor, generator: torch.Generator, o: Objective) -> Tensor:
    """The unrolled purifier for one tile."""
    t = o.unrolled_t
    if o.unrolled_t_low:
        t = int(torch.randint(o.unrolled_t_low, o.unrolled_t + 1, (1,), generator=generator))
    if o.halved and float(torch.rand((), generator=generator)) < o.halved:
        tile, clean = (resize((x + 1) / 2, 0.5) * 2 - 1 for x in (tile, clean))
    a = denoiser.alphas_cumprod[t - 1]
    z = tile
    for _ in range(o.unrolled_steps):
        eps = torch.randn(tile.shape[1:], generator=generator)[None].to(tile)
        x_t = a.sqrt() * z + (1 - a).sqrt() * eps
        eps_hat = denoiser.predict_noise(x_t, torch.full((1,), t - 1, device=tile.device))
        z = ((x_t - (1 - a).sqrt() * eps_hat) / a.sqrt()).clamp(-1, 1)
    change = z - clean
    padded = [F.pad(x, (1, 2, 1, 2)) for x in (change, torch.ones_like(change))]
    total, count = (F.avg_pool2d(x, 4, stride=1) for x in padded)
    return (change - total / count).square().mean()


def protect(picture: Tensor, denoiser: Denoiser, o: Objective, *, levels: float, steps: int, seed: int = 0) -> Tensor:
    """PGD on 1×3×H×W in 0..1, H and W at least a tile: one tile's graph after another."""
    clean, size = picture * 2 - 1, denoiser.tile
    h, w = picture.shape[-2:]
    first, radius = levels * max(1 / 8, 2 / steps) / 127.5, levels / 127.5
    x = clean.clone()
    for step in range(steps):
        generator = random_stream(seed, step)
        positions = random_positions(h, w, size, generator)
        root = int(torch.randint(2**62, (), generator=generator))
        x.requires_grad_()
        for i, (top, left) in enumerate(positions):
            area = (..., slice(top, top + size), slice(left, left + size))
            if o.unrolled:
                loss = strong_loss(denoiser, x[area], clean[area], random_stream(root, i), o)
            else:
                loss = paper_loss(denoiser, x[area], random_stream(root, i), o)
            (loss / len(positions)).backward()
        gradient = x.grad - (1 - o.luminance) * x.grad.mean(1, keepdim=True)
        if not torch.isfinite(gradient).all():
            raise ValueError("not finite")
        x = x.detach() + first * (1 - step / steps) * gradient.sign()
        x = torch.minimum(torch.maximum(x, clean - radius), clean + radius).clamp(-1, 1)
    return (((x + 1) * 127.5).round() / 255).detach()


@torch.no_grad()
def gridpure(picture: Tensor, denoiser: Denoiser, *, iterations: int, timestep: int = 10, gamma: float = 0.1) -> Tensor:
    """GrIDPure in the order of the released script: crop, purify and paste one tile after another as 8-bit pictures.

    1×3×H×W in 0..1, H and W at least a tile. Corners as the paper has them.
    """
    size, half = denoiser.tile, denoiser.tile // 2
    h, w = picture.shape[-2:]
    current = Image.fromarray((picture[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy())

    def purified(crop: Image.Image, generator: torch.Generator) -> np.ndarray:
        array = np.asarray(crop).copy()
        x = torch.from_numpy(array).permute(2, 0, 1)[None].float().to(denoiser.device) / 127.5 - 1
        abar = denoiser.alphas_cumprod
        x = abar[timestep - 1].sqrt() * x + (1 - abar[timestep - 1]).sqrt() * torch.randn(
            x.shape, generator=generator
        ).to(x)
        for t in range(timestep - 1, -1, -1):
            eps_hat, _ = denoiser.predict(x, torch.full((1,), t, device=x.device))
            before = abar[t - 1] if t else torch.ones_like(abar[0])
            alpha, beta = abar[t] / before, 1 - abar[t] / before
            x0_hat = ((x - (1 - abar[t]).sqrt() * eps_hat) / abar[t].sqrt()).clamp(-1, 1)
            x = (before.sqrt() * beta * x0_hat + alpha.sqrt() * (1 - before) * x) / (1 - abar[t])
            if t:
                deviation = ((1 - before) / (1 - abar[t]) * beta).sqrt()
                x = x + deviation * torch.randn(x.shape, generator=generator).to(x)
        pure = ((x[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        return np.asarray(Image.fromarray(pure)).astype(np.float64)

    for iteration in range(iterations):
        total, count = np.zeros((h, w, 3)), np.zeros((h, w, 1))
        positions = grid_positions(h, w, size, half)
        for i, (y, x) in enumerate(positions):
            crop = current.crop((x, y, x + size, y + size))
            total[y : y + size, x : x + size] += purified(crop, random_stream(0, iteration, i))
            count[y : y + size, x : x + size] += 1
        composite = Image.new("RGB", (size, size))
        places = [(y, x) for y in (0, h - half) for x in (0, w - half)]
        spots = [(y, x) for y in (0, half) for x in (0, half)]
        for (y, x), (to_y, to_x) in zip(places, spots, strict=True):
            composite.paste(current.crop((x, y, x + half, y + half)), (to_x, to_y))
        pure = purified(composite, random_stream(0, iteration, len(positions)))
        for (y, x), (at_y, at_x) in zip(places, spots, strict=True):
            total[y : y + half, x : x + half] += pure[at_y : at_y + half, at_x : at_x + half]
            count[y : y + half, x : x + half] += 1
        mixed = (1 - gamma) * total / count + gamma * np.asarray(current)
        current = Image.fromarray(np.rint(mixed.clip(0, 255)).astype(np.uint8))
    return torch.from_numpy(np.asarray(current).copy()).permute(2, 0, 1)[None].to(picture) / 255
