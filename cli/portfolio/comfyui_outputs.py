"""What a ComfyUI saved from a folder: no manifest, no names, but the workflow in every PNG.

Core's folder loaders hand pictures on without their names, in whatever order the system lists them, so an output's
original is found by its pixels: the one that is nearest, if it lies within the budget.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...methods.errors import AntiPureError
from ...methods.pictures import to_uint8
from ..executor import NODES, Executor
from ..graph import inputs_of, is_link
from ..pictures import opened_picture
from ..terminal import one_line
from .inputs import find

PROTECT = "AntiPureProtect"
_GRID = 16  # pixels between those that are compared first


@dataclass
class Output:
    """name: below the folder. levels: the budget in its workflow. original: its file, None where none is near enough.
    change: the largest of any pixel, in levels."""

    name: str
    pixels: np.ndarray
    prompt: dict
    node: str
    levels: float
    original: Path | None = None
    change: float | None = None


@dataclass
class Found:
    outputs: list[Output] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_outputs(folder: Path, originals: Path) -> Found:
    """The protected pictures in a folder, each with its original. Raises `AntiPureError` where there are none."""
    found = Found()
    for picture in find([str(folder)]).pictures:
        try:
            with opened_picture(Path(picture.source)) as opened:
                text = opened.info.get("prompt")
                pixels = np.asarray(opened.convert("RGB"))
            prompt, node = _protection(text)
        except AntiPureError as error:
            found.problems.append(str(error))
            continue
        if node is None:
            found.problems.append(f"{one_line(picture.relative)} holds no workflow with AntiPure Protect.")
            continue
        levels = inputs_of(prompt[node]).get("levels", 8.0)
        found.outputs.append(Output(picture.relative, pixels, prompt, node, float(levels)))
    if not found.outputs:
        raise AntiPureError(f"No picture in {folder} holds a workflow with AntiPure Protect, as Save Image writes it.")
    _match(found.outputs, originals)
    return found


def _protection(text: object) -> tuple[dict, str | None]:
    """The workflow in a PNG, and the id of its one Protect node."""
    try:
        prompt = json.loads(text) if isinstance(text, str) else {}
        nodes = [i for i, node in prompt.items() if node["class_type"] == PROTECT]
        if len(nodes) == 1 and not is_link(inputs_of(prompt[nodes[0]]).get("levels")):
            float(inputs_of(prompt[nodes[0]]).get("levels", 8.0))
            return prompt, nodes[0]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return {}, None


def _match(outputs: list[Output], originals: Path) -> None:
    for picture in find([str(originals)]).pictures:
        path = Path(picture.source)
        for pixels in _as_loaded(path):
            for output in outputs:
                if output.pixels.shape != pixels.shape:
                    continue
                limit = output.levels if output.change is None else min(output.levels, output.change)
                if _distance(output.pixels[::_GRID, ::_GRID], pixels[::_GRID, ::_GRID]) > limit:
                    continue
                change = _distance(output.pixels, pixels)
                if change <= output.levels and (output.change is None or change < output.change):
                    output.original, output.change = path, change


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.int16) - b).max())


def _as_loaded(path: Path) -> Iterator[np.ndarray]:
    """The picture as core's folder loaders take it: as it lies in the file, whatever EXIF says of its orientation."""
    try:
        with opened_picture(path) as opened:
            yield np.asarray(opened.convert("RGB"))
    except AntiPureError:
        return


def differs(output: Output) -> str | None:
    """None where the output comes out in every pixel as it was saved; else a sentence.

    Only this node and the loader of its denoiser are run; raises `AntiPureError` where it takes more than that.
    """
    assert output.original is not None
    pixels = next(_as_loaded(output.original))
    node = output.prompt[output.node]
    wanted = [value[0] for name, value in inputs_of(node).items() if is_link(value) and name != "image"]
    prompt: dict[str, Any] = {output.node: {**node, "inputs": {**inputs_of(node), "image": ["picture", 0]}}}
    while wanted:
        node_id = wanted.pop()
        source = output.prompt.get(node_id)
        if source is None or source["class_type"] not in NODES or source["class_type"] == "LoadImage":
            raise AntiPureError("it takes nodes that only its ComfyUI has, so it cannot be made again here.")
        prompt[node_id] = source
        wanted += [value[0] for value in inputs_of(source).values() if is_link(value)]
    result = _run(prompt, output.node, pixels)
    if np.array_equal(result, output.pixels):
        return None
    share = float((result != output.pixels).mean())
    return (
        f"{one_line(output.name)} comes out otherwise on this machine in {share:.0%} of its values; another processor, "
        "torch or model rounds differently."
    )


def _run(prompt: dict, node: str, pixels: np.ndarray) -> np.ndarray:
    """The pixels that the Protect node gives for these, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture.png")
        Image.fromarray(pixels).save(path)
        loaded = {**prompt, "picture": {"class_type": "LoadImage", "inputs": {"image": str(path)}}}
        image: torch.Tensor = Executor(folder).run(loaded).outputs[node][0]
    return to_uint8(image.permute(0, 3, 1, 2).contiguous())[0]
