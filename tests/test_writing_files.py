"""methods/files.py: nothing is lost and nothing half-written, whoever else writes."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from antipure.methods import files
from antipure.methods.errors import AntiPureError
from antipure.methods.files import check_writable, free_names, write_file, write_new


def numbered(folder: Path):
    return (folder / f"a{number}" for number in count(1))


def no_links(monkeypatch) -> None:
    """As on exFAT."""

    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", link)


def test_threads_writing_one_file_leave_one_of_their_contents(tmp_path):
    contents = [bytes([i]) * 200_000 for i in range(16)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda content: write_file(tmp_path / "a", content), contents * 5))
    assert (tmp_path / "a").read_bytes() in contents
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_new_files_never_take_the_place_of_others(tmp_path, monkeypatch, links):
    if not links:
        no_links(monkeypatch)
    (tmp_path / "a2").write_bytes(b"mine")
    with ThreadPoolExecutor(8) as threads:
        written = list(threads.map(lambda i: (write_new(numbered(tmp_path), b"%d" % i), i), range(60)))
    assert (tmp_path / "a2").read_bytes() == b"mine"
    assert all(path.read_bytes() == b"%d" % i for path, i in written)
    assert sorted(os.listdir(tmp_path)) == sorted(f"a{i}" for i in range(1, 62))


def test_a_link_that_leads_nowhere_is_not_followed(tmp_path):
    (tmp_path / "a1").symlink_to(tmp_path / "elsewhere")
    assert write_new(numbered(tmp_path), b"x") == tmp_path / "a2"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, links):
    if not links:
        no_links(monkeypatch)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for write in (lambda: write_file(tmp_path / "a", b"x"), lambda: write_new(numbered(tmp_path), b"x")):
        with pytest.raises(AntiPureError, match="No space left"):
            write()
    assert not os.listdir(tmp_path)


def test_names_as_long_as_the_disk_allows(tmp_path):
    write_file(tmp_path / ("n" * 255), b"x")
    assert write_new([tmp_path / ("m" * 255)], b"y").read_bytes() == b"y"
    with pytest.raises(AntiPureError, match="cannot be written"):
        write_file(tmp_path / ("n" * 256), b"x")


@pytest.mark.parametrize(
    ("name", "taken", "free"),
    [
        ("a.png", [], "a.png"),
        ("a.png", ["a.png", "a_2.png"], "a_3.png"),
        ("a.png", ["A.PNG"], "a_2.png"),
        ("a_00001_.png", ["a_00001_.png", "a_00003_.png"], "a_00002_.png"),
        ("a_99_.png", ["a_99_.png"], "a_100_.png"),
        ("a_1.png", ["a_1.png"], "a_1_2.png"),
        ("report", ["report"], "report_2"),
    ],
)
def test_names_count_on(tmp_path, name, taken, free):
    for file in taken:
        (tmp_path / file).touch()
    assert next(free_names(tmp_path / name)) == tmp_path / free


@pytest.mark.parametrize("folder", ["", "new", "new/and/deeper"])
def test_a_folder_that_can_be_written_is_not_made(tmp_path, folder):
    check_writable(tmp_path / folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["file", "file/below", "nowhere", "nowhere/below"])
def test_what_is_no_folder_cannot_be_written(tmp_path, folder):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(AntiPureError, match="cannot be written"):
        check_writable(tmp_path / folder)


def test_a_read_only_disk_is_noticed(tmp_path, monkeypatch):
    def read_only(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    with pytest.raises(AntiPureError, match="Read-only file system"):
        check_writable(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="to root every folder is open")
def test_a_closed_folder_is_noticed(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(AntiPureError, match="Permission denied"):
        check_writable(tmp_path / "below")
