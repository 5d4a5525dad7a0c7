"""Run an API workflow in this process: this pack's nodes and five core ones, with ComfyUI's order and caching."""

from __future__ import annotations

import hashlib
import inspect
import uuid
from pathlib import Path

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

    folder: where SaveImage and the nodes of this pack write.
    """

    def __init__(self, folder: str | Path = "output"):
        self.folder = Path(folder)
        self._cache: dict[str, tuple] = {}
        self._sources: dict[str, Source] = {}  # of LoadImage, by signature

    def run(self, prompt: dict) -> Result:
        """Execute the workflow. Everything that can be checked is checked before the first node runs."""
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
        result = Result()
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
                if signatures[node_id] not in self._cache:
                    told = {"prompt": checked, "node_id": node_id}
                    hidden = types[node["class_type"]].get("hidden", {})
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
        if NODES[node["class_type"]] is SaveImage and isinstance(prefix, str):
            check_writable(SaveImage(self.folder).place(prefix).parent)

    def _execute(self, name: str, values: dict, source: Source | None, signature: str) -> tuple[tuple, dict]:
        """The node's outputs, and what it shows."""
        node_class = NODES[name]
        instance = node_class(self.folder, source) if node_class is SaveImage else node_class()
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
