"""What all purifiers share: their settings' bounds."""

from __future__ import annotations

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
