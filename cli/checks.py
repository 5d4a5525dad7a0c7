"""What a workflow must be to run in this process: its order, its nodes, and their inputs.

As ComfyUI: only what an output needs is run, and inputs that a node does not know are ignored (each is said once).
"""

from __future__ import annotations

import inspect
import json
import logging
import math
from typing import Any

from ..methods.errors import AntiPureError
from ..nodes import NODE_CLASS_MAPPINGS
from ..nodes.inputs import Files
from .core_nodes import ANY, LoadImage, PreviewAny, PreviewImage, SaveImage, VAELoader
from .graph import inputs_of, is_link, listed, name_of, shown

log = logging.getLogger(__name__)

CORE_NODES = {node.__name__: node for node in (LoadImage, SaveImage, PreviewImage, PreviewAny, VAELoader)}
NODES: dict[str, Any] = {**NODE_CLASS_MAPPINGS, **CORE_NODES}
LONGEST_PATH = 4096


def needed(prompt: dict) -> dict:
    """The nodes that outputs need, in the workflow's order; all of them where nothing is an output.

    A node that is not known here and ends a chain counts as an output: it may be one that saves.
    """
    wired = {value[0] for node in prompt.values() for value in inputs_of(node).values() if is_link(value)}
    outputs = [
        node_id
        for node_id, node in prompt.items()
        if getattr(NODES.get(node["class_type"]), "OUTPUT_NODE", False)
        or (node["class_type"] not in NODES and node_id not in wired and any(map(is_link, inputs_of(node).values())))
    ]
    if not outputs:
        return prompt
    kept: set[str] = set()
    while outputs:
        node_id = outputs.pop()
        if node_id in prompt and node_id not in kept:
            kept.add(node_id)
            outputs += [value[0] for value in inputs_of(prompt[node_id]).values() if is_link(value)]
    if left := [name_of(prompt, node_id) for node_id in prompt if node_id not in kept]:
        log.warning("Not run, for no output needs it: %s.", listed(left))
    return {node_id: node for node_id, node in prompt.items() if node_id in kept}


def execution_order(prompt: dict) -> list[str]:
    """Node ids, every node after those it takes inputs from. Raises `AntiPureError` for broken links and cycles."""
    order: list[str] = []
    done: set[str] = set()
    for first in prompt:
        # A stack of our own, not calls: chains may be longer than Python's.
        stack = [(first, _sources(prompt, first))] if first not in done else []
        waiting = {first}
        while stack:
            node_id, sources = stack[-1]
            source = next((each for each in sources if each not in done), None)
            if source is None:
                stack.pop()
                waiting.discard(node_id)
                done.add(node_id)
                order.append(node_id)
            elif source not in prompt:
                raise AntiPureError(
                    f"{name_of(prompt, node_id)} is wired to node {shown(source)}, which is not in the workflow."
                )
            elif source in waiting:
                raise AntiPureError(f"The workflow has a cycle through {name_of(prompt, source)}; remove a link.")
            else:
                waiting.add(source)
                stack.append((source, _sources(prompt, source)))
    return order


def _sources(prompt: dict, node_id: str):
    return iter([value[0] for value in inputs_of(prompt[node_id]).values() if is_link(value)])


def check_nodes(prompt: dict) -> None:
    """Raise `AntiPureError` when the workflow has nodes that only ComfyUI can run."""
    if missing := sorted({node["class_type"] for node in prompt.values()} - NODES.keys()):
        raise AntiPureError(
            f"Only a ComfyUI can run this workflow, for its nodes {listed(missing)}; start one and give its address "
            "with --server, e.g. http://127.0.0.1:8188."
        )


def check_node(prompt: dict, node_id: str, types: dict | None = None) -> dict:
    """The node's inputs as its function takes them: whole floats as integers, texts of numbers as numbers.

    types: the class's INPUT_TYPES(), where they were asked for already: they look at folders.
    Raises `AntiPureError` for a missing input, or a value that is not allowed.
    """
    node, name = prompt[node_id], f"{name_of(prompt, node_id)} (node {shown(node_id)})"
    node_class = NODES[node["class_type"]]
    types = node_class.INPUT_TYPES() if types is None else types
    required, optional = types.get("required", {}), types.get("optional", {})
    inputs = {key: value for key, value in inputs_of(node).items() if value is not None}  # null: left unwired
    if unknown := [key for key in inputs if key not in required and key not in optional]:
        log.warning("%s has no input %s; what the workflow says of it is ignored.", name, listed(unknown))
    for missing in [key for key in required if key not in inputs]:
        raise AntiPureError(f"{name} lacks its input '{missing}'.")
    found: dict[str, object] = {}
    for key, value in inputs.items():
        if key in unknown:
            continue
        kind, options = [*(required.get(key) or optional[key]), {}][:2]
        if is_link(value):
            given = _output_type(prompt, value)
            accepted = ["COMBO", "STRING"] if isinstance(kind, Files) else _types(kind)
            if given not in accepted and kind != ANY:
                raise AntiPureError(f"{name} takes {' or '.join(accepted)} as '{key}', but is wired to {given}.")
            found[key] = [value[0], int(value[1])]
        else:
            found[key] = _value(f"{name}: {key}", value, kind, options)
    check = getattr(node_class, "VALIDATE_INPUTS", None)
    if check is not None:  # as ComfyUI: it is given the inputs it names, and what is wired is not known yet
        named = {key: found.get(key) for key in inspect.signature(check).parameters}
        verdict = check(**{key: None if is_link(value) else value for key, value in named.items()})
        if verdict is not True:
            raise AntiPureError(f"{name}: {verdict}")
    return found


def _types(kind: str | list) -> list[str]:
    return ["COMBO"] if isinstance(kind, list) else kind.split(",")


def _output_type(prompt: dict, link: list) -> str:
    source = NODES.get(prompt[link[0]]["class_type"])
    if source is None or not 0 <= link[1] < len(source.RETURN_TYPES):
        raise AntiPureError(f"{name_of(prompt, link[0])} has no output {shown(link[1])} that can be used here.")
    return source.RETURN_TYPES[int(link[1])]


def _value(name: str, value: object, kind: object, options: dict) -> object:
    if isinstance(kind, Files):  # the user typed it: any path will do, and the node says what is wrong with it
        if not isinstance(value, str) or "\0" in value or len(value) > LONGEST_PATH:
            raise AntiPureError(f"{name} is {shown(value)}; give the path of a file or folder.")
        return value
    if isinstance(kind, list):
        if value not in kind:
            raise AntiPureError(f"{name} is {shown(value)}; choose one of {', '.join(map(str, kind))}.")
        return value
    if kind in ("INT", "FLOAT"):
        return _number(name, value, whole=kind == "INT", options=options)
    if kind == "BOOLEAN":
        named = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(named, (bool, int, float)) or named not in (0, 1):
            raise AntiPureError(f"{name} is {shown(value)}; give true or false.")
        return bool(named)
    if kind == "STRING":
        if isinstance(value, (bool, int, float)):
            return str(value)
        if not isinstance(value, str) or "\0" in value:
            raise AntiPureError(f"{name} is {shown(value)}; give a text.")
        return value
    if kind == ANY and not isinstance(value, (list, dict)):
        return value
    raise AntiPureError(f"{name} takes {kind} from another node, not {shown(value)}.")


def _number(name: str, value: object, *, whole: bool, options: dict) -> int | float:
    wanted = "a whole number" if whole else "a number"
    try:
        number = json.loads(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError
        if whole:
            if int(number) != number:
                raise ValueError
            number = int(number)
    except (ValueError, OverflowError, RecursionError):
        raise AntiPureError(f"{name} is {shown(value)}; give {wanted}.") from None
    low, high = options.get("min", number), options.get("max", number)
    if not low <= number <= high:
        raise AntiPureError(f"{name} is {shown(value)}; it must lie in {low:g}..{high:g}.")
    return number
