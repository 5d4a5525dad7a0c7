"""Denoiser from Model, Combine Denoisers."""

from __future__ import annotations

from ..methods.ensemble import MODES, combine
from .host_model import ModelDenoiser


class DenoiserFromModel:
    DESCRIPTION = (
        "Uses the MODEL and VAE already in the graph to protect and to purify, without a second copy of the weights; "
        "LoRAs on the MODEL act. Written for image models in general, checked so far with Stable Diffusion 1.5's "
        "layout on a CPU."
    )
    CATEGORY = "AntiPure"
    EXPERIMENTAL = True
    FUNCTION = "build"
    RETURN_TYPES = ("DENOISER",)
    RETURN_NAMES = ("denoiser",)
    OUTPUT_TOOLTIPS = ("The latent denoiser, for the nodes of this pack.",)
    SEARCH_ALIASES = ["stable diffusion", "sdxl", "flux", "latent diffusion", "vae", "denoiser"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "An image diffusion model; not an inpainting or video one."}),
                "vae": ("VAE", {"tooltip": "The VAE that belongs to the MODEL."}),
                "conditioning": (
                    "CONDITIONING",
                    {
                        "tooltip": "Text from the MODEL's own CLIP. An empty text is the unprejudiced choice; a "
                        "description of the picture brings the model closer to it."
                    },
                ),
            }
        }

    def build(self, model, vae, conditioning) -> tuple:
        return (ModelDenoiser(model, vae, conditioning),)


class CombineDenoisers:
    DESCRIPTION = (
        "Protects against two denoisers at once, for example a pixel DDPM and a Stable Diffusion model. Chain several "
        "of these nodes for more. For AntiPure Protect only."
    )
    CATEGORY = "AntiPure"
    EXPERIMENTAL = True
    FUNCTION = "build"
    RETURN_TYPES = ("DENOISER",)
    RETURN_NAMES = ("denoiser",)
    OUTPUT_TOOLTIPS = ("Both denoisers, for the denoiser input of AntiPure Protect.",)
    SEARCH_ALIASES = ["ensemble", "combine", "transferability", "several models"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "first": ("DENOISER", {"tooltip": "One denoiser, or several combined."}),
                "second": ("DENOISER", {"tooltip": "Another one."}),
                "mode": (
                    list(MODES),
                    {
                        "default": "mean",
                        "tooltip": "mean: the average of their losses. worst: in every step the one that is "
                        "disturbed least; costs a forward of each more.",
                    },
                ),
            }
        }

    def build(self, first, second, mode) -> tuple:
        return (combine(first, second, mode),)
