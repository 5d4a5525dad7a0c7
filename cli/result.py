"""What running a workflow gives back, in process or on a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..methods.errors import AntiPureError

T = TypeVar("T")


@dataclass
class Result:
    """files: pictures written by SaveImage. ui: what output nodes show besides. outputs: what the nodes returned
    (in process only). Each per node id. notes: in words, what saved pictures lost of the file they are made from."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    ui: dict[str, dict] = field(default_factory=dict)
    outputs: dict[str, tuple] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def texts(self) -> list[str]:
        """What nodes show as text."""
        lists = [shown.get("text") for shown in self.ui.values()]
        return [text for found in lists if isinstance(found, (list, tuple)) for text in found if isinstance(text, str)]

    def shown(self, node_id: str, name: str, kind: type[T]) -> T:
        """The first thing a node shows by this name. Raises `AntiPureError` where a server did not send it."""
        found = self.ui.get(node_id, {}).get(name)
        if isinstance(found, (list, tuple)) and found and isinstance(found[0], kind):
            return found[0]
        raise AntiPureError(f"The server's answer holds no {name} of node {node_id}; does it run this pack, as new?")
