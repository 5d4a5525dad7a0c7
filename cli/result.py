"""What running a workflow gives back, in process or on a server."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..methods.errors import AntiPureError


@dataclass
class Result:
    """files: pictures written by SaveImage. ui: what output nodes show besides. outputs: what the nodes returned
    (in process only). Each per node id."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    ui: dict[str, dict] = field(default_factory=dict)
    outputs: dict[str, tuple] = field(default_factory=dict)


def write_file(path: Path, data: bytes) -> None:
    """Write all of it or nothing. Raises `AntiPureError` when the disk is full or the folder cannot be written."""
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise AntiPureError(
            f"{path} could not be written ({error.strerror}); free space or choose another --out."
        ) from error
