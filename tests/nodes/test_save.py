"""Save Protected Picture: names after the input, the recipe or none, before beside after."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.cli.executor import Executor
from antipure.methods.errors import AntiPureError
from antipure.nodes import outputs
from antipure.nodes.save import SavePicture, source_name
from PIL import Image

PROMPT = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "holidays/sunset at sea.jpg [input]"}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "mask.png"}},
    "3": {"class_type": "AntiPureProtect", "inputs": {"denoiser": ["5", 0], "image": ["4", 0], "mask": ["2", 1]}},
    "4": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "width": 256}},
    "5": {"class_type": "AntiPureLoadDenoiser", "inputs": {"denoiser": "bundled"}},
    "6": {"class_type": "AntiPureSave", "inputs": {"image": ["3", 0], "original": ["1", 0]}},
}


def pictures(count: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (count, 9, 12, channels), generator=torch.Generator().manual_seed(1)).float() / 255


@pytest.fixture
def inside(comfyui, monkeypatch, tmp_path):
    """ComfyUI with folders and without --disable-metadata."""
    folders = sys.modules["folder_paths"]
    monkeypatch.setattr(folders, "get_temp_directory", lambda: str(tmp_path / "temp"), raising=False)
    arguments = types.ModuleType("comfy.cli_args")
    arguments.args = types.SimpleNamespace(disable_metadata=False)
    monkeypatch.setitem(sys.modules, "comfy.cli_args", arguments)
    return types.SimpleNamespace(output=tmp_path / "output", temp=tmp_path / "temp", args=arguments.args)


def save(image, prefix="antipure/%name%_protected", recipe=True, **more) -> list:
    told = {"node_id": "6", "prompt": PROMPT, "extra_pnginfo": {"workflow": {"nodes": []}}, **more}
    with torch.inference_mode():
        return SavePicture().save(image.clone(), prefix, recipe, **told)["ui"]


def test_named_after_the_picture_that_was_loaded(inside):
    ((entry,),) = save(pictures()).values()
    assert entry == {"filename": "sunset at sea_protected_00001_.png", "subfolder": "antipure", "type": "output"}
    with Image.open(inside.output / entry["subfolder"] / entry["filename"]) as file:
        assert (np.asarray(file) == (pictures()[0].numpy() * 255).round()).all()


def test_the_recipe_is_what_core_saves(inside):
    """LoadImage's own reader: two text chunks, whose JSON the frontend opens."""
    save(pictures())
    with Image.open(inside.output / "antipure" / "sunset at sea_protected_00001_.png") as file:
        assert {key: json.loads(text) for key, text in file.text.items()} == {
            "prompt": PROMPT,
            "workflow": {"nodes": []},
        }


@pytest.mark.parametrize("how", ["input", "--disable-metadata"])
def test_without_the_recipe_nothing_but_pixels_is_written(inside, how):
    inside.args.disable_metadata = how != "input"
    save(pictures(), recipe=how != "input")
    (path,) = (inside.output / "antipure").glob("*.png")
    with Image.open(path) as file:
        assert file.text == {}
    content = path.read_bytes()
    assert not any(word in content for word in (b"AntiPure", b"sunset", b"seed", b"prompt"))


def test_batches_are_numbered_and_nothing_is_replaced(inside):
    first, second = save(pictures(2))["images"], save(pictures(1))["images"]
    names = [entry["filename"] for entry in first + second]
    assert names == [f"sunset at sea_protected_{n:05}_.png" for n in (1, 2, 3)]


def test_alpha_is_saved_and_the_original_only_shown(inside):
    after, before = save(pictures(channels=4), original=1 - pictures())["images"]
    with Image.open(inside.output / "antipure" / after["filename"]) as file:
        assert file.mode == "RGBA"
    assert before["type"] == "temp"
    with Image.open(inside.temp / before["filename"]) as file:
        assert file.text == {}
        assert (np.asarray(file) == ((1 - pictures())[0].numpy() * 255).round()).all()
    assert len(list(inside.output.rglob("*.png"))) == 1


@pytest.mark.parametrize("prefix", ["../%name%", "a/../../%name%"])
def test_a_prefix_that_leads_elsewhere_is_refused(inside, prefix):
    with pytest.raises(AntiPureError, match="leads out of the output folder"):
        save(pictures(), prefix)
    assert not inside.output.exists() or not list(inside.output.rglob("*"))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        (PROMPT, "sunset at sea"),
        ({}, "picture"),
        ({"6": {"inputs": {"image": ["6", 0]}}}, "picture"),
        ({"6": {"inputs": {"image": ["1", 0]}}, "1": {"inputs": {"image": "C:\\art\\one.two.png"}}}, "one.two"),
        ({"6": {"inputs": {"image": ["1", 0]}}, "1": {"inputs": {"folder": "x"}}}, "picture"),
    ],
)
def test_the_name_is_found_along_the_wires(prompt, name):
    assert source_name(prompt, "6") == name


def test_names_stay_legal_everywhere(inside):
    prompt = {"6": {"inputs": {"image": ["1", 0]}}, "1": {"inputs": {"image": 'a:b?".png'}}}
    ((entry,),) = save(pictures(), prompt=prompt).values()
    assert entry["filename"] == "a_b___protected_00001_.png"


def test_from_the_shell(tmp_path):
    Image.new("RGB", (12, 9), (1, 2, 3)).save(tmp_path / "mine.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": str(tmp_path / "mine.png")}},
        "2": {
            "class_type": "AntiPureSave",
            "inputs": {"image": ["1", 0], "filename_prefix": "%name%_x", "recipe": True},
        },
    }
    (path,) = Executor(tmp_path / "out").run(prompt).files["2"]
    assert path == tmp_path / "out" / "mine_x_00001_.png"
    with Image.open(path) as file:
        assert file.getpixel((0, 0)) == (1, 2, 3)
        assert list(file.text) == ["prompt"]
    assert Path(path).parent == tmp_path / "out"
    assert outputs.preview_pictures(pictures()) == []
