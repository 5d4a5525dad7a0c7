"""The folder workflow on real servers: core's loader and saver, and the shell's `antipure verify` behind them."""

from __future__ import annotations

import json
import uuid

import pytest
from antipure.cli.graph import read_workflow, set_inputs
from antipure.cli.main import main
from antipure.cli.server import run_on_server
from PIL import Image

from .conftest import ROOT

LOADER = "LoadImageDataSetFromFolder"
OLD_LOADER = "LoadImageSetFromFolderNode"  # 0.3.64's, for pictures of one size


@pytest.fixture
def folder(comfyui) -> str:
    """Three pictures in a folder of the server's input; of different sizes where its loader takes them."""
    name = f"pictures_{uuid.uuid4().hex[:8]}"
    (comfyui.base / "input" / name).mkdir()
    known = LOADER in comfyui.json("/object_info")
    with Image.open(ROOT / "bundled" / "astronaut_face.png") as face:
        for i, ending in enumerate(("png", "jpg", "webp")):
            side = 48 + 8 * i * known
            picture = face.convert("RGB").crop((9 * i, 5 * i, 9 * i + side, 5 * i + side))
            picture.save(comfyui.base / "input" / name / f"photo {i}.{ending}")
    return name


def test_a_folder_is_protected_and_can_be_verified(comfyui, folder, tmp_path, capsys):
    prompt = set_inputs(
        read_workflow("folder_protect"), ["3.preset=paper", "3.steps=2", "3.seed=5", f"1.folder={folder}"]
    )
    prompt["4"]["inputs"]["filename_prefix"] = f"{folder}/protected"
    if LOADER not in comfyui.json("/object_info"):
        assert comfyui.version == "0.3.64"
        prompt["1"]["class_type"] = OLD_LOADER
        prompt["1"]["inputs"]["resize_method"] = "None"  # which its interface fills in, and its server does not
    run_on_server(comfyui.url, prompt, tmp_path)
    saved, originals = comfyui.base / "output" / folder, comfyui.base / "input" / folder
    assert len(list(saved.glob("*.png"))) == 3
    capsys.readouterr()
    assert main(["verify", str(saved), "--originals", str(originals), "--sample", "3", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert checks["checksum"] == checks["budget"] == {"as it should be": 3}
    # The server's torch may be another one, and round otherwise.
    assert sum(checks["same seed again"].values()) == 3
    assert checks["same seed again"].get("wrong", 0) == 0
    (originals / "photo 1.jpg").unlink()
    assert main(["verify", str(saved), "--originals", str(originals), "--sample", "0"]) == 1
    assert "of no original" in capsys.readouterr().out
