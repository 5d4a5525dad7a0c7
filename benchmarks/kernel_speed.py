"""The part `kernels` of `benchmarks.speed`: bytes moved and bandwidth of every primitive, against a copy in one run.

Bytes are what a primitive must read and write at least. On a GPU the Triton kernels run where they can, and stand
beside the torch references; on a CPU there are only these. PFG's closed form stands against the DCT through matrix
products.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from antipure.kernels.ascent import ascend
from antipure.kernels.dispatch import capable
from antipure.kernels.frequency import dct_matrix, high_frequency_energy, high_frequency_mean, patch_dct
from antipure.kernels.noising import add_noise
from antipure.kernels.ssim import ssim_terms
from antipure.kernels.tiles import average_tiles, cut
from antipure.methods.pictures import grid_positions
from torch import Tensor

TILE, PATCH = 64, 8
# asked of the kernels that do nothing but move memory, on a GPU; and of PFG over the DCT there
BANDWIDTH, OVER_DCT = 0.8, 20


@dataclass(frozen=True)
class Kernel:
    """work: one call. moved: in pictures of the batch, read or written. bound: whether memory is all it waits for.

    triton: whether it has a Triton version.
    """

    work: Callable[[], object]
    moved: float
    bound: bool = True
    triton: bool = True


def kernels(bench, side: int | None = None) -> list[dict]:
    """Rows for a batch of pictures of side×side pixels, float32 (default 2048 on a GPU, 1024 on a CPU)."""
    on_gpu = bench.device.type == "cuda"
    side = side or (2048 if on_gpu else 1024)
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(4, 3, side, side, generator=generator) / 2 + pattern(side) / 2).to(bench.device)
    size = x.numel() * x.element_size()
    calls = 20 if on_gpu else 2

    def seconds(work: Callable[[], object]) -> list[float]:
        work()
        return [bench.seconds(lambda: [work() for _ in range(calls)]) / calls for _ in range(bench.repeats)]

    other = torch.empty_like(x)
    copy = statistics.median(seconds(lambda: other.copy_(x)))
    rows = [_row("copy", copy, 2 * size)]
    triton = capable(bench.device)
    for name, kernel in _kernels(x).items():
        times = seconds(kernel.work)
        row = _row(name, statistics.median(times), kernel.moved * size)
        row["of the copy's bandwidth"] = row["GB/s"] / rows[0]["GB/s"]
        if on_gpu and kernel.bound:
            row["asked"] = BANDWIDTH
        if triton and kernel.triton:
            with patch.dict(os.environ, ANTIPURE_TRITON="0"):
                row["torch's time over Triton's"] = statistics.median(seconds(kernel.work)) / row["seconds"]
        rows.append(row)
        print(row, flush=True)
    return rows + pfg_over_dct(bench, x, on_gpu)


def pattern(side: int) -> Tensor:
    """What PFG looks for, side×side in 0..1: without it high frequencies cancel, and no error is relative to much."""
    t = dct_matrix(PATCH)[PATCH // 2 :].sum(0)
    template = torch.outer(t, t)
    template = (template - template.min()) / (template.max() - template.min())
    return template.repeat(-(-side // PATCH), -(-side // PATCH))[:side, :side]


def _row(name: str, seconds: float, moved: float) -> dict:
    return {"row": name, "seconds": seconds, "MB moved": moved / 1e6, "GB/s": moved / seconds / 1e9}


def _kernels(x: Tensor) -> dict[str, Kernel]:
    side = x.shape[-1]
    eps, abar = torch.randn_like(x), torch.tensor(0.98, device=x.device)
    lower, upper = x - 0.1, x + 0.1
    values = x.clone()
    grid, dense = (grid_positions(side, side, TILE, stride) for stride in (TILE, TILE // 2))
    tiles = cut(x[:1], dense, TILE)
    # tiles in pictures of the batch, which `moved` counts in
    plain, overlapping = (len(places) * TILE**2 / (len(x) * side**2) for places in (grid, dense))
    return {
        "PGD update": Kernel(lambda: ascend(values, eps, 0.01, lower, upper), 5),
        "noising": Kernel(lambda: add_noise(x, eps, abar), 3),
        "tiles cut": Kernel(lambda: cut(x[:1], grid, TILE), 2 * plain),
        "tiles averaged": Kernel(lambda: average_tiles(tiles, dense, side, side), overlapping + 1 / len(x)),
        "PFG": Kernel(lambda: high_frequency_mean(x, PATCH), 1, triton=False),
        "PatchDCT energy": Kernel(lambda: high_frequency_energy(x, PATCH), 1, bound=False, triton=False),
        "SSIM": Kernel(lambda: ssim_terms(x, upper), 2, bound=False, triton=False),
    }


def pfg_over_dct(bench, x: Tensor, on_gpu: bool) -> list[dict]:
    """Time of PFG's mean through the DCT over its closed form, and how far the two are apart, relative."""

    def through_dct(x: Tensor) -> Tensor:
        high = patch_dct(x, PATCH)[..., PATCH // 2 :, PATCH // 2 :]
        return high.sum((-2, -1)).mean((1, 2, 3)) * 4 / PATCH**2

    def with_gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]

    closed = partial(high_frequency_mean, size=PATCH)
    exact = through_dct(x.double())
    apart = float((closed(x).double() - exact).abs().max() / exact.abs().max())
    asked = {"asked": OVER_DCT} if on_gpu else {}
    row = bench.ratio("PFG through the DCT over the closed form", lambda: through_dct(x), lambda: closed(x), **asked)
    row["apart, relative"] = apart
    gradients = bench.ratio(
        "the same with the gradient", lambda: with_gradient(through_dct), lambda: with_gradient(closed), **asked
    )
    mine, theirs = with_gradient(closed), with_gradient(through_dct)
    gradients["apart, relative"] = float((mine - theirs).abs().max() / theirs.abs().max())
    return [row, gradients]
