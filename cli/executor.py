"""Run an API workflow in this process: this pack's nodes and four core ones, with ComfyUI's order and caching."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from ..methods.errors import AntiPureError
from ..methods.files import check_writable
from ..nodes import NODE_CLASS_MAPPINGS
from ..nodes.outputs import output_folder
from .core_nodes import ANY, LoadImage, PreviewAny, PreviewImage, SaveImage
from .graph import is_link, title
from .pictures import Source
from .result import Result
from .sources import alpha_is_a_mask, loader_of

CORE_NODES = {"LoadImage": LoadImage, "SaveImage": SaveImage, "PreviewImage": PreviewImage, "PreviewAny": PreviewAny}
NODES: dict[str, Any] = {**NODE_CLASS_MAPPINGS, **CORE_NODES}


def execution_order(prompt: dict) -> list[str]:
    """Node ids, every node after those it takes inputs from. Raises `AntiPureError` for broken links and cycles."""
    order: list[str] = []
    open_nodes: set[str] = set()

    def visit(node_id: str, wanted_by: str) -> None:
        if node_id in order:
            return
        if node_id not in prompt:
            raise AntiPureError(f"{title(prompt, wanted_by)} is wired to node {node_id}, which is not in the workflow.")
        if node_id in open_nodes:
            raise AntiPureError(f"The workflow has a cycle through {title(prompt, node_id)}; remove a link.")
        open_nodes.add(node_id)
        for value in prompt[node_id].get("inputs", {}).values():
            if is_link(value):
                visit(value[0], node_id)
        open_nodes.remove(node_id)
        order.append(node_id)

    for node_id in prompt:
        visit(node_id, node_id)
    return order


def check_nodes(prompt: dict) -> None:
    """Raise `AntiPureError` when the workflow has nodes that only ComfyUI can run."""
    if missing := sorted({str(node["class_type"]) for node in prompt.values()} - NODES.keys()):
        raise AntiPureError(
            f"Only a ComfyUI can run this workflow, for its nodes {', '.join(missing)}; start one and give its address "
            "with --server, e.g. http://127.0.0.1:8188."
        )


def check_node(prompt: dict, node_id: str) -> None:
    """Raise `AntiPureError` for a missing or unknown input, or a value that is not allowed."""
    node, name = prompt[node_id], f"{title(prompt, node_id)} (node {node_id})"
    types = NODES[node["class_type"]].INPUT_TYPES()
    required, optional = types.get("required", {}), types.get("optional", {})
    inputs = node.get("inputs", {})
    for missing in required.keys() - inputs.keys():
        raise AntiPureError(f"{name} lacks its input '{missing}'.")
    for key, value in inputs.items():
        specification = required.get(key) or optional.get(key)
        if specification is None:
            raise AntiPureError(f"{name} has no input '{key}'; it has {', '.join([*required, *optional])}.")
        kind, options = specification[0], specification[1] if len(specification) > 1 else {}
        if is_link(value):
            given = _output_type(prompt, value)
            if given not in kind.split(",") and kind != ANY:
                raise AntiPureError(f"{name} takes {kind} as '{key}', but is wired to {given}.")
        else:
            _check_value(f"{name}: {key}", value, kind, options)
    check = getattr(NODES[node["class_type"]], "VALIDATE_INPUTS", None)
    if check is not None:  # as ComfyUI: it is given the inputs it names, and what is wired is not known yet
        named = {key: inputs.get(key) for key in inspect.signature(check).parameters}
        found = check(**{key: None if is_link(value) else value for key, value in named.items()})
        if found is not True:
            raise AntiPureError(f"{name}: {found}")


def _output_type(prompt: dict, link: list) -> str:
    source = NODES.get(prompt[link[0]]["class_type"])
    if source is None or link[1] >= len(source.RETURN_TYPES):
        raise AntiPureError(f"{title(prompt, link[0])} has no output {link[1]} that can be used here.")
    return source.RETURN_TYPES[link[1]]


def _check_value(name: str, value: object, kind: object, options: dict) -> None:
    if isinstance(kind, list):
        # Combos of files, which default to the bundled one or to none, take any path here: the user typed it.
        if value not in kind and options.get("default", "bundled") != "bundled":
            raise AntiPureError(f"{name} is '{value}'; choose one of {', '.join(map(str, kind))}.")
        return
    if kind in ("INT", "FLOAT"):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind == "INT" and int(value) != value):
            raise AntiPureError(f"{name} is {value!r}; give {'a whole number' if kind == 'INT' else 'a number'}.")
        low, high = options.get("min", value), options.get("max", value)
        if not low <= value <= high:
            raise AntiPureError(f"{name} is {value:g}; it must lie in {low:g}..{high:g}.")
    elif kind != "STRING":
        raise AntiPureError(f"{name} takes {kind} from another node, not {value!r}.")


class Executor:
    """Runs workflows. A node whose inputs did not change since an earlier run is not run again.

    folder: where SaveImage and the nodes of this pack write.
    """

    def __init__(self, folder: str | Path = "output"):
        self.folder = Path(folder)
        self._cache: dict[tuple, tuple] = {}
        self._sources: dict[tuple, Source] = {}  # of LoadImage, by signature

    def run(self, prompt: dict) -> Result:
        """Execute the workflow. Everything that can be checked is checked before the first node runs."""
        order = execution_order(prompt)
        check_nodes(prompt)
        with output_folder(self.folder):
            for node_id in order:
                check_node(prompt, node_id)
                self._check_place(prompt[node_id])
        result = Result()
        signatures: dict[str, tuple] = {}
        outputs: dict[str, tuple] = {}
        with torch.inference_mode(), output_folder(self.folder):  # inference mode: as in ComfyUI
            for node_id in order:
                signatures[node_id] = _signature(prompt[node_id], signatures)
                source = self._source(prompt, node_id, signatures)
                if source is not None:
                    signatures[node_id] += (source.changes,)  # whether alpha is a mask stands elsewhere in the workflow
                    result.notes += [note for note in source.notes if note not in result.notes]
                if signatures[node_id] not in self._cache:
                    self._cache[signatures[node_id]] = self._execute(
                        prompt[node_id], outputs, source, signatures[node_id]
                    )
                outputs[node_id], shown = self._cache[signatures[node_id]]
                result.outputs[node_id] = outputs[node_id]
                if shown:
                    result.files[node_id] = shown.get("files", [])
                    result.ui[node_id] = {key: value for key, value in shown.items() if key != "files"}
        return result

    def _source(self, prompt: dict, node_id: str, signatures: dict[str, tuple]) -> Source | None:
        """The file that a SaveImage's pictures are made from; None where there is none, and for other nodes."""
        if NODES[prompt[node_id]["class_type"]] is not SaveImage or (loader := loader_of(prompt, node_id)) is None:
            return None
        source = self._sources[signatures[loader]]
        return source.opaque() if alpha_is_a_mask(prompt, loader) else source

    def _check_place(self, node: dict) -> None:
        prefix = node.get("inputs", {}).get("filename_prefix")
        if NODES[node["class_type"]] is SaveImage and isinstance(prefix, str):
            check_writable(SaveImage(self.folder).place(prefix).parent)

    def _execute(self, node: dict, outputs: dict[str, tuple], source: Source | None, signature: tuple) -> tuple:
        """The node's outputs, and what it shows."""
        node_class = NODES[node["class_type"]]
        instance = node_class(self.folder, source) if node_class is SaveImage else node_class()
        inputs = {
            key: outputs[value[0]][value[1]] if is_link(value) else value
            for key, value in node.get("inputs", {}).items()
        }
        returned = getattr(instance, node_class.FUNCTION)(**inputs)
        if isinstance(instance, LoadImage):
            self._sources[signature] = instance.source
        if isinstance(returned, dict):
            return returned.get("result", ()), returned.get("ui", {})
        return returned, {}


def _signature(node: dict, signatures: dict[str, tuple]) -> tuple:
    inputs = node.get("inputs", {})
    parts = tuple(
        (key, (signatures[value[0]], value[1]) if is_link(value) else repr(value))
        for key, value in sorted(inputs.items())
    )
    changed = getattr(NODES[node["class_type"]], "IS_CHANGED", None)
    return (node["class_type"], parts, changed(**inputs) if changed else None)
