"""`antipure verify`: what it finds, on folders of the command and of a ComfyUI."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from antipure.cli.core_nodes import LoadImage
from antipure.cli.graph import read_workflow
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .conftest import lines_of, pixels


@pytest.fixture
def made(photos, protect, tmp_path) -> Path:
    assert protect(photos, "--out", tmp_path / "out")[0] == 0
    return tmp_path / "out"


def checks(told: str) -> dict[str, dict[str, int]]:
    return json.loads(told)["checks"]


def test_what_was_just_made_is_as_it_should_be(made, antipure):
    status, told, complaints = antipure("verify", made, "--sample", 2, "--json")
    assert (status, complaints) == (0, "")
    assert checks(told) == {
        "checksum": {"as it should be": 4},
        "budget": {"as it should be": 4},
        "same seed again": {"as it should be": 2},
    }
    assert "as it should be" in antipure("verify", made, "--sample", 0)[1]


def test_a_changed_a_missing_and_a_strange_picture_are_found(made, antipure):
    array = np.asarray(Image.open(made / "a_protected.png")).copy()
    array[0, 0] ^= 1
    Image.fromarray(array).save(made / "a_protected.png")
    (made / "b_protected.png").unlink()
    shutil.copy(made / "deep" / "d_protected.png", made / "stranger.png")
    status, told, _ = antipure("verify", made, "--json")
    assert status == 1
    problems = " ".join(json.loads(told)["problems"])
    assert "a_protected.png was changed" in problems
    assert "b_protected.png is missing" in problems
    assert "stranger.png is in the folder" in problems
    assert checks(told)["checksum"]["wrong"] == 3


def forge(made: Path, change) -> None:
    """Rewrite the first line and its picture, so that checksums agree and nothing else does."""
    import hashlib

    lines = lines_of(made)
    change(lines[0])
    path = made / lines[0]["outputs"][0]["path"]
    lines[0]["outputs"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (made / "antipure_manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_picture_beyond_its_budget_is_found(made, antipure):
    def louder(line):
        path = made / line["outputs"][0]["path"]
        array = pixels(path)
        array[3, 4, 1] = (array[3, 4, 1] + 100) % 256
        Image.fromarray(array.astype(np.uint8)).save(path)

    forge(made, louder)
    status, told, _ = antipure("verify", made, "--sample", 0)
    assert status == 1
    assert "of 4 levels" in told


def test_a_picture_that_its_seed_does_not_give_is_found(made, antipure):
    forge(made, lambda line: line["settings"].update(seed=9))
    status, told, _ = antipure("verify", made, "--sample", 1, "--json")
    assert status == 1
    assert checks(told)["same seed again"] == {"wrong": 1}


def test_another_machine_may_round_otherwise_and_is_named(made, antipure):
    def elsewhere(line):
        line["settings"]["seed"] = 9
        line["made_on"]["torch"] = "1.0"

    forge(made, elsewhere)
    status, told, _ = antipure("verify", made, "--sample", 1, "--json")
    assert status == 0
    assert checks(told)["same seed again"] == {"could not be checked": 1}
    assert "torch 1.0 then" in told


def test_originals_that_are_gone_are_said(made, photos, antipure):
    shutil.rmtree(photos)
    status, told, _ = antipure("verify", made, "--json")
    assert status == 0
    assert checks(told)["budget"] == {"could not be checked": 4}
    assert checks(told)["checksum"] == {"as it should be": 4}


def test_nothing_to_check_by_is_a_sentence(tmp_path, antipure):
    (tmp_path / "empty").mkdir()
    status, _, complaints = antipure("verify", tmp_path / "empty")
    assert status == 2
    assert "There is no manifest" in complaints
    assert antipure("verify", tmp_path / "empty", "--sample", -1)[0] == 2


@pytest.fixture
def comfyui(tmp_path, antipure, monkeypatch):
    """Pictures as ComfyUI's folder workflow saves them: in some order, numbered, with the workflow in every PNG."""
    originals, saved = tmp_path / "input", tmp_path / "output"
    originals.mkdir()
    saved.mkdir()
    random = np.random.default_rng(0)
    for name in ("z", "m", "a"):
        Image.fromarray(random.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(originals / f"{name}.png")
    prompt = read_workflow("folder_protect")
    (node,) = (i for i, each in prompt.items() if each["class_type"] == "AntiPureProtect")
    prompt[node]["inputs"].update(preset="random", levels=4.0, seed=7)
    from antipure.nodes.protect import Protect

    for number, name in enumerate(("m", "a", "z"), 1):
        image, _ = LoadImage().load(str(originals / f"{name}.png"))
        given = {key: value for key, value in prompt[node]["inputs"].items() if not isinstance(value, list)}
        result = Protect().protect(image=image, denoiser=None, **given)[0]
        information = PngInfo()
        information.add_text("prompt", json.dumps(prompt))
        array = np.clip(255.0 * result[0].numpy(), 0, 255).astype(np.uint8)
        Image.fromarray(array).save(saved / f"protected_{number:05}_.png", pnginfo=information)
    return originals, saved


def test_a_folder_that_a_comfyui_saved(comfyui, antipure):
    originals, saved = comfyui
    status, told, complaints = antipure("verify", saved, "--originals", originals, "--sample", 3, "--json")
    assert (status, complaints) == (0, "")
    assert checks(told) == {
        "checksum": {"as it should be": 3},
        "budget": {"as it should be": 3},
        "same seed again": {"as it should be": 3},
    }


def test_strangers_and_damage_in_a_comfyuis_folder(comfyui, antipure):
    originals, saved = comfyui
    (originals / "a.png").unlink()
    content = (saved / "protected_00003_.png").read_bytes()
    (saved / "protected_00003_.png").write_bytes(content[:-200] + bytes(100) + content[-100:])
    Image.new("RGB", (9, 9)).save(saved / "plain.png")
    status, told, _ = antipure("verify", saved, "--originals", originals, "--sample", 0)
    assert status == 1
    assert "protected_00002_.png is within 4 levels of no original" in told
    assert "protected_00003_.png is a truncated or damaged picture" in told
    assert "plain.png holds no workflow" in told
