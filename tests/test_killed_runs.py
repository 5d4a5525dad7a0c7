"""What `kill -9` leaves behind: a few kills here, a hundred of each kind in the nightly mark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from antipure.methods import files
from antipure.methods.files import STALE, write_file, write_new

SCRIPT = Path(__file__).with_name("killed_runs.py")
PARTS = ("protect", "report", "patch", "customization", "portfolio")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")


def killed(part: str, kills: int) -> dict[str, int]:
    run = subprocess.run([sys.executable, str(SCRIPT), part, str(kills)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@needs_fork
@pytest.mark.parametrize("part", ["protect", "patch", "portfolio"])
def test_nothing_is_lost_or_half_written_by_a_kill(part):
    found = killed(part, 6)
    assert found["runs after it that give the same bits"] == 6
    assert found["killed at work"] >= 3  # those aimed at a step of their own


@needs_fork
@pytest.mark.nightly
@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_lost_or_half_written_by_a_hundred_kills(part):
    found = killed(part, 100)
    assert found["runs after it that give the same bits"] == 100
    assert found["killed at work"] >= 50


def leftover(folder: Path, seconds: float, name: str = "") -> Path:
    """As a run leaves it that was killed while it wrote, so long ago."""
    path = folder / (name or f".{os.getpid()}-{os.urandom(16).hex()}.part")
    path.write_bytes(b"half")
    os.utime(path, (time.time() - seconds,) * 2)
    return path


@pytest.mark.parametrize("write", [lambda path: write_file(path, b"x"), lambda path: write_new([path], b"x")])
def test_old_leftovers_go_when_their_folder_is_written_next(tmp_path, write):
    (tmp_path / "below").mkdir()
    old = leftover(tmp_path, STALE + 60)
    others = [
        leftover(tmp_path, STALE / 2),  # somebody may be writing it now
        leftover(tmp_path / "below", STALE + 60),
        leftover(tmp_path, 10 * STALE, "holiday.part"),
        leftover(tmp_path, 10 * STALE, ".1-notes.part"),
        leftover(tmp_path, 10 * STALE, "old.png"),
    ]
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"x"
    assert not old.exists()
    assert all(path.exists() for path in others)


def test_leftovers_that_cannot_be_removed_hinder_nobody(tmp_path, monkeypatch):
    old = leftover(tmp_path, STALE + 60)
    unlink = Path.unlink

    def held(path, *arguments, **settings):
        if path == old:
            raise PermissionError
        unlink(path, *arguments, **settings)

    monkeypatch.setattr(files.Path, "unlink", held)
    write_file(tmp_path / "a", b"x")
    assert old.exists()
    assert (tmp_path / "a").read_bytes() == b"x"
