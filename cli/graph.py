"""API workflows: reading, checking and setting inputs."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from ..methods.errors import AntiPureError

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows" / "api"


def is_link(value: object) -> bool:
    """Whether an input is a link [node id, output index] rather than a value."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def read_workflow(path: str | Path) -> dict:
    """An API workflow: a file, or the name of a shipped one ("protect_and_purify").

    Raises `AntiPureError` when there is none, or it is not in API format.
    """
    path = Path(path)
    if not path.exists() and (WORKFLOWS / f"{path.name}.json").is_file() and path.parent == Path():
        path = WORKFLOWS / f"{path.name}.json"
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(p.stem for p in WORKFLOWS.glob("*.json")))
        raise AntiPureError(
            f"There is no workflow {path}; give a file, or one of the shipped ones: {shipped}."
        ) from None
    except (OSError, ValueError) as error:
        raise AntiPureError(f"{path} could not be read as a workflow: {error}.") from error
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise AntiPureError(f"{path} is a UI workflow; export it from ComfyUI in API format (Workflow > Export (API)).")
    nodes = prompt.values() if isinstance(prompt, dict) else [None]
    if not prompt or not all(isinstance(n, dict) and "class_type" in n for n in nodes):
        raise AntiPureError(f"{path} is not an API workflow: every node needs a class_type.")
    return prompt


def title(prompt: dict, node_id: str) -> str:
    """The node's title, or its class."""
    node = prompt[node_id]
    return node.get("_meta", {}).get("title") or node["class_type"]


def find_node(prompt: dict, name: str) -> str:
    """The id of the node with this id, title or class. Raises `AntiPureError` when none or several have it."""
    if name in prompt:
        return name
    matches = [i for i in prompt if title(prompt, i).casefold() == name.casefold() or prompt[i]["class_type"] == name]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(f"{i} ({title(prompt, i)})" for i in prompt)
    problem = "No node" if not matches else "More than one node"
    raise AntiPureError(f"{problem} of the workflow is called '{name}'; use an id: {known}.")


def set_inputs(prompt: dict, settings: list[str]) -> dict:
    """A copy of the workflow with inputs set from "NODE.INPUT=VALUE" strings.

    NODE is an id, a title or a class. VALUE is read as JSON where it is JSON (8, 0.5, true), else as a text; an
    input that holds a text stays one. Raises `AntiPureError` for unknown nodes and inputs.
    """
    prompt = copy.deepcopy(prompt)
    for setting in settings:
        target, equals, text = setting.partition("=")
        node_name, dot, name = target.rpartition(".")
        if not (equals and dot):
            raise AntiPureError(f"'{setting}' is not of the form NODE.INPUT=VALUE.")
        node_id = find_node(prompt, node_name)
        inputs = prompt[node_id].setdefault("inputs", {})
        if name not in inputs:
            raise AntiPureError(f"{title(prompt, node_id)} has no input '{name}'; it has {', '.join(inputs)}.")
        if is_link(inputs[name]):
            raise AntiPureError(f"{title(prompt, node_id)}.{name} is wired to another node; set that node's inputs.")
        try:
            value = text if isinstance(inputs[name], str) else json.loads(text)
        except ValueError:
            raise AntiPureError(f"'{text}' is no value for {title(prompt, node_id)}.{name}.") from None
        inputs[name] = value
    return prompt
