"""Diffusion purification: DiffPure (Nie et al., ICML 2022) and GrIDPure (Zhao et al., CVPR 2024).

With a latent denoiser both run in its latent space ("denoise this image"), between one encode and one decode.
Here to measure what a purifier leaves of a protection. Deterministic for a seed, on any device and however the
tiles are batched: every tile draws from its own stream.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError
from ..progress import Progress, silent
from .diffpure import diffpure
from .gridpure import gridpure
from .settings import check_purified
from .vae import vae_round_trip

METHODS = ("gridpure", "diffpure", "diffpure_resized", "vae")


def purify(
    method: str,
    picture: Tensor,
    denoiser: Denoiser,
    *,
    timestep: int,
    iterations: int,
    gamma: float = 0.1,
    seed: int = 0,
    progress: Progress = silent,
    substeps: int = 0,
) -> Tensor:
    """One of `METHODS`; settings that a method has no use for (gamma, the VAE's timestep) are ignored.

    Raises `AntiPureError` for bad pictures and settings, and where the denoiser's values are not finite.
    """
    if method not in METHODS:
        raise AntiPureError(f"There is no purifier '{method}'; choose one of {', '.join(METHODS)}.")
    settings: dict[str, Any] = {"timestep": timestep, "iterations": iterations, "seed": seed, "progress": progress}
    if method == "vae":
        pure = vae_round_trip(picture, denoiser, iterations=iterations, progress=progress)
    elif method == "gridpure":
        pure = gridpure(picture, denoiser, gamma=gamma, substeps=substeps, **settings)
    else:
        pure = diffpure(picture, denoiser, resize=method == "diffpure_resized", substeps=substeps, **settings)
    check_purified(pure)
    return pure
