"""Denoiser from Model, Combine Denoisers; Seed Training and Apply Trained LoRA around core's Train LoRA."""

from __future__ import annotations

import torch

from ..methods.attacks.ensemble import MODES, combine
from ..methods.errors import AntiPureError
from . import host, inputs
from .latent_denoiser import ModelDenoiser


class DenoiserFromModel:
    DESCRIPTION = (
        "Uses the MODEL and VAE already in the graph to protect and to purify, without a second copy of the "
        "weights; LoRAs on the MODEL act. Written for image models in general, checked so far with "
        "the layouts of Stable Diffusion 1.5 and SDXL and random weights."
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
        return inputs.declare(
            model=inputs.wire("MODEL", "An image diffusion model; not an inpainting or video one."),
            vae=inputs.wire("VAE", "The VAE that belongs to the MODEL."),
            conditioning=inputs.wire(
                "CONDITIONING",
                "Text from the MODEL's own CLIP. An empty text is the unprejudiced choice; a description of the "
                "picture brings the model closer to it.",
            ),
        )

    def build(self, model, vae, conditioning) -> tuple:
        return (ModelDenoiser(model, vae, conditioning),)


class CombineDenoisers:
    DESCRIPTION = (
        "Protects against two denoisers at once, for example a pixel DDPM and a Stable Diffusion model, or against a "
        "denoiser and VAE Targets. Chain several of these nodes for more. For AntiPure Protect only."
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
        return inputs.declare(
            first=inputs.wire("DENOISER", "One denoiser, several combined, or VAE Targets."),
            second=inputs.wire("DENOISER", "Another one. Each contributes the terms of the preset that it can."),
            mode=inputs.choice(
                MODES,
                "mean",
                "mean: the average of their losses. worst: in every step the one that is disturbed least; costs a "
                "forward of each more.",
            ),
        )

    def build(self, first, second, mode) -> tuple:
        return (combine(first, second, mode),)


class SeedTraining:
    """Train LoRA draws a LoRA's first weights from torch's global generator, which its own seed does not reach.

    The first thing it does with its MODEL is to clone it, and ComfyUI calls back on cloning.
    """

    DESCRIPTION = (
        "Makes ComfyUI's Train LoRA repeatable: its own seed does not cover the LoRA's first weights, which depend on "
        "whatever ran before. Two trainings on the MODEL of this node start from the same weights, so that only their "
        "pictures differ."
    )
    CATEGORY = "AntiPure"
    EXPERIMENTAL = True
    FUNCTION = "seed_training"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The MODEL for Train LoRA.",)
    SEARCH_ALIASES = ["train lora", "reproducible", "seed", "customization"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            model=inputs.wire("MODEL", "The MODEL to train a LoRA on."),
            seed=inputs.seed(
                "Of the LoRA's first weights. The order of pictures and the noise follow Train LoRA's own seed."
            ),
        )

    def seed_training(self, model, seed) -> tuple:
        return (host.seed_clones(model, seed),)


class ApplyTrainedLora:
    """Core's Load LoRA Model, for any version: Train LoRA gives the LoRA second up to 0.8 and first in 0.33."""

    DESCRIPTION = (
        "Applies what ComfyUI's Train LoRA has just trained to a MODEL. Wire its first two outputs here: which of them "
        "is the LoRA depends on ComfyUI's version, and this node finds it."
    )
    CATEGORY = "AntiPure"
    EXPERIMENTAL = True
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The MODEL with the LoRA on it.",)
    SEARCH_ALIASES = ["load lora model", "lora", "train lora", "customization", "dreambooth"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            model=inputs.wire("MODEL", "The MODEL that Train LoRA was given."),
            output_1=inputs.wire("LORA_MODEL,MODEL", "The first output of Train LoRA."),
            output_2=inputs.wire("LOSS_MAP,LORA_MODEL", "The second output of Train LoRA."),
            strength=inputs.number(1.0, -100.0, 100.0, 0.01, "How much of the LoRA is applied: 1 as trained, 0 none."),
        )

    def apply(self, model, output_1, output_2, strength) -> tuple:
        for given in (output_1, output_2):
            if isinstance(given, dict) and given and all(isinstance(value, torch.Tensor) for value in given.values()):
                return (host.apply_lora(model, given, strength),)
        raise AntiPureError("Neither input holds a trained LoRA; wire the first two outputs of Train LoRA here.")
