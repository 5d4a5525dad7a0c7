"""methods/file_names.py, and where names of files are made: legal everywhere, and the same where they were legal."""

from __future__ import annotations

import ntpath
import os
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from antipure.cli.core_nodes import SaveImage
from antipure.cli.main import _protect, _purify, build_parser
from antipure.cli.report import REPORT, SHEET, report_prompt, write_report
from antipure.cli.result import Result
from antipure.methods.errors import AntiPureError
from antipure.methods.file_names import legal_name, legal_path
from antipure.methods.files import free_names, write_new
from antipure.nodes.outputs import output_folder, save_new, saved_path
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

PIXELS = torch.zeros(1, 8, 8, 3)
NAMES = st.text(st.sampled_from('conCOMnul1². .ab_-é:*?"<>|/\\\x01\n$'), min_size=1, max_size=12)


def is_legal(name: str) -> bool:
    """Windows' rules, those about devices by Python itself."""
    odd = any(ord(c) < 32 or c in '"*:<>?|/\\' for c in name) or name.endswith((".", " "))
    is_reserved = getattr(
        ntpath, "isreserved", lambda name: PureWindowsPath(name).is_reserved()
    )  # newer, older Pythons
    return not odd and not is_reserved(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("con", "_con"),
        ("Com1.tar.png", "_Com1.tar.png"),
        ("LPT².txt", "_LPT².txt"),
        ("nul .png", "_nul .png"),
        ("CONOUT$", "_CONOUT$"),
        ("a:b", "a_b"),
        ("A?", "A_"),
        ('<"x"|*>', "__x____"),
        ("a\\b/c", "a_b_c"),
        ("a\n\x1f\0b", "a___b"),
        ("x.", "x"),
        ("x . .", "x"),
        ("...", "_"),
        ("con:", "con_"),
        ("con.", "_con"),
    ],
)
def test_illegal_names(name, expected):
    assert not is_legal(name)
    assert legal_name(name) == expected
    assert is_legal(expected)


@pytest.mark.parametrize(
    "name",
    ["a_00001_.png", ".hidden", " a", "con_00001_.png", "com10", "COM", "nulls.txt", "a b.c d", "日本 (2).jpg", "é🎨"],
)
def test_legal_names_stay(name):
    assert is_legal(name)
    assert legal_name(name) == name


@settings(max_examples=300, deadline=None)
@given(NAMES)
def test_every_name_becomes_legal_once(name):
    made = legal_name(name)
    assert is_legal(made)
    assert made == name or not is_legal(name)
    assert legal_name(made) == made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "a.png"),
        ("a/b", "a/b.png"),
        ("a\\b", "a/b.png"),
        ("C:\\x\\y", "C_/x/y.png"),
        ("con/nul/aux", "_con/_nul/_aux.png"),
        ("a?./b:", "a_/b_.png"),
        ("a/../b/./c/", "b/c.png"),
        (" nul /x.", " nul/x..png"),
    ],
)
def test_folders_are_kept(tmp_path, text, expected):
    assert legal_path(tmp_path, text, ".png") == tmp_path / expected


@pytest.mark.parametrize(
    "text", ["", " ", ".", "..", "a/..", "../a", "..\\a", "a/../../b", "/a", "\\a", "\\\\host\\a", "a\0", "a:/../../b"]
)
def test_what_leads_elsewhere_is_none(tmp_path, text):
    assert legal_path(tmp_path, text) is None


def test_links_that_lead_elsewhere_are_none(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    assert legal_path(tmp_path / "root", "link/a") is None


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("con", "con_00001_.png"),  # a number follows: legal as it is
        ("con.v2", "_con.v2_00001_.png"),
        ("a:b", "a_b_00001_.png"),
        ("x.", "x._00001_.png"),
        (" nul ", " nul _00001_.png"),
        ("A?", "A__00001_.png"),
        ("aux/a:b/c", "_aux/a_b/c_00001_.png"),
        ("", "_00001_.png"),
        ("sub/", "sub/_00001_.png"),
        ("..", ".._00001_.png"),
        ("a b/ü", "a b/ü_00001_.png"),
    ],
)
def test_pictures_are_saved_under_legal_names(tmp_path, prefix, expected):
    assert SaveImage.VALIDATE_INPUTS(filename_prefix=prefix) is True
    assert SaveImage(tmp_path).save(PIXELS, prefix)["ui"]["files"] == [tmp_path / expected]
    assert all(is_legal(part) for part in Path(expected).parts)


@pytest.mark.parametrize("prefix", ["../x", "..\\x", "/x", "\\x", "a/../../x", "x\0"])
def test_pictures_stay_in_their_folder(tmp_path, prefix):
    with pytest.raises(AntiPureError, match="leads out of the output folder"):
        SaveImage(tmp_path / "out").save(PIXELS, prefix)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("name", "state", "patch"),
    [
        ("con", "_con.state", "con_00001.st"),
        ("a:b", "a_b.state", "a_b_00001.st"),
        ("nul/A?", "_nul/A_.state", "_nul/A__00001.st"),
        ("b.v2", "b.v2.state", "b.v2_00001.st"),
        ("nul.v2", "_nul.v2.state", "_nul.v2_00001.st"),
    ],
)
def test_what_nodes_save_has_legal_names(tmp_path, name, state, patch):
    with output_folder(tmp_path):
        assert saved_path(name, ".state") == tmp_path / "antipure_patches" / state
        assert save_new(name, ".st", b"x") == tmp_path / "antipure_patches" / patch


@pytest.mark.parametrize(
    ("picture", "stem"), [("p/con.png", "con"), ("a:b?.png", "a_b_"), ("a\\b.png", "a_b"), ("nul.v2.png", "_nul.v2")]
)
def test_pictures_hand_legal_names_on(picture, stem):
    """Also to a server, which may run on Windows."""
    parse = build_parser().parse_args
    assert _protect(parse(["protect", picture]))["4"]["inputs"]["filename_prefix"] == f"{stem}_protected"
    assert _purify(parse(["purify", picture]))["4"]["inputs"]["filename_prefix"] == f"{stem}_purified"
    assert report_prompt(picture, [])[SHEET]["inputs"]["filename_prefix"] == f"{stem}_robustness"


# Upper and lower case --------------------------------------------------------------------------------------------


def simulate_one_case(monkeypatch, links: bool) -> None:
    """As on Windows and macOS, a name in capitals is the same file. links: whether the disk has hard links."""
    calls = {name: getattr(os, name) for name in ("link", "replace", "open")}

    def there(path) -> Path:
        path = Path(path)
        names = {name.casefold(): name for name in os.listdir(path.parent)}
        return path.with_name(names.get(path.name.casefold(), path.name))

    def link(source, target):
        if not links:
            raise OSError("not supported")
        calls["link"](source, there(target))

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", lambda source, target: calls["replace"](source, there(target)))
    monkeypatch.setattr(os, "open", lambda path, *rest, **named: calls["open"](there(path), *rest, **named))


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def one_case(request, monkeypatch):
    simulate_one_case(monkeypatch, request.param)


@pytest.fixture(params=[None, True, False], ids=["two cases", "one case", "one case, no links"])
def disk(request, monkeypatch):
    if request.param is not None:
        simulate_one_case(monkeypatch, request.param)


def test_the_simulated_disk_has_one_case(one_case, tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError):
        os.open(tmp_path / "A", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


@pytest.mark.usefixtures("one_case")
def test_names_are_never_taken_on_a_disk_of_one_case(tmp_path):
    """Whatever the listing said before: here it is empty."""
    assert write_new([tmp_path / "a.png"], b"1").name == "a.png"
    assert write_new([tmp_path / "A.png", tmp_path / "A_2.png"], b"2").name == "A_2.png"
    assert (tmp_path / "a.png").read_bytes() == b"1"


@pytest.mark.usefixtures("disk")
def test_names_of_two_cases_are_told_apart_on_every_disk(tmp_path):
    saved = []
    for value, prefix in enumerate(("face", "Face", "FACE", "face")):
        batch = torch.full((2, 8, 8, 3), value / 255)
        saved += SaveImage(tmp_path).save(batch, prefix)["ui"]["files"]
    names = ["face_00001_", "face_00002_", "Face_00003_", "Face_00004_", "FACE_00005_", "FACE_00006_"]
    assert [path.stem for path in saved] == [*names, "face_00007_", "face_00008_"]
    assert [int(np.asarray(Image.open(path)).max()) for path in saved] == [0, 0, 1, 1, 2, 2, 3, 3]
    with output_folder(tmp_path):
        paths = [save_new(name, ".st", name.encode()) for name in ("patch", "Patch", "PATCH")]
    assert [path.name for path in paths] == ["patch_00001.st", "Patch_00002.st", "PATCH_00003.st"]
    assert [path.read_bytes() for path in paths] == [b"patch", b"Patch", b"PATCH"]
    assert next(free_names(tmp_path / "FACE_00001_.PNG")).name == "FACE_00009_.PNG"


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("there", ["REPORT.md", "Report.json"])
def test_both_files_of_a_report_get_the_number_that_neither_case_has(tmp_path, there):
    (tmp_path / there).write_bytes(b"mine")
    result = Result(ui={REPORT: {"report": [{"a": 1}], "markdown": ["table"]}})
    assert f"{tmp_path / 'report_2.json'}\n{tmp_path / 'report_2.md'}" in write_report(result, tmp_path)
    assert (tmp_path / there).read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == sorted([there, "report_2.json", "report_2.md"])
