"""The files of the demo latent model (bundled/demo): weights as ComfyUI's own classes take them, and its prompts.

Trained by `tools.train_latent_model`, which this file shares nothing with but the format: a transformer in Stable
Diffusion 3's layout in shards, an autoencoder in TAESD's, and tables of learned tokens that stand for a text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import AntiPureError
from ..files import BUNDLED_FOLDER, read_safetensors, reason
from ..pictures import from_uint8

FOLDER = BUNDLED_FOLDER / "demo"
SHARDS = 4  # each below 6 MB
SIDE = 128  # pixels of the portraits it was trained on
KNOWN, STRANGERS = 32, 4  # persons it was trained on by name; names that stand for anybody, free for customization
# What can be asked for, in the order of the tables: slot -> values. "any" leaves the slot open.
CLASSES: dict[str, tuple[str, ...]] = {
    "person": ("any", *(f"person {i}" for i in range(KNOWN)), *(f"stranger {i + 1}" for i in range(STRANGERS))),
    "style": ("any", "studio", "oil", "ink", "pastel", "flat", "watercolour", "painted"),
    "hair_colour": ("any", "black", "brown", "blond", "red", "grey", "white", "dyed"),
    "haircut": ("any", "bald", "cropped", "parted", "bob", "long", "curly", "bun"),
    "beard": ("any", "none", "stubble", "moustache", "beard"),
    "glasses": ("any", "no", "yes"),
    "hat": ("any", "no", "beret", "cap"),
    "age": ("any", "young", "middle", "old"),
    "skin": ("any", "pale", "light", "tan", "brown", "dark"),
    "expression": ("any", "calm", "smile", "stern", "surprised"),
}
_STORED = {"person": "who", "hair_colour": "hair colour"}  # slots that the tables name otherwise


class Prompt(NamedTuple):
    """context: 1×tokens×64, pooled: 1×64; what a text encoder of SD 3 would give."""

    context: Tensor
    pooled: Tensor


def _read(name: str, folder: Path) -> dict[str, Tensor]:
    path = folder / name
    if not path.is_file():
        raise AntiPureError(f"{path} is missing; install the pack again: nothing is downloaded in its place.")
    return read_safetensors(path)[0]


def model_weights(folder: Path = FOLDER) -> dict[str, Tensor]:
    """The transformer's state dict, fp16, joined from its shards. Raises `AntiPureError` where one is missing."""
    return {k: v for i in range(SHARDS) for k, v in _read(f"model-{i + 1}.safetensors", folder).items()}


def vae_weights(folder: Path = FOLDER) -> dict[str, Tensor]:
    """The autoencoder's state dict, as core's VAE takes it. Raises `AntiPureError` where the file is missing."""
    return _read("autoencoder.safetensors", folder)


def prompt(chosen: Mapping[str, str], folder: Path = FOLDER) -> Prompt:
    """What the model is told for these values of `CLASSES`; slots that are left out are "any".

    Raises `AntiPureError` for a slot or value that is not there, and where the tables do not fit.
    """
    for slot, value in chosen.items():
        if value not in CLASSES.get(slot, ()):
            known = ", ".join(CLASSES.get(slot, CLASSES))
            raise AntiPureError(f"The demo model knows no {slot} '{value}'; choose one of: {known}.")
    tables = _read("conditions.safetensors", folder)
    rows = {_STORED.get(slot, slot): values.index(chosen.get(slot, "any")) for slot, values in CLASSES.items()}
    try:
        tokens = [tables[f"context.{slot}"].float()[row] for slot, row in rows.items()]
        pooled = sum(tables[f"pooled.{slot}"].float()[row] for slot, row in rows.items()) / len(rows) ** 0.5
        context = torch.cat([torch.stack(tokens), tables["registers"].float()])
    except (KeyError, IndexError) as error:
        raise AntiPureError(
            f"{folder / 'conditions.safetensors'} belongs to another model ({reason(error)}); install the pack again."
        ) from error
    return Prompt(context[None], torch.as_tensor(pooled)[None])


def portraits(folder: Path = FOLDER) -> Tensor:
    """Five drawn portraits of one person the model was not trained on: 5×3×128×128 in 0..1."""
    path = folder / "portraits.png"
    if not path.is_file():
        raise AntiPureError(f"{path} is missing; install the pack again.")
    with Image.open(path) as sheet:
        strip = from_uint8(np.asarray(sheet.convert("RGB")))
    return torch.cat(strip.split(strip.shape[-2], -1))


def class_list() -> str:
    """One line per slot with its values."""
    return "\n".join(f"{slot}: {', '.join(values)}" for slot, values in CLASSES.items())
