"""The kernels' torch references against numpy, scipy and torchmetrics; how they are dispatched; Triton against them.

The DCT kernels have `test_frequency.py`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.kernels import dispatch
from antipure.kernels.ascent import ascend
from antipure.kernels.noising import add_noise
from antipure.kernels.ssim import ssim_terms
from antipure.kernels.tiles import average_tiles, cut
from antipure.methods.pictures import grid_positions

PRECISIONS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


# --- ascent


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 17, 31)])
@pytest.mark.parametrize("size", [0.1, 1.0, 9.6])
def test_ascend_is_the_projected_sign_step_bit_for_bit(shape, size):
    rng = np.random.default_rng(0)
    values = (255 * rng.random(shape)).astype(np.float32)
    direction = rng.standard_normal(shape).astype(np.float32)
    direction[..., ::3] = 0
    allowed = (8 * rng.random((shape[0], 1, *shape[2:])).round()).astype(np.float32)
    lower, upper = np.maximum(values - allowed, 0), np.minimum(values + allowed, 255)
    expected = np.minimum(np.maximum(values + np.float32(size) * np.sign(direction), lower), upper)
    mine = torch.from_numpy(values.copy())
    result = ascend(mine, torch.from_numpy(direction), size, torch.from_numpy(lower), torch.from_numpy(upper))
    assert result is mine
    np.testing.assert_array_equal(result.numpy(), expected)
    still = np.broadcast_to(allowed == 0, shape)
    np.testing.assert_array_equal(result.numpy()[still], values[still])


def test_ascend_refuses_shapes_that_differ():
    x = torch.zeros(1, 3, 4, 5)
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 5\)"):
        ascend(x, x, 1.0, x[:, :1], x)


# --- noising


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("abar", [0.9999, [0.9999, 0.5, 0.0]])
def test_add_noise_is_ddpms_forward_process(abar, dtype):
    x0, eps = randn(3, 3, 7, 5, dtype=dtype), randn(3, 3, 7, 5, seed=1, dtype=dtype)
    result = add_noise(x0, eps, torch.tensor(abar, dtype=torch.float64))
    a = np.reshape(abar, (-1, 1, 1, 1))
    expected = np.sqrt(a) * x0.double().numpy() + np.sqrt(1 - a) * eps.double().numpy()
    assert result.dtype == dtype
    np.testing.assert_allclose(result.double().numpy(), expected, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_first_timesteps_noise_survives_half_precision(dtype):
    eps = randn(1, 3, 16, 16, dtype=dtype)
    result = add_noise(torch.zeros_like(eps), eps, torch.tensor([0.9999]))
    assert result.float().std().item() == pytest.approx(0.01 * eps.float().std().item(), rel=0.01)


def test_add_noise_gradients_hold_against_finite_differences():
    x0, eps = randn(2, 3, 3, 2).requires_grad_(), randn(2, 3, 3, 2, seed=1).requires_grad_()
    abar = torch.tensor([0.98, 0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, e: add_noise(x, e, abar), (x0, eps))
    assert torch.autograd.gradcheck(lambda x: add_noise(x, eps.detach(), abar[1]), (x0,))


def test_add_noise_refuses_noise_of_another_shape():
    with pytest.raises(ValueError, match="one shape"):
        add_noise(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.tensor(0.5))


# --- tiles


def numpy_cut(x: np.ndarray, positions: list[tuple[int, int]], tile: int, corners: bool) -> np.ndarray:
    pieces = [x[0, :, y : y + tile, z : z + tile] for y, z in positions]
    if corners:
        near, far = tile // 2, tile - tile // 2
        rows = np.r_[0:near, x.shape[-2] - far : x.shape[-2]]
        columns = np.r_[0:near, x.shape[-1] - far : x.shape[-1]]
        pieces.append(x[0][:, rows][:, :, columns])
    return np.stack(pieces)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize(("tile", "height", "width"), [(1, 1, 1), (8, 8, 8), (8, 20, 31), (7, 20, 9), (5, 5, 13)])
def test_cut_takes_tiles_in_order_and_the_corners_last(tile, height, width, corners, dtype):
    x = randn(1, 3, height, width, dtype=dtype)
    positions = [(height - tile, 0), (0, width - tile), ((height - tile) // 2, (width - tile) // 3)]
    expected = numpy_cut(x.double().numpy(), positions, tile, corners)
    result = cut(x, positions, tile, corners=corners)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result.double().numpy(), expected)


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("tile", [4, 5])
def test_cut_has_the_gradient_of_slices(tile, corners):
    x = randn(1, 2, 9, 12).requires_grad_()
    positions = [(0, 0), (2, 3), (3, 3), (9 - tile, 12 - tile)]
    result = cut(x, positions, tile, corners=corners)
    upstream = randn(*result.shape, seed=1)
    (gradient,) = torch.autograd.grad((result * upstream).sum(), x)
    expected = np.zeros(x.shape)
    places = numpy_cut(np.arange(x.numel()).reshape(x.shape), positions, tile, corners)
    np.add.at(expected.reshape(-1), places, upstream.numpy())
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-14)
    assert torch.autograd.gradcheck(lambda y: cut(y, positions, tile, corners=corners), (x,))


def test_cut_adds_to_a_gradient_that_is_there():
    x = randn(1, 2, 9, 12).requires_grad_()
    batches = [[(0, 0), (2, 3)], [(3, 3), (5, 8), (5, 8)]]
    (expected,) = torch.autograd.grad(cut(x, sum(batches, []), 4).square().sum(), x)
    x.grad = before = randn(1, 2, 9, 12, seed=1)
    start = before.clone()
    for positions in batches:
        cut(x, positions, 4, gradient=x.grad).square().sum().backward()
    assert x.grad is before, "added in place"
    torch.testing.assert_close(x.grad, start + expected)
    for wrong in (x.grad[..., 1:], x.grad[:, :1]):
        with pytest.raises(ValueError, match="cannot take in tiles"):
            cut(x, batches[0], 4, gradient=wrong)
    with pytest.raises(ValueError, match="cannot take in tiles"):
        cut(x, batches[0], 4, corners=True, gradient=x.grad)


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize(("tile", "height", "width"), [(8, 8, 8), (8, 20, 31), (7, 20, 9), (16, 40, 16)])
def test_average_tiles_is_the_mean_of_whatever_lies_on_a_pixel(tile, height, width, corners):
    positions = grid_positions(height, width, tile, tile // 2)
    pieces = randn(len(positions) + corners, 3, tile, tile)
    places = numpy_cut(np.arange(3 * height * width).reshape(1, 3, height, width), positions, tile, corners)
    total, count = np.zeros(3 * height * width), np.zeros(3 * height * width)
    np.add.at(total, places, pieces.numpy())
    np.add.at(count, places, 1)
    result = average_tiles(pieces, positions, height, width, corners=corners)
    assert result.shape == (1, 3, height, width)
    np.testing.assert_allclose(result.numpy().reshape(-1), total / count, atol=1e-14)


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_average_tiles_puts_together_what_cut_took_apart(corners, dtype):
    x = randn(1, 3, 21, 34, dtype=dtype)
    positions = grid_positions(21, 34, 9, 4)
    tiles = cut(x, positions, 9, corners=corners)
    result = average_tiles(tiles, positions, 21, 34, corners=corners)
    torch.testing.assert_close(result, x, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_tiles_outside_of_the_picture_are_refused():
    x = torch.zeros(1, 3, 10, 12)
    for position in ((3, 0), (0, 5), (-1, 0)):
        with pytest.raises(ValueError, match="not inside a 10x12 picture"):
            cut(x, [position], 8)
    with pytest.raises(ValueError, match="no corners for a 11-px tile"):
        cut(x, [], 11, corners=True)
    with pytest.raises(ValueError, match="1 tiles for 1 positions and 1"):
        average_tiles(torch.zeros(1, 3, 8, 8), [(0, 0)], 10, 12, corners=True)


# --- ssim


@pytest.mark.parametrize("noise", [0.01, 0.3])
@pytest.mark.parametrize("shape", [(1, 3, 11, 11), (2, 3, 33, 24), (1, 1, 12, 70)])
def test_ssim_terms_are_torchmetrics(shape, noise):
    from torchmetrics.functional.image import structural_similarity_index_measure

    a = randn(*shape).sigmoid()
    b = (a + noise * randn(*shape, seed=1)).clamp(0, 1)
    expected = structural_similarity_index_measure(
        b, a, sigma=1.5, data_range=1.0, reduction="none", return_contrast_sensitivity=True
    )
    for mine, theirs in zip(ssim_terms(a, b), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=0)
    for mine, theirs in zip(ssim_terms(a.float(), b.float()), expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ssim_terms_count_in_float32(dtype):
    a = randn(2, 3, 20, 17).sigmoid().to(dtype)
    b = (a + 0.1 * randn(2, 3, 20, 17, seed=1).to(dtype)).clamp(0, 1)
    for mine, exact in zip(ssim_terms(a, b), ssim_terms(a.double(), b.double()), strict=True):
        torch.testing.assert_close(mine.double(), exact, atol=2e-6, rtol=0)


def test_ssim_gradients_hold_against_finite_differences():
    a, b = randn(1, 1, 11, 12).sigmoid(), randn(1, 1, 11, 12, seed=1).sigmoid().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: ssim_terms(a, y), (b,))


def test_ssim_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="one shape"):
        ssim_terms(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="5x16 picture is smaller"):
        ssim_terms(torch.zeros(1, 3, 5, 16), torch.zeros(1, 3, 5, 16))
    assert ssim_terms(torch.zeros(1, 3, 6, 16), torch.zeros(1, 3, 6, 16))[1].isnan().all(), "no window lies inside"


# --- dispatch


@pytest.fixture
def fast(monkeypatch):
    """A module standing in for Triton's, on a device said to be capable; its `double` notes its calls."""
    module = types.ModuleType("triton_fake")
    module.calls, module.error = 0, None

    def double(x: torch.Tensor) -> torch.Tensor:
        module.calls += 1
        if module.error is not None:
            raise module.error
        return 2 * x

    module.double = double
    monkeypatch.setitem(sys.modules, f"{dispatch.__package__}.triton_fake", module)
    monkeypatch.setattr(dispatch, "capable", lambda device: True)
    monkeypatch.setattr(dispatch, "_failed", set())
    return module


def reference(x: torch.Tensor) -> torch.Tensor:
    return 2 * x + 0.5


def test_the_fast_way_is_taken_where_it_can_be(fast):
    x = torch.ones(3)
    assert dispatch.run("fake.double", reference, x).tolist() == [2, 2, 2]
    for other in (x.double(), x.int(), x[:0], x.clone().requires_grad_()):
        assert torch.equal(dispatch.run("fake.double", reference, other), reference(other))
    with torch.no_grad():
        dispatch.run("fake.double", reference, x.clone().requires_grad_())
    assert fast.calls == 2


def test_a_kernel_that_fails_is_reported_once_and_replaced(fast, caplog):
    fast.error = RuntimeError("no compiler")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert dispatch.run("fake.double", reference, torch.ones(1)).item() == 2.5
    assert fast.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "Triton cannot run fake.double here (RuntimeError: no compiler); torch does it from now on."
    ]


class AcceleratorError(RuntimeError):
    error_code = 2  # as torch.AcceleratorError has it when the driver is out of memory


FULL = [torch.cuda.OutOfMemoryError(), AcceleratorError(), MemoryError()]
SAID = ["Triton Error [CUDA]: out of memory", "CUDA error: out of memory"]


@pytest.mark.parametrize("error", [*FULL, *map(RuntimeError, SAID)], ids=repr)
def test_running_out_of_memory_is_no_failure_of_the_kernel(fast, caplog, error):
    fast.error = error
    with pytest.raises(type(error)):
        dispatch.run("fake.double", reference, torch.ones(1))
    fast.error = None
    assert dispatch.run("fake.double", reference, torch.ones(1)).item() == 2
    assert not caplog.records


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"cpu": False, "cuda": True}),
        ({"ANTIPURE_TRITON": "1"}, {"cpu": False, "cuda": True}),
        ({"TRITON_INTERPRET": "1"}, {"cpu": False, "cuda": True}),
        ({"ANTIPURE_TRITON": "1", "TRITON_INTERPRET": "1"}, {"cpu": True, "cuda": True}),
        ({"ANTIPURE_TRITON": "0", "TRITON_INTERPRET": "1"}, {"cpu": False, "cuda": False}),
    ],
)
def test_where_triton_is_used(monkeypatch, variables, expected):
    for name in ("ANTIPURE_TRITON", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dispatch, "_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    assert {kind: dispatch.capable(torch.device(kind)) for kind in expected} == expected
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert not dispatch.capable(torch.device("cuda")), "too old a GPU"
    monkeypatch.setattr(dispatch, "_installed", lambda: False)
    assert not dispatch.capable(torch.device("cpu"))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_tritons_kernels_give_what_the_references_give():
    environment = dict(os.environ)
    environment.pop("ANTIPURE_TRITON", None)
    if not torch.cuda.is_available():
        environment |= {"ANTIPURE_TRITON": "1", "TRITON_INTERPRET": "1"}
    checks = Path(__file__).with_name("triton_checks.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, cwd=checks.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
