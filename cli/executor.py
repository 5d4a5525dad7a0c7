"""Run an API workflow in this process: this pack's nodes and five core ones, with ComfyUI's order and caching."""

from __future__ import annotations

import hashlib
import inspect
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..methods.errors import AntiPureError
from ..methods.files import check_writable
from ..nodes.outputs import output_folder
from .checks import NODES, check_node, check_nodes, execution_order, needed
from .core_nodes import LoadImage, SaveImage
from .graph import is_link
from .pictures import Source
from .result import Result
from .sources import alpha_is_a_mask, loader_of
from .terminal import one_line


class Executor:
    """Runs workflows. A node whose inputs did not change since an earlier run is not run again.

    folder: where SaveImage and the nodes of this pack write. saver: what takes SaveImage's place, called as it is.
    """

    def __init__(self, folder: str | Path = "output", *, saver: Callable[[Path, Source | None], Any] = SaveImage):
        self.folder = Path(folder)
        self._saver = saver
        self._cache: dict[str, tuple] = {}
        self._sources: dict[str, Source] = {}  # of LoadImage, by signature
        self._of_pictures: set[str] = set()  # signatures of all that a LoadImage is part of

    def forget_pictures(self) -> None:
        """Drop what earlier runs made of pictures; models stay loaded."""
        for signature in self._of_pictures:
            self._cache.pop(signature, None)
            self._sources.pop(signature, None)
        self._of_pictures.clear()

    def check(self, prompt: dict) -> tuple[list[str], dict[str, dict]]:
        """The order in which the workflow's nodes run, and each with its inputs as its function takes them.

        Raises `AntiPureError` for whatever can be known to be wrong before the first one runs.
        """
        prompt = needed(prompt)
        check_nodes(prompt)
        order = execution_order(prompt)
        types = {name: NODES[name].INPUT_TYPES() for name in {node["class_type"] for node in prompt.values()}}
        checked: dict[str, dict] = {}
        with output_folder(self.folder):
            for node_id in order:
                name = prompt[node_id]["class_type"]
                checked[node_id] = {"class_type": name, "inputs": check_node(prompt, node_id, types[name])}
                self._check_place(checked[node_id])
        return order, checked

    def run(self, prompt: dict) -> Result:
        """Execute the workflow. Everything that can be checked is checked before the first node runs."""
        order, checked = self.check(prompt)
        result = Result()
        of_pictures: set[str] = set()  # node ids
        signatures: dict[str, str] = {}
        outputs: dict[str, tuple] = {}
        with torch.inference_mode(), output_folder(self.folder):  # inference mode: as in ComfyUI
            for node_id in order:
                node = checked[node_id]
                values = {
                    key: outputs[value[0]][value[1]] if is_link(value) else value
                    for key, value in node["inputs"].items()
                }
                signatures[node_id] = _signature(node, values, signatures)
                source = self._source(checked, node_id, signatures)
                if source is not None:
                    # Whether alpha is a mask stands elsewhere in the workflow.
                    signatures[node_id] += f" {source.changes}"
                    result.notes += [note for note in source.notes if note not in result.notes]
                links = [value[0] for value in node["inputs"].values() if is_link(value)]
                if NODES[node["class_type"]] is LoadImage or not of_pictures.isdisjoint(links):
                    of_pictures.add(node_id)
                    self._of_pictures.add(signatures[node_id])
                if signatures[node_id] not in self._cache:
                    told = {"prompt": checked, "node_id": node_id}
                    hidden = NODES[node["class_type"]].INPUT_TYPES().get("hidden", {})
                    values |= {key: value for key, value in told.items() if "prompt" in hidden and key in hidden}
                    self._cache[signatures[node_id]] = self._execute(
                        node["class_type"], values, source, signatures[node_id]
                    )
                outputs[node_id], shown = self._cache[signatures[node_id]]
                result.outputs[node_id] = outputs[node_id]
                if shown:
                    result.files[node_id] = shown.get("files", [])
                    result.ui[node_id] = {key: value for key, value in shown.items() if key != "files"}
        return result

    def _source(self, prompt: dict, node_id: str, signatures: dict[str, str]) -> Source | None:
        """The file that a SaveImage's pictures are made from; None where there is none, and for other nodes."""
        if NODES[prompt[node_id]["class_type"]] is not SaveImage or (loader := loader_of(prompt, node_id)) is None:
            return None
        source = self._sources[signatures[loader]]
        return source.opaque() if alpha_is_a_mask(prompt, loader) else source

    def _check_place(self, node: dict) -> None:
        prefix = node["inputs"].get("filename_prefix")
        if NODES[node["class_type"]] is SaveImage is self._saver and isinstance(prefix, str):
            check_writable(SaveImage(self.folder).place(prefix).parent)

    def _execute(self, name: str, values: dict, source: Source | None, signature: str) -> tuple[tuple, dict]:
        """The node's outputs, and what it shows."""
        node_class = NODES[name]
        instance = self._saver(self.folder, source) if node_class is SaveImage else node_class()
        try:
            returned = getattr(instance, node_class.FUNCTION)(**values)
        except OSError as error:  # of names and disks: what the node did not expect, the system says in words
            raise AntiPureError(f"{name} failed: {one_line(error)}.") from error
        if isinstance(instance, LoadImage):
            self._sources[signature] = instance.source
        if isinstance(returned, dict):
            return returned.get("result", ()), returned.get("ui", {})
        return returned, {}


def _signature(node: dict, values: dict, signatures: dict[str, str]) -> str:
    """A digest of all that a node's result depends on: by digest, because graphs may be deep, and parts used often."""
    parts = [
        (key, signatures[value[0]], value[1]) if is_link(value) else (key, repr(value))
        for key, value in sorted(node["inputs"].items())
    ]
    is_changed = getattr(NODES[node["class_type"]], "IS_CHANGED", None)
    changed = None
    if is_changed is not None:
        names = inspect.signature(is_changed).parameters
        changed = is_changed(**{key: values[key] for key in names if key in values})
        if changed != changed:  # NaN, ComfyUI's way to say "always"
            changed = uuid.uuid4()
    return hashlib.sha256(repr((node["class_type"], parts, changed)).encode("utf-8", "backslashreplace")).hexdigest()
