"""nodes/model_folders.py: what is listed, what is found, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from antipure.methods.diffusion import checkpoints
from antipure.methods.errors import AntiPureError
from antipure.methods.generators import loading
from antipure.nodes import model_folders


def test_outside_comfyui_any_path_is_a_model():
    assert model_folders.list_models("denoisers") == ["bundled", "bundled_held_out", "bundled_judge"]
    assert model_folders.find_model("denoisers", "bundled") == checkpoints.BUNDLED
    assert model_folders.find_model("generators", "bundled") == loading.BUNDLED
    assert model_folders.find_model("denoisers", "some/file.pt") == Path("some/file.pt")


def test_models_folder_lists_files_and_folders_and_nothing_else(comfyui):
    (comfyui.folder / "faces" / "unet").mkdir(parents=True)
    (comfyui.folder / "faces" / "unet" / "weights.safetensors").touch()
    (comfyui.folder / "sub").mkdir()
    (comfyui.folder / "sub" / "adm.pt").touch()
    (comfyui.folder / "notes.txt").touch()
    assert model_folders.list_models("denoisers") == [
        "bundled",
        "bundled_held_out",
        "bundled_judge",
        "faces",
        "sub/adm.pt",
    ]
    assert model_folders.find_model("denoisers", "sub/adm.pt") == comfyui.folder / "sub" / "adm.pt"


def test_insightface_packs_are_found_where_other_packs_put_them(comfyui):
    for name, file in (("buffalo_l", "det_10g.onnx"), ("antelopev2", "scrfd_10g_bnkps.onnx"), ("other", "x.onnx")):
        folder = comfyui.folder.parent / "insightface" / "models" / name
        folder.mkdir(parents=True)
        (folder / file).touch()
    (comfyui.folder.parent / "insightface" / "inswapper_128.onnx").touch()
    assert model_folders.list_models("faces") == ["models/antelopev2", "models/buffalo_l"]
    with pytest.raises(AntiPureError, match="no face model 'models/other' in models/insightface"):
        model_folders.find_model("faces", "models/other")


@pytest.mark.parametrize("name", ["../secret.pt", "/etc/passwd", "notes.txt", ""])
def test_names_that_are_not_listed_are_refused_inside_comfyui(comfyui, name):
    comfyui.folder.mkdir()
    (comfyui.folder / "notes.txt").touch()
    (comfyui.folder.parent / "secret.pt").touch()
    with pytest.raises(AntiPureError, match="no denoiser"):
        model_folders.find_model("denoisers", name)


def test_comfyui_learns_of_every_folder_and_of_saved_patches(comfyui, monkeypatch):
    added = []
    monkeypatch.setattr(sys.modules["folder_paths"], "add_model_folder_path", lambda *pair: added.append(pair), False)
    model_folders.register_model_folders()
    root = comfyui.folder.parent
    names = ("antipure", "antipure_generators", "antipure_patches", "antipure_encoders", "insightface")
    expected = {(name, str(root / name)) for name in names}
    assert set(added) == expected | {("antipure_patches", str(root / "output" / "antipure_patches"))}
    assert len(added) == 6
