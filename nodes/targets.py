"""VAE Targets: what AntiPure Protect may be made against beside denoisers."""

from __future__ import annotations

from ..methods.attacks.ensemble import CombinedDenoiser, VaeTargets
from ..methods.errors import AntiPureError
from . import inputs
from .latent_autoencoder import as_autoencoder

TO_PURIFY = "are for protecting; wire one of them here to purify"


class VaeTargetsNode:
    DESCRIPTION = (
        "Protects against VAEs alone, without a diffusion model: who trains on a picture sees only what a VAE makes of "
        "it. Any VAE for pictures that ComfyUI loads, TAESD's small ones included, without a second copy of the "
        "weights. For AntiPure Protect and Combine Denoisers."
    )
    CATEGORY = "AntiPure"
    EXPERIMENTAL = True
    FUNCTION = "build"
    RETURN_TYPES = ("DENOISER",)
    RETURN_NAMES = ("denoiser",)
    OUTPUT_TOOLTIPS = ("The VAEs, for the denoiser input of AntiPure Protect or for Combine Denoisers.",)
    SEARCH_ALIASES = ["vae", "taesd", "latent", "photoguard", "mist", "trainer", "encoder attack"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            vae=inputs.wire("VAE", "A VAE that pictures are trained through: Load VAE's, or a checkpoint's."),
            optional={
                name: inputs.wire("VAE", "Another one. What moves several moves more of those that are not wired.")
                for name in ("vae_2", "vae_3", "vae_4")
            },
        )

    def build(self, vae, vae_2=None, vae_3=None, vae_4=None) -> tuple:
        wired = {id(one): one for one in (vae, vae_2, vae_3, vae_4) if one is not None}  # each counts once
        return (VaeTargets(tuple(as_autoencoder(one) for one in wired.values())),)


def check_single(target, of_several: str) -> None:
    """Raise `AntiPureError` unless this is one diffusion model, or None. of_several: what holds of combined ones."""
    if isinstance(target, CombinedDenoiser):
        raise AntiPureError(f"Combined denoisers {of_several}.")
    if isinstance(target, VaeTargets):
        raise AntiPureError(
            "VAE Targets is made of VAEs alone; wire Load Pixel Denoiser or Denoiser from Model here instead."
        )
