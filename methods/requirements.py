"""What the pack needs beside torch, and how to install what is missing: said at start-up and on use."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

# As users install them (requirements.txt), and as Python imports them where that differs.
REQUIREMENTS = ("diffusers", "peft", "safetensors", "numpy", "pillow", "tqdm", "matplotlib")
_IMPORTED = {"pillow": "PIL"}
_LIST = Path(__file__).resolve().parent.parent / "requirements.txt"


def missing() -> list[str]:
    """Those of `REQUIREMENTS` that this Python does not find. Nothing is imported."""
    return [name for name in REQUIREMENTS if find_spec(_IMPORTED.get(name, name)) is None]


def install_command() -> str:
    """What installs all of them into the Python that runs, for a shell of any system."""
    what = f'-r "{_LIST}"' if _LIST.is_file() else " ".join(REQUIREMENTS)
    return f'"{sys.executable}" -m pip install {what}'


def sentence(names: list[str]) -> str:
    """One sentence about requirements that are missing."""
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(names)} {verb} not installed; run: {install_command()} and restart."


def missed(error: BaseException) -> str | None:
    """The sentence for an import of a requirement that failed; None for anything else."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    top = error.name.partition(".")[0]
    names = [name for name in REQUIREMENTS if _IMPORTED.get(name, name) == top]
    return sentence(names) if names else None
