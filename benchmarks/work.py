"""What long benchmarks share: finished stages on disk, progress with the time left, confidence intervals."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from statistics import stdev

import numpy as np
import torch
from antipure.methods.diffusion.checkpoints import BUNDLED, BUNDLED_HELD_OUT, BUNDLED_JUDGE, load_denoiser
from antipure.methods.diffusion.pixel import PixelDenoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.files import replacing
from antipure.methods.metrics.encoders import file_encoder
from antipure.methods.metrics.lpips import AlexNet, Lpips
from antipure.methods.pictures import from_uint8, to_uint8
from PIL import Image
from scipy.stats import t as student
from torch import Tensor

PICTURES = Path(__file__).parent / "pictures"
# What protections are made against, its sibling, and one of another family that no protection is made against.
DENOISERS = {"bundled": BUNDLED, "held_out": BUNDLED_HELD_OUT, "judge": BUNDLED_JUDGE}


@cache
def load_denoisers(precision: str = "fp32") -> dict[str, PixelDenoiser]:
    """`DENOISERS`, once a process: long benchmarks send every task there by itself."""
    return {name: load_denoiser(path, precision=precision) for name, path in DENOISERS.items()}


def read(path: Path) -> Tensor:
    """1×3×H×W in 0..1."""
    return from_uint8(np.asarray(Image.open(path).convert("RGB")))


def write(path: Path, content: Tensor | dict) -> None:
    """A picture as PNG, or results as JSON: whole or not at all."""
    with replacing(path) as temporary:
        if isinstance(content, dict):
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        else:
            Image.fromarray(to_uint8(content)[0]).save(temporary, format="PNG")


def kept(path: Path, make: Callable[[], Tensor | dict]) -> Path:
    """The file of a finished stage; made first where it is not there."""
    if not path.is_file():
        write(path, make())
    return path


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def chosen(settings: object) -> tuple | None:
    """What a dataclass of settings says that its defaults do not: a key that new fields leave as it is."""
    if not is_dataclass(settings):
        return None
    values = ((field, getattr(settings, field.name)) for field in fields(settings))
    return tuple((field.name, value) for field, value in values if value != field.default)


def picture_digest(picture: Tensor) -> str:
    return hashlib.sha256((picture * 255).round().byte().numpy().tobytes()).hexdigest()[:12]


class Clock:
    """Progress lines with the time left, from the mean time of each kind of stage."""

    def __init__(self, planned: Counter):
        self.planned, self.times, self.began = planned, defaultdict(list), time.time()

    def done(self, kind: str, name: str, seconds: float | None) -> None:
        """One stage is done; seconds is None when it was there already."""
        self.planned[kind] -= 1
        if seconds is None:
            return
        self.times[kind].append(seconds)
        known = [t for times in self.times.values() for t in times]
        mean = {k: sum(v) / len(v) for k, v in self.times.items()}
        left = sum(max(n, 0) * mean.get(k, sum(known) / len(known)) for k, n in self.planned.items())
        spent = (time.time() - self.began) / 60
        print(f"{spent:6.1f} min, about {left / 60:.0f} left: {kind} {name}, {seconds:.1f} s", flush=True)


def stage(clock: Clock, kind: str, name: str, path: Path, make: Callable[[], Tensor | dict]) -> Path:
    """`kept`, told to the clock."""
    there, began = path.is_file(), time.time()
    kept(path, make)
    clock.done(kind, name, None if there else time.time() - began)
    return path


def machine() -> str:
    """The processor's name, as far as the system tells, and torch's version and threads."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def half_width(values: list[float], confidence: float = 0.95) -> float:
    """Half of Student's confidence interval of the mean; nan for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(student.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def read_lpips(path: Path) -> Lpips:
    """LPIPS over torchvision's AlexNet in this file. Raises `AntiPureError` for a file of anything else."""
    encoder = file_encoder(path)
    if not isinstance(encoder.module, AlexNet):
        raise AntiPureError(f"{path} does not hold torchvision's AlexNet.")
    return Lpips(encoder.module)
