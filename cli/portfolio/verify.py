"""`antipure verify`: whether a folder holds what its manifest says, within the budget, as the seed gives it again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...methods.errors import AntiPureError
from ...methods.figures.text_table import text_table
from ...methods.metrics import image as metrics
from ...methods.pictures import from_uint8
from ..pictures import read_picture
from ..terminal import one_line
from . import comfyui_outputs, places
from .inputs import ENDINGS, SHEET
from .manifest import NAME, Line, read_lines
from .models import sums_of_models
from .plan import Job, found_place, sha256
from .work import Setup, Worker

OK, BAD, UNKNOWN = "as it should be", "wrong", "could not be checked"
_CHECKS = ("checksum", "budget", "same seed again")
_MADE_ON = ("torch", "device", "threads", "processor")


@dataclass
class Verdict:
    """counts: of every check, by how it came out. problems: a sentence for each picture that is not as it should be.
    remarks: a sentence for what could not be checked. failed: pictures that failed in the run, so have no output."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in _CHECKS})
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failed: int = 0

    def add(self, check: str, outcome: str, sentence: str = "") -> None:
        self.counts[check][outcome] += 1
        if sentence:
            (self.problems if outcome == BAD else self.remarks).append(sentence)

    def text(self) -> str:
        """The table and the sentences."""
        head = ["check", OK, BAD, UNKNOWN]
        rows = [[name, *(str(found[kind]) for kind in (OK, BAD, UNKNOWN))] for name, found in self.counts.items()]
        failed = [f"{self.failed} pictures failed in the run and have no output."] if self.failed else []
        return "\n".join([text_table(head, rows), *failed, *dict.fromkeys(self.remarks), *self.problems])

    def as_json(self) -> dict[str, Any]:
        return {
            "checks": {name: dict(found) for name, found in self.counts.items()},
            "failed in the run": self.failed,
            "problems": self.problems,
            "remarks": list(dict.fromkeys(self.remarks)),
        }


def verify(folder: str, *, originals: str | None, manifest: Path | None, sample: int) -> Verdict:
    """Check a folder of outputs.

    originals: where the originals are, for outputs of a ComfyUI, which keep no manifest but their workflow in every
    picture. sample: how many pictures, evenly spread, are made again. Raises `AntiPureError` where there is nothing
    to check by.
    """
    if sample < 0:
        raise AntiPureError(f"--sample is {sample}; give how many pictures are to be made again, 0 for none.")
    path = manifest or Path(folder, NAME)
    lines = [line for line in read_lines(path) if line["outputs"] or line["error"]]
    verdict = Verdict()
    if lines:
        _by_manifest(lines, folder, verdict, sample)
    elif manifest is not None or originals is None:
        raise AntiPureError(
            f"There is no manifest {path} with pictures in it; give --manifest FILE, or for what a ComfyUI saved "
            "--originals FOLDER."
        )
    else:
        _by_workflow(folder, originals, verdict, sample)
    return verdict


def _by_manifest(lines: Sequence[Line], folder: str, verdict: Verdict, sample: int) -> None:
    done = [line for line in lines if not line["error"]]
    verdict.failed = len(lines) - len(done)
    known = {output["path"] for line in done for output in line["outputs"]} | {SHEET}
    whole = []
    for line in done:
        wrong = [sentence for output in line["outputs"] if (sentence := _checksum(folder, output))]
        verdict.add("checksum", BAD if wrong else OK, " ".join(wrong))
        if not wrong:
            whole.append(line)
        if line["command"] == "protect":
            _budget(line, folder, verdict)
    for path in sorted(Path(folder).rglob("*")) if not places.is_url(folder) else []:
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and name not in known:
            verdict.add("checksum", BAD, f"{one_line(name)} is in the folder, but no line of the manifest knows it.")
    again = [line for line in whole if line["command"] in ("protect", "purify")]
    for line in (again[i * len(again) // sample] for i in range(min(sample, len(again)))):
        _again(line, folder, verdict)


def _checksum(folder: str, output: dict[str, str]) -> str:
    """A sentence, "" where all is well."""
    found = sha256(places.join(folder, output["path"]))
    if found == output["sha256"]:
        return ""
    return f"{one_line(output['path'])} {'is missing' if found is None else 'was changed since it was made'}."


def _budget(line: Line, folder: str, verdict: Verdict) -> None:
    name, levels = one_line(line["picture"]), float(line["settings"]["levels"])
    source = found_place(line["input"], folder)
    if sha256(source) != line["input_sha256"]:
        verdict.add("budget", UNKNOWN, f"{one_line(source)} is no longer the original, so no change can be measured.")
        return
    try:
        before = _frames(source)
        after = np.concatenate([_frames(places.join(folder, output["path"])) for output in line["outputs"]])
    except AntiPureError as error:
        verdict.add("budget", UNKNOWN, str(error))
        return
    change = largest_change(before, after)
    if change is None or change > levels:
        told = "another size" if change is None else f"a pixel that changed by {change:.0f} of {levels:g} levels"
        verdict.add("budget", BAD, f"{name} has {told}.")
    else:
        verdict.add("budget", OK)


def _frames(place: str) -> np.ndarray:
    with places.at_hand(place, places.read(place) if places.is_url(place) else b"") as path:
        return read_picture(path)[0]


def largest_change(before: np.ndarray, after: np.ndarray) -> float | None:
    """Of any pixel in 8-bit levels; N×H×W×3 in 8 bits. None for pictures of different sizes."""
    if before.shape != after.shape:
        return None
    return float(metrics.linf_levels(from_uint8(before), from_uint8(after)).max())


def _again(line: Line, folder: str, verdict: Verdict) -> None:
    name = one_line(line["picture"])
    settings = dict(line["settings"])
    models = settings.pop("models", {})
    if settings.pop("server", False):
        verdict.add("same seed again", UNKNOWN, f"{name} was made on a ComfyUI; it cannot be made again here.")
        return
    try:
        if sums_of_models(settings) != models:
            verdict.add("same seed again", UNKNOWN, f"The models that made {name} are not those of today.")
            return
    except AntiPureError as error:
        verdict.add("same seed again", UNKNOWN, str(error))
        return
    keep_exif = bool(settings.pop("keep_exif", False))
    worker = Worker(Setup(line["command"], settings, line["made_on"].get("threads"), keep_exif))
    outcome = worker.do(Job(line["command"], line["picture"], found_place(line["input"], folder), (), line["output"]))
    if outcome.error:
        verdict.add("same seed again", UNKNOWN, f"{name} could not be made again: {outcome.error}")
        return
    made = [hashlib.sha256(content).hexdigest() for _, content in outcome.files]
    if made == [output["sha256"] for output in line["outputs"]]:
        verdict.add("same seed again", OK)
        return
    other = [key for key in _MADE_ON if line["made_on"].get(key) != outcome.made_on.get(key)]
    if other:
        told = ", ".join(f"{key} {line['made_on'].get(key)} then, {outcome.made_on.get(key)} now" for key in other)
        verdict.add("same seed again", UNKNOWN, f"{name} comes out otherwise on this machine ({told}).")
    else:
        verdict.add("same seed again", BAD, f"{name} comes out otherwise with its seed and settings.")


def _by_workflow(folder: str, originals: str, verdict: Verdict, sample: int) -> None:
    """Pictures that a ComfyUI saved, by the workflow in them."""
    found = comfyui_outputs.find_outputs(Path(folder), Path(originals))
    verdict.problems += found.problems
    for output in found.outputs:
        verdict.add("checksum", OK)  # PNG's own, of every chunk: it was read whole
        change = output.change
        if output.original is None:
            verdict.add("budget", BAD, f"{one_line(output.name)} is within {output.levels:g} levels of no original.")
        else:
            verdict.add("budget", OK if change is not None and change <= output.levels else BAD)
    for sentence in found.problems:
        verdict.counts["checksum"][BAD] += bool(sentence)
    matched = [output for output in found.outputs if output.original is not None]
    for output in (matched[i * len(matched) // sample] for i in range(min(sample, len(matched)))):
        try:
            told = comfyui_outputs.differs(output)
        except AntiPureError as error:
            verdict.add("same seed again", UNKNOWN, f"{one_line(output.name)}: {error}")
        else:
            verdict.add("same seed again", OK if told is None else UNKNOWN, told or "")
