"""Load Pixel Denoiser."""

from __future__ import annotations

from ..methods.diffusion.checkpoints import DTYPES, load_denoiser
from ..methods.gradients.compilation import MODES, OFF
from . import host, inputs, model_folders


class LoadDenoiser:
    DESCRIPTION = (
        "Loads a pixel diffusion model for AntiPure Protect and Diffusion Purify: the small ones that ship with this "
        "pack, or a file (OpenAI's ADM layout) or diffusers folder in models/antipure."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "load"
    RETURN_TYPES = ("DENOISER",)
    RETURN_NAMES = ("denoiser",)
    OUTPUT_TOOLTIPS = ("The pixel denoiser, for the nodes of this pack.",)
    SEARCH_ALIASES = ["ddpm", "guided diffusion", "adm", "pixel diffusion model"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            denoiser=inputs.file(
                model_folders.list_models("denoisers"),
                "'bundled' is the 64-px model shipped with the pack. 'bundled_held_out', a sibling of it, and "
                "'bundled_judge', of another family and other pictures, are there to measure with. Put others into "
                "models/antipure: an ADM checkpoint (.pt, .safetensors) or a diffusers folder.",
                model_folders.BUNDLED,
            ),
            precision=inputs.choice(
                DTYPES,
                "fp32",
                "Arithmetic inside the network. bf16 is faster where the hardware knows it and changes the result "
                "slightly; losses stay in fp32.",
            ),
            optional={
                "compile": inputs.choice(
                    MODES,
                    OFF,
                    "torch.compile: the first run takes longer, up to minutes. 'CUDA graphs' compiles, too, and "
                    "replays what a GPU was told to do. For GPUs. Where compiling fails or gives other results "
                    "the model runs as it is.",
                ),
            },
            advanced=("precision", "compile"),
        )

    @classmethod
    def IS_CHANGED(cls, denoiser=None, **_) -> str:
        return model_folders.model_state("denoisers", denoiser)

    def load(self, denoiser: str, precision: str, compile: str = OFF) -> tuple:
        path = model_folders.find_model("denoisers", denoiser)
        return (host.manage(load_denoiser(path, precision=precision, compile=compile)),)
