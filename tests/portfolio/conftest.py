"""Folders of small pictures, and the command run on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from antipure.cli.main import main
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FACE = ROOT / "bundled" / "astronaut_face.png"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Four pictures in two folders, of two sizes."""
    face = Image.open(FACE).convert("RGB")
    folder = tmp_path / "photos"
    for i, name in enumerate(("a.png", "b.jpg", "deep/er/c.webp", "deep/d.bmp")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        face.crop((10 * i, 5 * i, 10 * i + 24, 5 * i + 20 + 4 * (i % 2))).save(path)
    return folder


@pytest.fixture
def antipure(capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs the command; its exit status, what it printed and what it complained of."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def protect(antipure) -> Callable[..., tuple[int, str, str]]:
    """`antipure protect` with a perturbation that costs nothing."""
    return lambda *arguments: antipure("protect", *arguments, "--preset", "random", "--levels", "4")


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "antipure_manifest.jsonl").read_text().splitlines()]


def by_picture(out: Path) -> dict[str, dict]:
    lines = lines_of(out)
    found = {line["picture"]: line for line in lines}
    assert len(found) == len(lines), "a picture has two lines"
    return found


def saved(out: Path) -> dict[str, bytes]:
    """Every file under a name that is not hidden, but the manifest."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".jsonl"
    }


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)
