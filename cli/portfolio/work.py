"""One picture's work, wherever it is done: by this process, by one of several, or by an actor of a cluster.

A worker gives back what the files are to hold; whoever started it writes them. So a worker that dies leaves nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import socket
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...methods.errors import AntiPureError
from ...methods.files import reason
from ...methods.memory import is_out_of_memory, out_of_memory
from ...methods.metrics import image as metrics
from ...methods.pictures import from_uint8
from ...nodes import host
from .. import report
from ..core_nodes import SaveImage
from ..credits import Credits, read_credits
from ..executor import NODES, Executor
from ..graph import inputs_of, is_link
from ..pictures import Source, read_picture
from ..result import Result
from ..terminal import one_line
from . import places
from .models import sums_of_models
from .plan import Job

FRAME = "_{:05}"  # between name and ending, where a file holds several frames


@dataclass(frozen=True)
class Setup:
    """What all pictures of a run have in common. settings: the command's own, by name. threads: of torch, None leaves
    them as they are. keep_exif: whether all EXIF and XMP data go on, not the creator's alone. models: their checksums
    by name, where workers may be on machines that hold others.
    """

    command: str
    settings: dict[str, Any]
    threads: int | None = None
    keep_exif: bool = False
    server: str | None = None
    models: dict[str, str] | None = None


@dataclass
class Outcome:
    """What became of a job: files by ending and content, or an error's sentence. fatal: one for the whole run."""

    job: Job | None = None
    input_sha256: str | None = None  # None where there is none that can be read
    others_sha256: list[str | None] = field(default_factory=list)
    files: list[tuple[str, bytes]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    made_on: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    fatal: str | None = None


class _Collector(SaveImage):
    """SaveImage that hands the bytes on."""

    def __init__(self, folder: Path, source: Source | None, credits: Credits):
        super().__init__(folder, source)
        self.credits = credits

    def save(self, images: torch.Tensor, filename_prefix: str = "") -> dict:
        pngs = []
        for image, frame in zip(images, self._frames(images), strict=True):
            array = np.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(np.uint8)
            pngs.append(replace(frame, xmp=self.credits.xmp, exif=self.credits.exif).png(array))
        return {"ui": {"pngs": pngs}}


class Worker:
    """Does jobs, one after another; models stay loaded between them."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self._credits = Credits()
        self._executor = Executor(tempfile.gettempdir(), saver=self._saver)
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)

    def ready(self) -> str | None:
        """Load the models; a sentence where they cannot be, or where the settings cannot be right for any picture."""
        if self.setup.server:
            return None
        try:
            if self.setup.models not in (None, sums_of_models(self.setup.settings)):
                return f"The models on {socket.gethostname()} are not those here; copy the same files to all machines."
            prompt = self._prompt("picture.png", ("picture.png",) * 4)
            self._executor.check(prompt)
            alone = _without_pictures(prompt)
            if alone:
                self._executor.run(alone)
        except Exception as error:
            return self._sentence(error, "the model")
        return None

    def do(self, job: Job) -> Outcome:
        """All of a picture's work but writing it down. Raises nothing but what cancels."""
        began = time.monotonic()
        outcome = Outcome(job)
        try:
            self._do(job, outcome)
        except Exception as error:
            outcome.files, outcome.figures, outcome.notes = [], {}, []
            outcome.error = self._sentence(error, "this picture")
        finally:
            self._executor.forget_pictures()
        outcome.seconds = round(time.monotonic() - began, 3)
        outcome.made_on = self._made_on()
        return outcome

    def _do(self, job: Job, outcome: Outcome) -> None:
        sources = (job.source, *job.others)
        sums: list[str | None] = [None] * len(sources)
        with ExitStack() as stack:
            paths = []
            for i, source in enumerate(sources):
                content = places.read(source)
                sums[i] = hashlib.sha256(content).hexdigest()
                outcome.input_sha256, outcome.others_sha256 = sums[0], sums[1:]
                paths.append(stack.enter_context(places.at_hand(source, content)))
            states = [_state(path) for path in paths]
            try:
                self._run(paths[0], tuple(paths[1:]), outcome)
            except AntiPureError as error:  # in which a picture from an address has the name of its copy
                message = str(error)
                for path, source in zip(paths, sources, strict=True):
                    message = message.replace(str(path), source)
                raise AntiPureError(message) from error
            if [_state(path) for path in paths] != states:
                raise AntiPureError(f"{one_line(job.source)} changed while it was worked on; run the command again.")

    def _run(self, picture: Path, others: tuple[Path, ...], outcome: Outcome) -> None:
        prompt = self._prompt(str(picture), tuple(map(str, others)))
        for node in prompt.values():
            if node["class_type"] == "SaveImage":
                node["inputs"]["filename_prefix"] = "picture"
        if self.setup.command in ("protect", "purify"):
            self._credits = read_credits(picture, everything=self.setup.keep_exif)
            outcome.notes += self._credits.notes
        with tempfile.TemporaryDirectory() if self.setup.server else nullcontext() as folder:
            if folder is None:
                result = self._executor.run(prompt)
                pngs = [png for shown in result.ui.values() for png in shown.get("pngs", [])]
            else:
                from ..server import run_on_server

                result = run_on_server(self.setup.server or "", prompt, Path(folder))
                pngs = [Path(file).read_bytes() for files in result.files.values() for file in files]
        outcome.notes += [note for note in result.notes if note not in outcome.notes]
        _FINISH[self.setup.command](outcome, result, picture, pngs)

    def _prompt(self, picture: str, others: tuple[str, ...]) -> dict:
        from .. import main

        args = Namespace(**self.setup.settings, picture=picture, reference=picture, protected=list(others))
        args.image = others[0] if others else picture
        return main.prompt_of(self.setup.command, args)

    def _saver(self, folder: Path, source: Source | None) -> SaveImage:
        return _Collector(folder, source, self._credits)

    def _sentence(self, error: Exception, purpose: str) -> str:
        if is_out_of_memory(error):
            error = out_of_memory(error, purpose, "take a smaller picture or model, or fewer workers")
        if isinstance(error, AntiPureError):
            return one_line(error, 2000)
        return one_line(f"It failed for a reason nobody foresaw ({type(error).__name__}: {reason(error)}); report it.")

    def _made_on(self) -> dict[str, Any]:
        if self.setup.server:
            return {"server": self.setup.server}
        return {
            "torch": str(torch.__version__),
            "device": host.device().type,
            "threads": torch.get_num_threads(),
            "processor": platform.machine(),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
        }


def _protected(outcome: Outcome, result: Result, picture: Path, pngs: list[bytes]) -> None:
    endings = [""] if len(pngs) == 1 else [FRAME.format(number) for number in range(1, len(pngs) + 1)]
    outcome.files = [(f"{ending}.png", png) for ending, png in zip(endings, pngs, strict=True)]
    before = from_uint8(read_picture(picture)[0])
    after = torch.cat([from_uint8(_pixels(png)) for png in pngs])
    if before.shape != after.shape:
        raise AntiPureError(f"{one_line(picture)} came back in another size or number than it was sent; report it.")
    outcome.figures = {
        "width": before.shape[3],
        "height": before.shape[2],
        "frames": len(before),
        "levels": float(metrics.linf_levels(before, after).max()),
        "psnr": _finite(metrics.psnr(before, after).min()),
        "ssim": round(float(metrics.ssim(before, after).min()), 6),
    }


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)[..., :3]


def _measured(outcome: Outcome, result: Result, picture: Path, pngs: list[bytes]) -> None:
    for node in ("3", "101"):
        if node in result.ui:
            outcome.figures |= result.shown(node, "metrics", dict)


def _reported(outcome: Outcome, result: Result, picture: Path, pngs: list[bytes]) -> None:
    found = result.shown(report.REPORT, "report", dict)
    outcome.figures = {"verdict": result.shown(report.REPORT, "text", str)}
    data = f"{json.dumps(found, indent=1, ensure_ascii=False)}\n".encode(errors="backslashreplace")
    tables = result.shown(report.REPORT, "markdown", str).encode(errors="backslashreplace")
    outcome.files = [(".png", pngs[0]), (".json", data), (".md", tables)]


_FINISH: dict[str, Callable[[Outcome, Result, Path, list[bytes]], None]] = {
    "protect": _protected,
    "purify": _protected,
    "measure": _measured,
    "report": _reported,
}


def _finite(value: torch.Tensor) -> float | None:
    """For JSON, which knows no infinity: None for equal pictures."""
    return round(float(value), 4) if torch.isfinite(value) else None


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _without_pictures(prompt: dict) -> dict:
    """The nodes that no picture is part of: loaders of models."""
    touched = {node_id for node_id, node in prompt.items() if node["class_type"] == "LoadImage"}
    while True:
        more = {
            node_id
            for node_id, node in prompt.items()
            if node_id not in touched
            and any(is_link(value) and value[0] in touched for value in inputs_of(node).values())
        }
        if not more:
            break
        touched |= more
    return {i: node for i, node in prompt.items() if i not in touched and node["class_type"] in NODES}
