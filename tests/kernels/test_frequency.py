"""The DCT kernels against scipy's DCT, patch by patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from antipure.kernels import frequency
from antipure.kernels.frequency import dct_matrix, high_frequency_energy, high_frequency_mean, patch_dct
from scipy.fft import dctn

# patch side, height, width: whole patches, cut-off patches, one patch, non-square
CASES = [(2, 5, 7), (4, 9, 16), (8, 8, 8), (8, 17, 31), (8, 64, 40), (16, 33, 50)]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Two random three-channel pictures in float64."""
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scipy_patches(x: torch.Tensor, size: int) -> np.ndarray:
    """B×C×rows×cols×size×size coefficients, one scipy transform per patch."""
    b, c, h, w = x.shape
    out = np.zeros((b, c, h // size, w // size, size, size))
    for index in np.ndindex(out.shape[:4]):
        i, j, row, col = index
        patch = x[i, j, row * size : (row + 1) * size, col * size : (col + 1) * size]
        out[index] = dctn(patch.numpy(), norm="ortho")
    return out


@pytest.mark.parametrize(("size", "height", "width"), CASES)
def test_patch_dct_is_scipys_dct_of_every_whole_patch(size, height, width):
    x = picture(height, width)
    expected = scipy_patches(x, size)
    np.testing.assert_allclose(patch_dct(x, size).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(patch_dct(x.float(), size).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 16, 64])
def test_dct_matrix_is_orthonormal(size):
    matrix = dct_matrix(size, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)


def test_callers_cannot_spoil_the_cached_matrix():
    dct_matrix(8, dtype=torch.float64).zero_()
    assert dct_matrix(8, dtype=torch.float64).abs().max() > 0


@pytest.mark.parametrize(("size", "height", "width"), CASES)
def test_high_frequency_mean_is_the_signed_mean_of_scipys_coefficients(size, height, width):
    x = picture(height, width)
    high = scipy_patches(x, size)[..., size // 2 :, size // 2 :]
    expected = high.sum((-2, -1)).mean((1, 2, 3)) * 4 / size**2
    np.testing.assert_allclose(high_frequency_mean(x, size).numpy(), expected, atol=1e-13)
    np.testing.assert_allclose(high_frequency_mean(x.float(), size).numpy(), expected, atol=1e-6)
    reference = patch_dct(x, size)[..., size // 2 :, size // 2 :].sum((-2, -1)).mean((1, 2, 3)) * 4 / size**2
    torch.testing.assert_close(high_frequency_mean(x, size), reference, atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize(("size", "height", "width"), CASES)
def test_closed_form_and_transform_have_the_same_gradient(size, height, width):
    x = picture(height, width).requires_grad_()
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    (closed,) = torch.autograd.grad((weights * high_frequency_mean(x, size)).sum(), x)
    plain = patch_dct(x, size)[..., size // 2 :, size // 2 :].sum((-2, -1)).mean((1, 2, 3)) * 4 / size**2
    (transform,) = torch.autograd.grad((weights * plain).sum(), x)
    assert closed.abs().max() > 0
    torch.testing.assert_close(closed, transform, atol=1e-14, rtol=1e-10)
    assert not closed[..., height // size * size :, :].any(), "cut-off rows must have no gradient"
    assert not closed[..., width // size * size :].any(), "cut-off columns must have no gradient"


def test_gradients_hold_against_finite_differences():
    x = picture(5, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: high_frequency_mean(y, 4), x)
    assert torch.autograd.gradcheck(lambda y: patch_dct(y, 4), x)
    assert torch.autograd.gradcheck(lambda y: high_frequency_energy(y, 4), x)


@pytest.mark.parametrize(("size", "height", "width"), CASES)
def test_high_frequency_energy_is_the_mean_square_of_scipys_high_coefficients(size, height, width):
    x = picture(height, width)
    coefficients = scipy_patches(x, size)
    expected = [
        np.mean([patches[..., m, n] ** 2 for m in range(size) for n in range(size) if max(m, n) >= size / 2])
        for patches in coefficients
    ]
    np.testing.assert_allclose(high_frequency_energy(x, size).numpy(), expected, rtol=1e-12)


def test_constant_pictures_have_no_high_frequencies():
    x = torch.full((1, 3, 16, 24), 0.7, dtype=torch.float64)
    assert high_frequency_energy(x).item() < 1e-28
    assert abs(high_frequency_mean(x).item()) < 1e-14


@pytest.mark.parametrize("function", [patch_dct, high_frequency_mean, high_frequency_energy])
def test_pictures_smaller_than_a_patch_are_refused(function):
    for shape in ((7, 8), (8, 7), (1, 1)):
        with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]} picture holds no 8x8 patch"):
            function(torch.zeros(1, 3, *shape), 8)


@pytest.mark.parametrize("function", [patch_dct, high_frequency_mean, high_frequency_energy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_pass_after_a_first_use_in_inference_mode(function, dtype):
    frequency._dct_matrix_cpu.cache_clear()
    with torch.inference_mode():
        function(picture(8, 8).to(dtype), 8)
    x = picture(8, 8).to(dtype).requires_grad_()
    function(x, 8).sum().backward()
    assert x.grad.abs().max() > 0
