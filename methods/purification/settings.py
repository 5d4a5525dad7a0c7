"""What all purifiers share: their settings' bounds, and that nothing but numbers comes out of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError


def check_purifier(denoiser: Denoiser, timestep: int, iterations: int, gamma: float = 0.0, substeps: int = 0) -> None:
    """Raise `AntiPureError` for settings that make no sense with this denoiser."""
    if not 0 <= substeps <= timestep:
        raise AntiPureError(
            f"substeps is {substeps}; it must lie in 1..{timestep}, which is the timestep, or be 0 for all of them."
        )
    if not 1 <= timestep <= denoiser.timesteps:
        raise AntiPureError(f"The timestep is {timestep}; it must lie in 1..{denoiser.timesteps} for this denoiser.")
    if iterations < 1:
        raise AntiPureError(f"The purifier is to run {iterations} iterations; at least 1 is needed.")
    if not 0 <= gamma < 1:
        raise AntiPureError(f"gamma is {gamma:g}; it must lie in 0..1, 1 excluded (1 would return the input).")


def nan_if_infinite(values: Tensor, source: Tensor) -> Tensor:
    """The values, NaN where their source is not finite: a clamp hides infinity, NaN reaches `check_purified`.

    Without looking at them, which would wait for a GPU.
    """
    return values + 0 * source


def check_purified(picture: Tensor) -> None:
    """Raise `AntiPureError` where a purifier's result is not finite: it would be saved as black."""
    if not torch.isfinite(picture).all():
        raise AntiPureError(
            "The denoiser gives NaN or infinite values for this picture, so nothing was purified; load it with "
            "precision fp32, or use another model."
        )
