"""Nothing is lost: the same command goes on where it stopped, and the manifest tells the truth whatever happens."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from antipure.cli.portfolio import manifest as manifests
from antipure.cli.portfolio import places, run
from antipure.cli.portfolio.manifest import Manifest, read_lines
from antipure.cli.portfolio.work import Worker
from antipure.methods import files
from antipure.methods.errors import AntiPureError
from PIL import Image

from .conftest import ROOT, by_picture, lines_of, saved


@pytest.fixture
def worked_on(monkeypatch) -> list[str]:
    """The pictures that workers are given from now on."""
    found: list[str] = []
    do = Worker.do
    monkeypatch.setattr(Worker, "do", lambda self, job: found.append(job.picture) or do(self, job))
    return found


def test_finished_pictures_are_skipped_while_all_is_the_same(photos, protect, tmp_path, worked_on):
    out = tmp_path / "out"
    assert protect(photos, "--out", out)[0] == 0
    before, lines = saved(out), lines_of(out)
    worked_on.clear()
    assert protect(photos, "--out", out)[0] == 0
    assert (worked_on, saved(out), lines_of(out)) == ([], before, lines)


@pytest.mark.parametrize("change", ["input", "settings", "output", "missing output", "seed", "model"])
def test_what_changed_is_done_again(change, photos, antipure, tmp_path, worked_on):
    out = tmp_path / "out"
    model = tmp_path / "model.safetensors"
    shutil.copy(ROOT / "bundled" / "denoiser.safetensors", model)
    settings = ["--preset", "random", "--levels", 4, "--denoiser", model, "--out", out]
    assert antipure("protect", photos, *settings)[0] == 0
    lines, before = by_picture(out), saved(out)
    worked_on.clear()
    expected, more = sorted(lines), []
    if change == "input":
        shutil.copy(photos / "b.jpg", photos / "a.png")
        expected = ["a.png"]
    elif change == "settings":
        more = ["--levels", 3]
    elif change == "output":
        (out / "a_protected.png").write_bytes(before["a_protected.png"][:-1] + b"x")
        expected = ["a.png"]
    elif change == "missing output":
        (out / "a_protected.png").unlink()
        expected = ["a.png"]
    elif change == "seed":
        more = ["--seed", 5]
    else:
        shutil.copy(ROOT / "bundled" / "held_out_denoiser.safetensors", model)
    assert antipure("protect", photos, *settings, *more)[0] == 0
    assert sorted(worked_on) == expected
    assert by_picture(out).keys() == lines.keys()
    if "output" in change or change == "model":
        assert saved(out) == before
    else:
        assert all(
            saved(out)[lines[name]["output"] + ".png"] != before[lines[name]["output"] + ".png"] for name in expected
        )


def test_failed_pictures_wait_for_retry_or_another_input(photos, protect, tmp_path, worked_on):
    out = tmp_path / "out"
    for name in ("bad.png", "worse.png"):
        (photos / name).write_bytes(b"no picture")
    assert protect(photos, "--out", out)[0] == 1
    worked_on.clear()
    status, told, complaints = protect(photos, "--out", out)
    assert (status, worked_on) == (1, [])
    assert "failed before (try again with --retry) | 2" in " ".join(told.split())
    assert complaints.count("is not a picture") == 2
    assert protect(photos, "--out", out, "--retry")[0] == 1
    assert sorted(worked_on) == ["bad.png", "worse.png"]
    worked_on.clear()
    shutil.copy(photos / "a.png", photos / "bad.png")
    assert protect(photos, "--out", out)[0] == 1
    assert worked_on == ["bad.png"]
    (photos / "worse.png").unlink()
    assert protect(photos, "--out", out)[0] == 0
    assert len(lines_of(out)) == 6  # what is written of a picture that is no longer asked for stays


def test_two_commands_share_a_folder_and_a_manifest(photos, protect, antipure, tmp_path):
    out = tmp_path / "out"
    assert protect(photos, "--out", out)[0] == 0
    settings = ["--iterations", 1, "--timestep", 1, "--out", out]
    assert antipure("purify", photos / "a.png", photos / "b.jpg", *settings)[0] == 0
    assert {(line["command"], line["picture"]) for line in lines_of(out)} == {
        *(("protect", name) for name in ("a.png", "b.jpg", "deep/d.bmp", "deep/er/c.webp")),
        *(("purify", name) for name in ("a.png", "b.jpg")),
    }


def test_both_folders_may_be_moved(photos, protect, tmp_path, worked_on):
    assert protect(photos, "--out", tmp_path / "out")[0] == 0
    (tmp_path / "there").mkdir()
    for name in ("photos", "out"):
        (tmp_path / name).rename(tmp_path / "there" / name)
    worked_on.clear()
    assert protect(tmp_path / "there" / "photos", "--out", tmp_path / "there" / "out")[0] == 0
    assert worked_on == []


def test_other_pictures_of_the_same_names_replace_nothing(photos, protect, tmp_path):
    out, others = tmp_path / "out", tmp_path / "others"
    assert protect(photos, "--out", out)[0] == 0
    before = saved(out)
    others.mkdir()
    shutil.copy(photos / "b.jpg", others / "a.png")
    shutil.copy(photos / "b.jpg", others / "b.jpg")
    status, _, complaints = protect(others, "--out", out)
    assert status == 2
    assert "belongs to" in complaints
    assert saved(out) == before


def test_a_run_that_is_writing_keeps_others_out(photos, protect, tmp_path):
    out = tmp_path / "out"
    with Manifest(out / manifests.NAME):
        status, _, complaints = protect(photos, "--out", out)
    assert status == 2
    assert "Another run is writing" in complaints
    assert protect(photos, "--out", out)[0] == 0


def test_a_line_that_is_cut_off_is_none(photos, protect, tmp_path, worked_on):
    out = tmp_path / "out"
    assert protect(photos, "--out", out)[0] == 0
    path, before = out / manifests.NAME, saved(out)
    path.write_bytes(path.read_bytes()[:-30])
    assert len(read_lines(path)) == 3
    worked_on.clear()
    assert protect(photos, "--out", out)[0] == 0
    assert len(worked_on) == 1
    assert len(by_picture(out)) == 4
    assert saved(out) == before


@pytest.mark.parametrize(
    "content",
    ["hello\n", "[1]\n", '{"version": 99}\n', '{"version": 1, "command": "protect", "picture": 3, "settings": {}}\n'],
)
def test_what_is_no_manifest_stays_as_it_is(content, photos, protect, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / manifests.NAME).write_text(content)
    status, _, complaints = protect(photos, "--out", out)
    assert status == 2
    assert "no manifest" in complaints
    assert (out / manifests.NAME).read_text() == content


def test_a_picture_never_gets_a_second_line(tmp_path):
    line = {"command": "protect", "picture": "a", "settings": {}, "output": "a", "outputs": []}
    with Manifest(tmp_path / "m.jsonl") as manifest:
        manifest.append(line)
        with pytest.raises(AntiPureError, match="has a line"):
            manifest.append(line)
        manifest.begin([("protect", "a")], ["a"])
        manifest.append(line)
    assert len((tmp_path / "m.jsonl").read_bytes().splitlines()) == 1


def counted(monkeypatch, number: int, module, name: str, error: OSError) -> None:
    """The function fails from its so-and-so-manieth call on."""
    function, calls = getattr(module, name), [0]

    def fails(*arguments, **settings):
        calls[0] += 1
        if calls[0] >= number:
            raise error
        return function(*arguments, **settings)

    monkeypatch.setattr(module, name, fails)


def agree(out: Path) -> int:
    """The manifest tells of every output there is, and of no other; how many lines it has."""
    lines = by_picture(out)
    told = {output["path"] for line in lines.values() for output in line["outputs"]}
    assert told == saved(out).keys()
    return len(lines)


def test_a_full_disk_stops_the_run_with_one_sentence(photos, protect, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        write = places.write_file

        def full(path, content):
            if path.suffix == ".png" and len(saved(out)) == 2:
                raise AntiPureError(f"{path} cannot be written (No space left on device); free space.")
            write(path, content)

        patched.setattr(places, "write_file", full)
        status, told, complaints = protect(photos, "--out", out)
    assert status == 2
    assert complaints.count("\n") == 1
    assert "No space left" in complaints
    assert "not reached | 2" in " ".join(told.split())
    assert agree(out) == 2
    assert protect(photos, "--out", out)[0] == 0
    assert agree(out) == 4


def test_a_disk_that_is_full_for_the_manifest_alone(photos, protect, tmp_path, monkeypatch):
    """The output is there, its line is not: the next run finds the same bytes and says so in a line."""
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        counted(patched, 3, manifests.os, "write", OSError(errno.ENOSPC, "No space left on device"))
        status, _, complaints = protect(photos, "--out", out)
    assert status == 2
    assert "No space left" in complaints
    assert complaints.count("\n") == 1
    assert len(by_picture(out)) == 2
    assert len(saved(out)) == 3
    assert protect(photos, "--out", out)[0] == 0
    assert agree(out) == 4


def test_a_line_is_written_whole_or_not_at_all(photos, protect, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write = os.write

    def half(file, content):
        if b'"picture"' in content and len(lines_of(out)) == 2:
            write(file, content[:40])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    with monkeypatch.context() as patched:
        patched.setattr(manifests.os, "write", half)
        assert protect(photos, "--out", out)[0] == 2
    assert len(lines_of(out)) == 2  # every one of them JSON
    assert protect(photos, "--out", out)[0] == 0
    assert agree(out) == 4


@pytest.mark.parametrize("what", ["outputs", "inputs"])
def test_a_folder_that_vanishes_stops_the_run_with_one_sentence(what, photos, protect, tmp_path, monkeypatch):
    out, do, done = tmp_path / "out", Worker.do, [0]

    def vanishing(self, job):
        done[0] += 1
        if done[0] == 3:
            shutil.rmtree(out if what == "outputs" else photos)
        return do(self, job)

    with monkeypatch.context() as patched:
        patched.setattr(Worker, "do", vanishing)
        status, _, complaints = protect(photos, "--out", out)
    assert status == 2
    assert complaints.count("\n") == 1
    assert ("is gone" if what == "inputs" else "was removed") in complaints
    if what == "inputs":
        assert agree(out) == 2
    else:
        assert not out.exists() or not saved(out)


def test_outputs_of_a_killed_run_may_be_replaced_by_other_settings(photos, antipure, tmp_path, monkeypatch):
    """Killed between an output and its line, then run with other settings: the output is known to be a run's own."""
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(run, "_line", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert antipure("protect", photos, "--preset", "random", "--out", out)[0] == 130
    assert len(saved(out)) == 1
    assert lines_of(out) == []
    assert antipure("protect", photos, "--preset", "random", "--levels", 2, "--out", out)[0] == 0
    assert agree(out) == 4
    assert not list(out.glob(".*claims*"))


def test_outputs_of_a_killed_run_among_its_inputs_are_none_of_them(photos, protect, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(run, "_line", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert protect(photos, "--out", photos)[0] == 130
    assert (photos / "a_protected.png").exists()
    assert protect(photos, "--out", photos)[0] == 0
    assert len(lines_of(photos)) == 4
    assert len(list(photos.rglob("*_protected.png"))) == 4


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_kill_9_leaves_whole_files_and_the_same_command_ends_the_work(photos, protect, tmp_path):
    for i in range(30):
        Image.open(photos / "a.png").resize((64, 64 + i)).save(photos / f"more{i:02}.png")
    out, expected = tmp_path / "out", tmp_path / "expected"
    arguments = [sys.executable, "-m", "antipure.cli.main", "protect", str(photos), "--out", str(out)]
    process = subprocess.Popen([*arguments, "--preset", "random", "--levels", "4"], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(lines_of(out) if (out / manifests.NAME).exists() else []) < 5 and time.monotonic() < end:
        time.sleep(0.005)
    process.kill()
    process.wait()
    for path in out.rglob("*_protected.png"):
        with Image.open(path) as picture:
            picture.load()
    lines = read_lines(out / manifests.NAME)
    assert 5 <= len(lines) <= 34
    told = {output["path"] for line in lines for output in line["outputs"]}
    assert told <= saved(out).keys()
    assert len(saved(out)) <= len(told) + 1
    assert protect(photos, "--out", out)[0] == protect(photos, "--out", expected)[0] == 0
    assert saved(out) == saved(expected)
    assert agree(out) == 34
    assert json.dumps(sorted(by_picture(out))) == json.dumps(sorted(by_picture(expected)))


def test_disks_that_fill_up_are_said_by_the_one_place_that_writes(photos, protect, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        status, _, complaints = protect(photos, "--out", tmp_path / "out")
    assert status == 2
    assert "No space left" in complaints
    assert not saved(tmp_path / "out")
