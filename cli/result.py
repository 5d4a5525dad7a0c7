"""What running a workflow gives back, in process or on a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Result:
    """files: pictures written by SaveImage. ui: what output nodes show besides. outputs: what the nodes returned
    (in process only). Each per node id. notes: in words, what saved pictures lost of the file they are made from."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    ui: dict[str, dict] = field(default_factory=dict)
    outputs: dict[str, tuple] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
