"""The benchmarks' pictures and their halves, as `pictures/sets.json` has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from antipure.methods.pictures import from_uint8
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
FILE = Path(__file__).with_name("pictures") / "sets.json"
HALVES = ("development", "held_out")


@dataclass(frozen=True)
class Picture:
    """One picture of the sets.

    half: of `HALVES`. kind: photograph, flat illustration, line art, painting or logo. whole: 512 to 768 px instead of
    a 128-px crop. why: what it is there for. judge_key: its key in `tools.judge_data`, "" where it is not from there.
    """

    name: str
    file: str
    half: str
    kind: str
    whole: bool
    why: str
    source: str
    licence: str
    judge_key: str = ""

    @property
    def path(self) -> Path:
        return ROOT / self.file

    def read(self) -> Tensor:
        """1×3×H×W in 0..1; what is transparent lies on white, as web pages show it."""
        with Image.open(self.path) as picture:
            if picture.mode in ("RGBA", "LA", "P"):
                picture = picture.convert("RGBA")
                paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
                picture = Image.alpha_composite(paper, picture)
            return from_uint8(np.asarray(picture.convert("RGB")))


def load() -> dict[str, Picture]:
    """All pictures by name, in the file's order."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {entry["name"]: Picture(**entry) for entry in content["pictures"]}


def names(half: str, *, whole: bool = False) -> tuple[str, ...]:
    """The names of one half: its crops, or its whole pictures."""
    return tuple(p.name for p in load().values() if p.half == half and p.whole == whole)
