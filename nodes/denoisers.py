"""Load Pixel Denoiser."""

from __future__ import annotations

from functools import partial, reduce

from ..methods.attacks.ensemble import combine
from ..methods.diffusion.checkpoints import DTYPES, load_denoiser
from ..methods.gradients.compilation import MODES, OFF
from . import host, inputs, model_folders
from .model_folders import BUNDLED, BUNDLED_PAIR


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
                _names(),
                "'bundled' is the 64-px model shipped with the pack. 'bundled_pair' is that and its sibling "
                "'bundled_held_out' together, for AntiPure Protect: what holds against two holds better against a "
                "third. 'bundled_judge', of another family and other pictures, is there to measure with. Put others "
                "into models/antipure: an ADM checkpoint (.pt, .safetensors) or a diffusers folder.",
                BUNDLED,
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
        return model_folders.model_state("denoisers", BUNDLED if denoiser == BUNDLED_PAIR else denoiser)

    def load(self, denoiser: str, precision: str, compile: str = OFF) -> tuple:
        paths = model_folders.find_denoisers(denoiser)
        loaded = [host.manage(load_denoiser(path, precision=precision, compile=compile)) for path in paths]
        return (reduce(partial(combine, mode="mean"), loaded),)


def _names() -> list[str]:
    """What can be loaded: the pair beside the one it begins with."""
    found = model_folders.list_models("denoisers")
    return [*found[:1], BUNDLED_PAIR, *found[1:]]
