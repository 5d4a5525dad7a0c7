"""Load Demo Model: a small latent diffusion model of ours as ComfyUI's own MODEL, VAE and CONDITIONING."""

from __future__ import annotations

from ..methods.customization import demo_model
from ..methods.errors import AntiPureError
from . import host, inputs

_MEANINGS = {
    "person": "Whom to draw: one of those it was trained on, or a stranger, whose name is free for Train LoRA.",
    "style": "How to draw: the style of the picture. 'painted' has hardly been trained.",
    "hair_colour": "The colour of the hair.",
    "haircut": "The cut of the hair.",
    "beard": "The beard, if any.",
    "glasses": "With glasses or without.",
    "hat": "With a hat or without.",
    "age": "How old the person looks.",
    "skin": "The colour of the skin.",
    "expression": "The look on the face.",
}


class LoadDemoModel:
    DESCRIPTION = (
        "Loads the small latent diffusion model of drawn portraits that ships with this pack, like a checkpoint: "
        "MODEL, VAE and, in place of texts, classes to choose from. For trying out every workflow on any machine, "
        "without a download; its pictures are small (128×128) and rough."
    )
    CATEGORY = "AntiPure"
    EXPERIMENTAL = True
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "VAE", "CONDITIONING", "CONDITIONING", "IMAGE", "STRING")
    RETURN_NAMES = ("model", "vae", "positive", "negative", "portraits", "classes")
    OUTPUT_TOOLTIPS = (
        "The diffusion model, in the layout of Stable Diffusion 3.",
        "The VAE that belongs to it, in the layout of TAESD.",
        "What was chosen, for KSampler, Train LoRA and Denoiser from Model.",
        "Nothing chosen: anybody in any style, for KSampler's negative input.",
        "Five drawn portraits of a person the model was not trained on, to protect and to train on.",
        "All classes it knows, as a text.",
    )
    SEARCH_ALIASES = ["demo", "checkpoint", "latent diffusion", "stable diffusion 3", "small model", "portraits"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        choices = {slot: inputs.choice(values, "any", _MEANINGS[slot]) for slot, values in demo_model.CLASSES.items()}
        person, style = choices.pop("person"), choices.pop("style")
        return inputs.declare(person=person, style=style, optional=choices, advanced=tuple(choices))

    def load(self, person: str, style: str, **details: str) -> tuple:
        if not host.inside_comfyui():
            raise AntiPureError("Load Demo Model gives ComfyUI's own MODEL and VAE; run the workflow in ComfyUI.")
        chosen = {"person": person, "style": style, **details}
        positive, negative = (
            [[made.context, {"pooled_output": made.pooled}]]
            for made in (demo_model.prompt(chosen), demo_model.prompt({}))
        )
        model = host.diffusion_model(demo_model.model_weights)
        vae = host.vae(demo_model.vae_weights)
        pictures = demo_model.portraits().movedim(1, -1).contiguous()
        return model, vae, positive, negative, pictures, demo_model.class_list()
