"""The inputs of nodes, as ComfyUI wants them described: one function for each kind, one for a node's whole list."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

Input = tuple[str | list[str], dict[str, Any]]
SEED_MAX = 2**64 - 1


def declare(
    *,
    optional: dict[str, Input] | None = None,
    advanced: Collection[str] = (),
    node_id: bool = False,
    graph: bool = False,
    **required: Input,
) -> dict:
    """What INPUT_TYPES returns. node_id: the node is told its id, so that it can show texts while it runs.

    graph: it is told of the graph that it runs in, too: prompt, extra_pnginfo, which are what core saves with pictures.
    advanced: names of inputs that ComfyUI shows when asked for them (versions that do not know this always do).
    """
    groups: dict[str, dict] = {"required": required}
    if optional:
        groups["optional"] = optional
    for group in groups.values():
        for name in group.keys() & set(advanced):
            group[name] = (group[name][0], {**group[name][1], "advanced": True})
    told = {"node_id": "UNIQUE_ID"} if node_id else {}
    if graph:
        told |= {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
    if told:
        groups["hidden"] = told
    return groups


def wire(kind: str, tooltip: str) -> Input:
    """An input that takes another node's output. kind: its type, or several separated by commas."""
    return kind, {"tooltip": tooltip}


def image(tooltip: str) -> Input:
    return wire("IMAGE", tooltip)


def integer(default: int, low: int, high: int, tooltip: str, *, step: int | None = None) -> Input:
    return "INT", {"default": default, "min": low, "max": high, **_given(step=step), "tooltip": tooltip}


def seed(tooltip: str) -> Input:
    return integer(0, 0, SEED_MAX, tooltip)


def number(default: float, low: float, high: float, step: float, tooltip: str, *, round: float | None = None) -> Input:
    """round: what values are rounded to where that is not the step."""
    options = {"default": default, "min": low, "max": high, "step": step, **_given(round=round), "tooltip": tooltip}
    return "FLOAT", options


def choice(names: Iterable[str], default: str, tooltip: str) -> Input:
    return list(names), {"default": default, "tooltip": tooltip}


class Files(list[str]):
    """The names of a choice among files. Outside ComfyUI, where the user types them, any path stands for a file."""


def file(names: Iterable[str], tooltip: str, default: str | None = None, *, absent: str = "") -> Input:
    """A choice among the user's files: without a default the first one is as good as any.

    absent: what stands in the list while there is no file: where one goes and what fetches it.
    """
    return Files(list(names) or [absent] * bool(absent)), {**_given(default=default), "tooltip": tooltip}


def boolean(default: bool, tooltip: str) -> Input:
    return "BOOLEAN", {"default": default, "tooltip": tooltip}


def text(default: str, tooltip: str, *, multiline: bool = False) -> Input:
    return "STRING", {"default": default, **_given(multiline=multiline or None), "tooltip": tooltip}


def wired_text(tooltip: str) -> Input:
    """A text that takes another node's output and cannot be typed."""
    return "STRING", {"forceInput": True, "tooltip": tooltip}


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
