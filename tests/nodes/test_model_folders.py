"""nodes/model_folders.py: what is listed, what is found, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from antipure.methods.diffusion import checkpoints
from antipure.methods.errors import AntiPureError
from antipure.methods.generators import loading
from antipure.nodes import NODE_CLASS_MAPPINGS, model_folders


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
    packs = ["models/antelopev2", "models/buffalo_l"]
    assert model_folders.list_models("faces") == ["bundled_portraits", *packs]
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


# Every node with an input that lists models, and the folder of that kind.
LOADERS = {
    ("AntiPureLoadDenoiser", "denoiser"): "antipure",
    ("AntiPureLoadGenerator", "generator"): "antipure_generators",
    ("AntiPureLoadLoraPatch", "patch"): "antipure_patches",
    ("AntiPureLoadVisualEncoder", "encoder"): "antipure_encoders",
    ("AntiPureFaceMetrics", "pack"): "insightface",
    ("AntiPureQualityMetrics", "clip"): "antipure_encoders",
}
PARTS = {"antipure": "unet/weights.safetensors", "antipure_generators": None, "insightface": "det_10g.onnx"}
PARTS |= {"antipure_patches": "adapter_config.json", "antipure_encoders": "config.json"}


def test_no_loader_is_forgotten(comfyui):
    """Models of every kind lie in their folders: an input that offers one belongs to a node that notices changes."""
    for kind in model_folders.KINDS.values():
        folder = comfyui.folder.parent / kind.folder
        folder.mkdir(parents=True, exist_ok=True)
        if kind.suffixes:
            (folder / f"mark{kind.suffixes[0]}").touch()
        else:
            (folder / "mark").mkdir()
            (folder / "mark" / "det_1.onnx").touch()
    found = set()
    for name, node in NODE_CLASS_MAPPINGS.items():
        for inputs in node.INPUT_TYPES().values():
            for key, declared in inputs.items():
                options = declared[0] if isinstance(declared[0], (list, tuple)) else declared[-1]
                offered = options.get("options", []) if isinstance(options, dict) else options
                if any(str(option).startswith("mark") for option in offered):
                    found.add((name, key))
    assert found == set(LOADERS)


@pytest.mark.parametrize(("node", "key"), LOADERS)
@pytest.mark.parametrize("form", ["file", "folder"])
def test_replaced_models_are_noticed(comfyui, node, key, form):
    folder, node = comfyui.folder.parent / LOADERS[node, key], NODE_CLASS_MAPPINGS[node]
    if form == "folder" and PARTS[folder.name] is None or form == "file" and folder.name == "insightface":
        pytest.skip("no model of this kind has this form")
    name = "model" if form == "folder" else "model.safetensors"
    path = folder / name / PARTS[folder.name] if form == "folder" else folder / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"first")
    os.utime(path, ns=(10**18, 10**18))
    others = {k: None for inputs in node.INPUT_TYPES().values() for k in inputs if k != key}  # as the shell gives them
    before = node.IS_CHANGED(**{key: name})
    assert before == node.IS_CHANGED(**{key: name}, **others), "nothing changed"
    path.write_bytes(b"again")
    os.utime(path, ns=(10**18 + 1, 10**18 + 1))
    replaced = node.IS_CHANGED(**{key: name})
    assert replaced != before
    (path.parent / "new.safetensors").write_bytes(b"")
    assert (node.IS_CHANGED(**{key: name}) != replaced) == (form == "folder")
    path.write_bytes(b"longer")
    os.utime(path, ns=(10**18 + 1, 10**18 + 1))
    assert node.IS_CHANGED(**{key: name}) != replaced


@pytest.mark.parametrize(("node", "key"), LOADERS)
@pytest.mark.parametrize("inside", [True, False])
def test_what_names_no_model_does_not_stop_the_question(request, node, key, inside):
    if inside:
        request.getfixturevalue("comfyui")
    node = NODE_CLASS_MAPPINGS[node]
    for value in ("no such model", "", "none", ["3", 0], None, "a\0b", 5):
        assert node.IS_CHANGED(**{key: value}) == node.IS_CHANGED(**{key: value})
    assert node.IS_CHANGED() == node.IS_CHANGED()


@pytest.mark.parametrize(
    ("node_id", "name", "words"),
    [
        ("AntiPureLoadVisualEncoder", "encoder", ("models/antipure_encoders", "antipure fetch-models alexnet")),
        ("AntiPureFaceMetrics", "pack", ("models/insightface", "antipure fetch-models buffalo_l")),
        ("AntiPureLoadLoraPatch", "patch", ("Save LoRA Patch",)),
    ],
)
def test_an_empty_list_says_where_files_go_and_so_does_who_runs_it(comfyui, node_id, name, words):
    from antipure.cli.model_registry import MODELS
    from antipure.nodes import NODE_CLASS_MAPPINGS

    entry, *bundled = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"][name][0]
    assert bundled == (["bundled_portraits"] if name == "pack" else [])
    assert all(word in entry for word in words)
    assert all(word.split()[-1] in MODELS for word in words if "fetch-models" in word)
    kind = {"encoder": "encoders", "pack": "faces", "patch": "patches"}[name]
    with pytest.raises(AntiPureError, match="none yet: ") as caught:
        model_folders.find_model(kind, entry)
    assert all(word in str(caught.value) for word in words)
