"""API workflows: reading, checking and setting inputs."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable
from pathlib import Path

from ..methods.errors import AntiPureError
from ..methods.files import reason
from .terminal import one_line

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows" / "api"
_BOOLEANS = ("true", "false")
LARGEST = 64 * 2**20  # bytes of a file: 100,000 nodes take half of it
_LONGEST = 80  # characters of a name in a sentence
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = _LONGEST
_SHOWN.maxlevel = 3


def is_link(value: object) -> bool:
    """Whether an input is a link [node id, output index] rather than a value."""
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
        return False
    index = value[1]
    return isinstance(index, (int, float)) and not isinstance(index, bool) and index == index // 1


def shown(value: object) -> str:
    """Whatever a file may hold, for a sentence: short, on one line, without control characters."""
    if isinstance(value, str) and value.isprintable() and len(value) <= _SHOWN.maxstring:
        return f"'{value}'"
    return _SHOWN.repr(value)


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a sentence; of many the first ones."""
    names = list(names)
    short = [one_line(name, _LONGEST) for name in names[:most]]
    return ", ".join([*short, *([f"and {len(names) - most} more"] if len(names) > most else [])])


def read_workflow(path: str | Path) -> dict:
    """An API workflow: a file, or the name of a shipped one ("protect_and_purify").

    Every node of what is returned has a class_type that is a text, and inputs and _meta, where it has them, that are
    dicts. Raises `AntiPureError` when there is none, or it is not in API format.
    """
    path = Path(path)
    name = one_line(path, _LONGEST)
    try:
        if not path.exists() and (WORKFLOWS / f"{path.name}.json").is_file() and path.parent == Path():
            path = WORKFLOWS / f"{path.name}.json"
        if path.exists() and not path.is_file():
            raise AntiPureError(f"{name} is not a file; give a workflow in API format.")
        if path.exists() and path.stat().st_size > LARGEST:
            raise AntiPureError(f"{name} is larger than {LARGEST // 2**20} MiB: no workflow.")
        prompt = json.loads(path.read_bytes())  # bytes: a BOM, and UTF-16 as PowerShell writes it, are understood
    except FileNotFoundError:
        shipped = ", ".join(sorted(p.stem for p in WORKFLOWS.glob("*.json")))
        raise AntiPureError(
            f"There is no workflow {name}; give a file, or one of the shipped ones: {shipped}."
        ) from None
    except AntiPureError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or reason(error)
        raise AntiPureError(f"{name} could not be read as a workflow: {one_line(why, _LONGEST)}.") from error
    except RecursionError:
        raise AntiPureError(f"{name} could not be read as a workflow: it is nested too deeply.") from None
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise AntiPureError(f"{name} is a UI workflow; export it from ComfyUI in API format (Workflow > Export (API)).")
    nodes = prompt.values() if isinstance(prompt, dict) else [None]
    if not prompt or not all(isinstance(n, dict) and isinstance(n.get("class_type"), str) for n in nodes):
        raise AntiPureError(f"{name} is not an API workflow: every node needs a class_type.")
    for node_id, node in prompt.items():
        if not isinstance(node.get("inputs") or {}, dict):
            raise AntiPureError(f"{name} is not an API workflow: the inputs of node {shown(node_id)} have no names.")
    return prompt


def inputs_of(node: dict) -> dict:
    """A node's inputs, values and links by name."""
    return node.get("inputs") or {}


def title(prompt: dict, node_id: str) -> str:
    """The node's title, or its class."""
    node = prompt[node_id]
    meta = node.get("_meta")
    given = meta.get("title") if isinstance(meta, dict) else None
    return given if given and isinstance(given, str) else node["class_type"]


def name_of(prompt: dict, node_id: str) -> str:
    """The node's title or class for a sentence."""
    return one_line(title(prompt, node_id), _LONGEST)


def find_node(prompt: dict, name: str) -> str:
    """The id of the node with this id, title or class. Raises `AntiPureError` when none or several have it."""
    if name in prompt:
        return name
    matches = [i for i in prompt if title(prompt, i).casefold() == name.casefold() or prompt[i]["class_type"] == name]
    if len(matches) == 1:
        return matches[0]
    known = listed(f"{i} ({name_of(prompt, i)})" for i in prompt)
    problem = "No node" if not matches else "More than one node"
    raise AntiPureError(f"{problem} of the workflow is called {shown(name)}; use an id: {known}.")


def set_inputs(prompt: dict, settings: list[str]) -> dict:
    """A copy of the workflow with inputs set from "NODE.INPUT=VALUE" strings.

    NODE is an id, a title or a class. VALUE is read as JSON where it is JSON (8, 0.5, true), else as a text; an
    input that holds a text stays one. Raises `AntiPureError` for unknown nodes and inputs.
    """
    prompt = {node_id: {**node, "inputs": dict(inputs_of(node))} for node_id, node in prompt.items()}
    for setting in settings:
        target, equals, text = setting.partition("=")
        node_name, dot, name = target.rpartition(".")
        if not (equals and dot):
            raise AntiPureError(f"{shown(setting)} is not of the form NODE.INPUT=VALUE.")
        node_id = find_node(prompt, node_name)
        inputs, node = prompt[node_id]["inputs"], name_of(prompt, node_id)
        if name not in inputs:
            raise AntiPureError(f"{node} has no input {shown(name)}; it has {listed(inputs)}.")
        if is_link(inputs[name]):
            raise AntiPureError(f"{node}.{name} is wired to another node; set that node's inputs.")
        if text.lower() in _BOOLEANS and not isinstance(inputs[name], str):
            text = text.lower()
        try:
            inputs[name] = text if isinstance(inputs[name], str) else json.loads(text)
        except (ValueError, RecursionError):
            raise AntiPureError(f"{shown(text)} is no value for {node}.{name}.") from None
    return prompt
