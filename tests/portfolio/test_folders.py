"""Many pictures with one command: which are found, what their outputs are called, what is written down."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from antipure.cli.main import main
from antipure.methods.pictures import random_stream
from PIL import Image

from .conftest import by_picture, lines_of, pixels, saved

NAMES = ["a_protected.png", "b_protected.png", "deep/d_protected.png", "deep/er/c_protected.png"]
needs_permissions = pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions bind nobody here"
)


def test_a_folder_keeps_its_structure_and_every_picture_its_budget(photos, protect, tmp_path):
    out = tmp_path / "out"
    status, told, complaints = protect(photos, "--out", out)
    assert (status, complaints) == (0, "")
    assert list(saved(out)) == NAMES
    for line in lines_of(out):
        before, after = pixels(photos / line["picture"]), pixels(out / line["outputs"][0]["path"])
        change = np.abs(after - before)
        assert change.max() == line["figures"]["levels"] == 4
        psnr = 10 * np.log10(255**2 / (change.astype(float) ** 2).mean())
        assert line["figures"]["psnr"] == pytest.approx(psnr, abs=1e-3)
        assert line["input_sha256"] == hashlib.sha256((photos / line["picture"]).read_bytes()).hexdigest()
        content = (out / line["outputs"][0]["path"]).read_bytes()
        assert line["outputs"][0]["sha256"] == hashlib.sha256(content).hexdigest()
        assert (out / line["input"]).resolve() == (photos / line["picture"]).resolve()
    assert "done" in told


def test_the_outputs_are_those_of_the_pictures_one_by_one(photos, protect, tmp_path):
    """Pixels of today's single calls; their files are called and numbered as ever, and nothing is written down."""
    out, single = tmp_path / "out", tmp_path / "single"
    assert protect(photos, "--out", out)[0] == 0
    for name in ("a.png", "b.jpg", "deep/d.bmp"):
        assert protect(photos / name, "--out", single)[0] == 0
        made = single / f"{Path(name).stem}_protected_00001_.png"
        assert np.array_equal(pixels(made), pixels(out / f"{Path(name).with_suffix('')}_protected.png"))
    assert not list(single.glob("*.jsonl"))


def test_files_globs_lists_and_standard_input_name_the_same_pictures(photos, protect, tmp_path, monkeypatch):
    assert protect(photos, "--out", tmp_path / "folder")[0] == 0
    expected = saved(tmp_path / "folder")
    names = [str(path) for path in sorted(photos.rglob("*.*"))]
    listed = tmp_path / "list.txt"
    listed.write_text("# my pictures\n\n" + "\n".join(names), encoding="utf-8")
    ways = {
        "files": names,
        "glob": [str(photos / "**" / "*.*")],
        "list": [f"@{listed}"],
        "lines": ["-"],
        "nuls": ["-"],
        "file address": [photos.as_uri()],
    }
    for way, arguments in ways.items():
        content = ("\0" if way == "nuls" else "\n").join(names).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert protect(*arguments, "--out", tmp_path / way)[0] == 0, way
        assert saved(tmp_path / way) == expected, way
        assert {line["picture"] for line in lines_of(tmp_path / way)} == {
            path.relative_to(photos).as_posix() for path in photos.rglob("*.*")
        }


def test_two_folders_keep_their_names(photos, protect, tmp_path):
    shutil.copytree(photos, tmp_path / "more")
    assert protect(photos, tmp_path / "more", "--out", tmp_path / "out")[0] == 0
    assert list(saved(tmp_path / "out")) == sorted(
        f"{folder}/{name}" for folder in ("photos", "more") for name in NAMES
    )


def test_pictures_that_would_share_a_name_get_their_endings_too(photos, protect, tmp_path):
    shutil.copy(photos / "a.png", photos / "b.png")
    assert protect(photos, "--out", tmp_path / "out")[0] == 0
    assert {"b_jpg_protected.png", "b_png_protected.png"} <= saved(tmp_path / "out").keys()


def test_a_name_once_given_stays_when_another_picture_comes(photos, protect, tmp_path):
    out = tmp_path / "out"
    assert protect(photos, "--out", out)[0] == 0
    first = saved(out)
    shutil.copy(photos / "a.png", photos / "b.png")
    assert protect(photos, "--out", out)[0] == 0
    assert saved(out).keys() - first.keys() == {"b_png_protected.png"}
    assert first.items() <= saved(out).items()


def test_names_are_legal_everywhere_and_not_too_long(photos, protect, tmp_path):
    long = "x" * 200
    shutil.copy(photos / "a.png", photos / f"{long}.png")
    (photos / "con").mkdir()
    shutil.copy(photos / "a.png", photos / "con" / "nul.png")
    assert protect(photos, "--out", tmp_path / "out")[0] == 0
    names = saved(tmp_path / "out")
    assert "_con/nul_protected.png" in names
    assert all(len(part) < 200 for name in names for part in name.split("/"))


def test_what_is_no_picture_by_its_name_is_left_out_and_said(photos, protect, tmp_path):
    (photos / "notes.txt").write_text("x")
    (photos / ".hidden.png").write_text("x")
    status, _, complaints = protect(photos, "--out", tmp_path / "out")
    assert status == 0
    assert complaints == "antipure: 1 file is left out, being no pictures by their names.\n"


def test_outputs_among_the_inputs_are_none_the_next_time(photos, protect, tmp_path):
    assert protect(photos, "--out", photos)[0] == 0
    first = saved(photos)
    status, told, complaints = protect(photos, "--out", photos)
    assert (status, saved(photos)) == (0, first)
    assert "4 files are left out, being outputs of earlier runs" in complaints
    assert "finished before | 4" in " ".join(told.split())


def test_an_input_is_never_overwritten(photos, protect, tmp_path):
    shutil.copy(photos / "a.png", photos / "a_protected.png")
    before = saved(photos)
    status, _, complaints = protect(photos, "--out", photos)
    assert status == 2
    assert "is an input" in complaints
    assert saved(photos) == before


def test_a_file_that_no_run_made_is_never_overwritten(photos, protect, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_protected.png").write_bytes(b"somebody's")
    status, _, complaints = protect(photos, "--out", out)
    assert status == 1
    assert "is there already" in complaints
    assert (out / "a_protected.png").read_bytes() == b"somebody's"
    assert len(saved(out)) == 4
    (out / "a_protected.png").unlink()
    assert protect(photos, "--out", out, "--retry")[0] == 0


@pytest.mark.parametrize("command", ["protect", "purify", "measure", "report"])
def test_nothing_found_is_a_sentence(command, antipure, tmp_path):
    (tmp_path / "empty").mkdir()
    more = [tmp_path / "empty"] if command == "measure" else []
    status, _, complaints = antipure(command, tmp_path / "empty", *more, "--out", tmp_path / "out")
    assert status == 2
    assert "no picture" in complaints
    assert complaints.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["@missing.txt"], "missing.txt cannot be read"),
        (["nothing*.png"], "No file matches"),
        (["photos", "--workers", "0"], "--workers is 0"),
        (["photos", "--threads", "-1"], "--threads is -1"),
        (["photos", "--address", "auto"], "--engine ray"),
        (["photos", "--levels", "900"], "levels"),
        (["photos", "--preset", "best"], "preset"),
        (["photos", "--denoiser", "nothing.pt"], "nothing.pt"),
        (["photos", "--out", "file"], "cannot be written"),
        (["photos", "--out", "file/below"], "cannot be written"),
        (["photos", "--manifest", "file/below.jsonl"], "cannot be written"),
        (["photos", "--manifest", "file"], "no manifest"),
        (["photos", "--out", "memory://out"], "--manifest"),
    ],
)
def test_mistakes_are_found_before_the_first_picture(arguments, sentence, photos, antipure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("hello\n")
    out = [] if "--out" in arguments else ["--out", "out"]
    preset = [] if "--preset" in arguments else ["--preset", "random"]
    status, _, complaints = antipure("protect", *arguments, *out, *preset)
    assert status == 2
    assert sentence in complaints
    assert complaints.count("\n") == 1
    assert not saved(tmp_path / "out") if (tmp_path / "out").exists() else True
    assert Path("file").read_text() == "hello\n"


@needs_permissions
def test_a_folder_without_permission_is_found_before_the_first_picture(photos, protect, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    status, _, complaints = protect(photos, "--out", out)
    assert status == 2
    assert "cannot be written" in complaints


def test_one_bad_picture_stops_no_other(photos, protect, tmp_path):
    (photos / "bad.png").write_bytes(b"no picture")
    (photos / "deep" / "cut.png").write_bytes((photos / "a.png").read_bytes()[:300])
    status, told, complaints = protect(photos, "--out", tmp_path / "out")
    assert status == 1
    assert list(saved(tmp_path / "out")) == NAMES
    found = by_picture(tmp_path / "out")
    assert "not a picture" in found["bad.png"]["error"]
    assert "truncated" in found["deep/cut.png"]["error"]
    assert found["bad.png"]["outputs"] == []
    assert complaints.count("\n") == 2
    assert "failed | 2" in " ".join(told.split())


def test_purify_takes_folders(photos, antipure, tmp_path):
    settings = ["--iterations", 1, "--timestep", 2]
    status, _, _ = antipure("purify", photos / "a.png", photos / "b.jpg", *settings, "--out", tmp_path / "out")
    assert status == 0
    assert list(saved(tmp_path / "out")) == ["a_purified.png", "b_purified.png"]
    assert antipure("purify", photos / "a.png", *settings, "--out", tmp_path / "single")[0] == 0
    single = pixels(tmp_path / "single" / "a_purified_00001_.png")
    assert np.array_equal(single, pixels(tmp_path / "out" / "a_purified.png"))


def test_measure_pairs_pictures_by_their_names(photos, protect, antipure, tmp_path):
    assert protect(photos, "--out", tmp_path / "out")[0] == 0
    status, told, _ = antipure("measure", photos, tmp_path / "out", "--json")
    assert status == 0
    found = {each["picture"]: each for each in json.loads(told)}
    assert found.keys() == set(NAMES)
    for line in lines_of(tmp_path / "out"):
        assert found[line["outputs"][0]["path"]]["levels"] == 4
    single = json.loads(antipure("measure", photos / "a.png", tmp_path / "out" / "a_protected.png", "--json")[1])
    assert found["a_protected.png"]["psnr"] == single["psnr"]
    status, told, complaints = antipure("measure", photos / "deep", tmp_path / "out", "--out", tmp_path / "kept")
    assert status == 2
    assert "original" in complaints
    (tmp_path / "out" / "stranger.png").write_bytes((tmp_path / "out" / "a_protected.png").read_bytes())
    status, told, complaints = antipure("measure", photos, tmp_path / "out", "--out", tmp_path / "kept")
    assert status == 1
    assert complaints == "antipure: stranger.png has no original by its name.\n"
    assert len(lines_of(tmp_path / "kept")) == 4


def test_reports_of_several_pictures(photos, protect, antipure, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    shutil.copy(photos / "a.png", small)
    shutil.copy(photos / "b.jpg", small)
    assert protect(small, "--out", tmp_path / "made")[0] == 0
    settings = ["--purifiers", "jpeg75", "--curve", 0, "--held-out", "none"]
    status, _, complaints = antipure("report", small, tmp_path / "made", *settings, "--out", tmp_path / "out", "--page")
    assert (status, complaints) == (0, "")
    assert {f"{name}_robustness.{kind}" for name in "ab" for kind in ("png", "json", "md")} < saved(
        tmp_path / "out"
    ).keys()
    assert len(json.loads((tmp_path / "out" / "a_robustness.json").read_text())["protections"]) >= 1
    page = (tmp_path / "out" / "antipure_page.html").read_text()
    assert page.count("<details") == 2
    assert all(line["figures"]["verdict"] in page.replace("&#x27;", "'") for line in lines_of(tmp_path / "out"))


def test_every_frame_is_a_picture_with_a_number(protect, tmp_path):
    frames = [Image.fromarray(np.full((12, 12, 3), 60 * i, np.uint8)) for i in range(3)]
    (tmp_path / "in").mkdir()
    frames[0].save(tmp_path / "in" / "pages.tif", save_all=True, append_images=frames[1:])
    status, _, complaints = protect(tmp_path / "in", "--out", tmp_path / "out")
    assert status == 0
    assert list(saved(tmp_path / "out")) == [f"pages_protected_0000{i}.png" for i in (1, 2, 3)]
    for i in range(3):
        assert np.abs(pixels(tmp_path / "out" / f"pages_protected_0000{i + 1}.png") - 60 * i).max() == 4
    assert "3 frames" in complaints
    assert "3 frames" in lines_of(tmp_path / "out")[0]["notes"][0]


@pytest.mark.parametrize(("mode", "told"), [("CMYK", "is of mode CMYK"), ("P", "has a palette"), ("I;16", "16 bits")])
def test_what_is_converted_is_said_once_and_written_down(mode, told, protect, tmp_path):
    (tmp_path / "in").mkdir()
    if mode == "I;16":
        Image.fromarray(np.full((12, 12), 30000, np.uint16)).save(tmp_path / "in" / "x.tif")
    else:
        Image.new("RGB", (12, 12), (90, 20, 30)).convert(mode).save(tmp_path / "in" / "x.tif")
    _, _, complaints = protect(tmp_path / "in", "--out", tmp_path / "out")
    assert complaints.count(told) == 1
    assert told in lines_of(tmp_path / "out")[0]["notes"][0]


def test_alpha_and_profile_stay_as_in_single_calls(protect, tmp_path):
    from PIL import ImageCms

    array = np.zeros((20, 20, 4), np.uint8)
    array[..., :3] = torch_noise(20)
    array[:10, :, 3] = 255
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "in").mkdir()
    Image.fromarray(array).save(tmp_path / "in" / "x.png", icc_profile=profile, dpi=(300, 300))
    assert protect(tmp_path / "in", "--out", tmp_path / "out")[0] == 0
    assert protect(tmp_path / "in" / "x.png", "--out", tmp_path / "single")[0] == 0
    made = (tmp_path / "out" / "x_protected.png").read_bytes()
    assert made == (tmp_path / "single" / "x_protected_00001_.png").read_bytes()
    picture = Image.open(io.BytesIO(made))
    assert picture.info["icc_profile"] == profile
    assert np.array_equal(np.asarray(picture)[10:], array[10:])


def torch_noise(side: int) -> np.ndarray:
    import torch

    return torch.randint(0, 256, (side, side, 3), generator=random_stream(3)).numpy().astype(np.uint8)


def test_options_stand_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["protect", "--help"])
    told = capsys.readouterr().out
    assert all(option in told for option in ("--workers", "--engine", "--retry", "--keep-exif", "--manifest", "--page"))
