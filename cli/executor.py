"""Run an API workflow in this process: this pack's nodes and four core ones, with ComfyUI's order and caching."""

from __future__ import annotations

import hashlib
import inspect
import uuid
from pathlib import Path

import torch

from ..methods.errors import AntiPureError
from ..nodes.outputs import output_folder
from .checks import NODES, check_node, check_nodes, execution_order, needed
from .core_nodes import SaveImage
from .graph import is_link, shown
from .result import Result


class Executor:
    """Runs workflows. A node whose inputs did not change since an earlier run is not run again.

    folder: where SaveImage and the nodes of this pack write.
    """

    def __init__(self, folder: str | Path = "output"):
        self.folder = Path(folder)
        self._cache: dict[str, tuple] = {}

    def run(self, prompt: dict) -> Result:
        """Execute the workflow. Everything that can be checked is checked before the first node runs."""
        prompt = needed(prompt)
        check_nodes(prompt)
        order = execution_order(prompt)
        types = {name: NODES[name].INPUT_TYPES() for name in {node["class_type"] for node in prompt.values()}}
        checked = {
            node_id: {
                "class_type": prompt[node_id]["class_type"],
                "inputs": check_node(prompt, node_id, types[prompt[node_id]["class_type"]]),
            }
            for node_id in order
        }
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
                if signatures[node_id] not in self._cache:
                    self._cache[signatures[node_id]] = self._execute(node["class_type"], values)
                outputs[node_id], shown = self._cache[signatures[node_id]]
                result.outputs[node_id] = outputs[node_id]
                if shown:
                    result.files[node_id] = shown.get("files", [])
                    result.ui[node_id] = {key: value for key, value in shown.items() if key != "files"}
        return result

    def _execute(self, name: str, values: dict) -> tuple[tuple, dict]:
        node_class = NODES[name]
        instance = node_class(self.folder) if node_class is SaveImage else node_class()
        try:
            returned = getattr(instance, node_class.FUNCTION)(**values)
        except OSError as error:  # of names and disks: what the node did not expect, the system says in words
            raise AntiPureError(f"{name} failed: {shown(str(error))[1:-1]}.") from error
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
