"""Triton's kernels against the torch references: on the GPU, or in Triton's interpreter on the CPU.

Not collected by itself: `test_kernels.py` runs it in a process of its own, because Triton reads its settings once,
when it is first imported.
"""

from __future__ import annotations

import pytest
import torch
from antipure.kernels import (
    ascent,
    dispatch,
    noising,
    tiles,
    triton_ascent,
    triton_noising,
    triton_tiles,
)
from antipure.kernels.ascent import ascend
from antipure.kernels.noising import add_noise
from antipure.kernels.tiles import average_tiles, cut

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISIONS = [torch.float32, torch.float16, torch.bfloat16]
# a corner, flush with the far borders for an 11-px tile, two that overlap at odd places
POSITIONS = [(0, 0), (9, 19), (3, 5), (4, 5)]


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.fixture(autouse=True)
def through_triton(monkeypatch):
    """Every call of these tests goes to Triton and succeeds there: the references are called by their own names."""
    assert dispatch.capable(DEVICE)
    asked = []
    original = dispatch.run

    def run(kernel, reference, *args):
        asked.append(kernel)
        return original(kernel, reference, *args)

    for module in (ascent, noising, tiles):
        monkeypatch.setattr(module, "run", run)
    yield
    assert asked, "no kernel was asked for"
    assert not dispatch._failed, "a kernel fell back to torch"


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 17, 31), (1, 3, 33, 64)])
def test_ascend_has_the_same_bits(shape):
    values, direction = rand(*shape) * 255, randn(*shape, seed=1)
    direction[..., ::3] = 0
    allowed = 8 * rand(*shape, seed=2).round()
    lower, upper = (values - allowed).clamp(min=0), (values + allowed).clamp(max=255)
    for size in (1.0, 9.6):
        expected = ascent._ascend_torch(values.clone(), direction, size, lower, upper)
        mine = values.clone()
        result = ascend(mine, direction, size, lower, upper)
        assert torch.equal(result, expected)
        assert result is mine


def test_ascend_takes_any_strides():
    values = rand(1, 3, 9, 7).mT * 255
    direction = randn(1, 7, 9, 3, seed=1).permute(0, 3, 1, 2)
    lower, upper = (values - 3).clamp(min=0), (values + 3).clamp(max=255)
    expected = ascent._ascend_torch(values.clone(), direction, 4.0, lower, upper)
    result = ascend(values, direction, 4.0, lower, upper)
    assert torch.equal(result, expected)
    assert result is values


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("shape", "one"), [((2, 3, 17, 31), False), ((2, 4, 8, 8), True)])
def test_add_noise_and_its_gradient(shape, one, dtype):
    x0, eps = rand(*shape, dtype=dtype) * 2 - 1, randn(*shape, seed=1, dtype=dtype)
    abar = torch.tensor(0.98) if one else torch.linspace(0.9999, 0.3, shape[0])
    abar = abar.to(DEVICE)
    a = abar.view(-1, 1, 1, 1)
    expected = a.sqrt().to(dtype).double() * x0.double() + (1 - a).sqrt().to(dtype).double() * eps.double()
    x0.requires_grad_()
    result = add_noise(x0, eps, abar)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=0)
    upstream = randn(*shape, seed=2, dtype=dtype)
    (gradient,) = torch.autograd.grad(result, x0, upstream)
    torch.testing.assert_close(gradient, upstream * a.sqrt().to(dtype))


def test_add_noise_takes_any_strides():
    x0, eps = rand(2, 6, 5, 3).permute(0, 3, 1, 2), randn(1, 3, 6, 5).expand(2, 3, 6, 5)
    abar = torch.tensor([0.9, 0.5], device=DEVICE)
    expected = noising._combine_torch(x0, eps, abar.sqrt().view(-1, 1, 1, 1), (1 - abar).sqrt().view(-1, 1, 1, 1))
    torch.testing.assert_close(add_noise(x0, eps, abar), expected)


@pytest.mark.parametrize(("channels", "tile", "corners"), [(1, 1, False), (3, 8, False), (1, 8, True), (3, 11, True)])
def test_cut_and_its_gradient_have_the_same_bits(channels, tile, corners):
    x = randn(2, channels, 20, 30)[1:].requires_grad_()
    result = cut(x, POSITIONS, tile, corners=corners)
    assert torch.equal(result, tiles._gather_torch(x.detach(), POSITIONS, tile, corners))
    upstream = randn(*result.shape, seed=1)
    (gradient,) = torch.autograd.grad(result, x, upstream)
    assert torch.equal(gradient, tiles._merge_torch(upstream, POSITIONS, 20, 30, corners, False))


@pytest.mark.parametrize("tile", [1, 8, 11])
@pytest.mark.parametrize("positions", [POSITIONS, POSITIONS[1:], [(4, 5)]])
def test_cut_adds_to_a_gradient_with_the_same_bits(positions, tile):
    x = randn(1, 3, 20, 30).requires_grad_()
    upstream = randn(len(positions), 3, tile, tile, seed=1)
    # a gradient whose channels come last, as in a network's memory
    x.grad = randn(1, 20, 30, 3, seed=2).permute(0, 3, 1, 2)
    expected = tiles._add_torch(x.grad.clone(), upstream, positions)
    cut(x, positions, tile, gradient=x.grad).backward(upstream)
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("strided", [True, False])
def test_cut_takes_any_strides(strided):
    x = randn(1, 30, 20, 3).permute(0, 3, 2, 1) if strided else randn(1, 3, 40, 60)[..., ::2, 1::2]
    assert torch.equal(cut(x, POSITIONS, 8), tiles._gather_torch(x, POSITIONS, 8, False))


@pytest.mark.parametrize(
    ("tile", "height", "width", "dtype"),
    [
        (16, 16, 16, torch.float32),
        (32, 48, 80, torch.float32),
        (15, 33, 16, torch.float16),
        (8, 20, 15, torch.bfloat16),
    ],
)
def test_average_tiles(tile, height, width, dtype):
    ys, xs = ([*range(0, side - tile, max(tile // 2, 1)), side - tile] for side in (height, width))
    positions = [(y, x) for y in ys for x in xs]
    pieces = randn(len(positions) + 1, 3, tile, tile, dtype=dtype)
    expected = tiles._merge_torch(pieces.float(), positions, height, width, True, True)
    result = average_tiles(pieces, positions, height, width, corners=True)
    assert result.dtype == dtype
    # Sums and quotients are float32 and the same; the interpreter then cuts bfloat16 off where GPUs round.
    step = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
    torch.testing.assert_close(result, expected.to(dtype), atol=0, rtol=step)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_band_of_rows_looks_at_the_tiles_that_reach_into_it(shuffled):
    tile, height, width = 18, 100, 90
    positions = [(y, x) for y in (0, 17, 40, 82) for x in (0, 30, 72)]
    if shuffled:
        positions = [positions[i] for i in torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))]
    begins, ends = triton_tiles.bands(positions, tile, height)
    rows = triton_tiles.ROWS
    for band in range(-(-height // rows)):
        reaching = [i for i, (top, _) in enumerate(positions) if top < (band + 1) * rows and top + tile > band * rows]
        looked_at = range(begins[band], ends[band])
        assert set(reaching) <= set(looked_at)
        assert shuffled or len(looked_at) == len(reaching), "a grid's tiles come row by row"
    pieces = randn(len(positions), 3, tile, tile)
    result = average_tiles(pieces, positions, height, width)
    expected = tiles._merge_torch(pieces, positions, height, width, False, True)
    torch.testing.assert_close(result, expected, atol=0, rtol=0, equal_nan=True)


class Recorder:
    """A kernel that notes the grids it is started with."""

    def __init__(self, kernel, grids: list):
        self.kernel, self.grids = kernel, grids

    def __getitem__(self, grid):
        self.grids.append(grid)
        return self.kernel[grid]


def everything(count: int, side: int, channels: int = 3) -> None:
    """Every kernel once, on `count` pictures or tiles of side×side pixels; what they return is right."""
    x, eps = rand(count, channels, side, side), randn(count, channels, side, side, seed=1)
    expected = ascent._ascend_torch(x.clone(), eps, 0.1, x - 0.05, x + 0.05)
    assert torch.equal(ascend(x.clone(), eps, 0.1, x - 0.05, x + 0.05), expected)
    abar = torch.linspace(0.9, 0.5, count, device=DEVICE)
    a, b = (v.view(-1, 1, 1, 1) for v in (abar.sqrt(), (1 - abar).sqrt()))
    torch.testing.assert_close(add_noise(x, eps, abar), noising._combine_torch(x, eps, a, b))
    positions = [(0, i) for i in range(count)]
    strip = rand(1, channels, side, count + side)
    pieces = cut(strip, positions, side)
    assert torch.equal(pieces[-1], strip[0, :, :, count - 1 : count - 1 + side])
    merged = average_tiles(pieces, positions, side, count + side)
    torch.testing.assert_close(merged[..., : count + side - 1], strip[..., : count + side - 1])


def test_every_grid_has_one_axis(monkeypatch):
    """CUDA ends the other axes at 65,535, which the interpreter does not."""
    grids = []
    for module in (triton_ascent, triton_noising, triton_tiles):
        for name, kernel in list(vars(module).items()):
            if name.startswith("_") and hasattr(kernel, "__getitem__") and hasattr(kernel, "fn"):
                monkeypatch.setattr(module, name, Recorder(kernel, grids))
    everything(3, 8)
    assert len(grids) == 4
    assert [len(grid) for grid in grids] == [1] * 4


@pytest.mark.skipif(DEVICE.type == "cpu", reason="a million programs take the interpreter too long")
def test_more_pictures_and_tiles_than_a_grids_other_axes_take():
    everything(65_536, 8, channels=1)
    everything(65_535 // 3 + 1, 8)
