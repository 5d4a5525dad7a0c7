"""`antipure doctor`: what is there is named, what is not comes with its command, and nothing is written."""

from __future__ import annotations

import sys

import pytest
import torch
from antipure.cli import doctor
from antipure.cli.main import main
from antipure.cli.model_registry import MODELS
from antipure.methods import requirements
from antipure.nodes import model_folders


@pytest.fixture
def models(monkeypatch, tmp_path):
    folder = tmp_path / "models"
    for module in (doctor, model_folders):
        monkeypatch.setattr(module, "models_folder", lambda: folder)
    return folder


def line(screen: str, word: str) -> str:
    (found,) = [line for line in screen.splitlines() if word in line]
    return found


def test_one_screen(models, capsys):
    assert main(["doctor"]) == 0
    screen = capsys.readouterr().out
    assert len(screen.splitlines()) <= 40
    assert torch.__version__ in line(screen, "  torch")
    assert f"{torch.get_num_threads()} threads" in screen
    assert str(models) in line(screen, "  models")
    assert line(screen, "antipure_encoders").endswith("none")
    assert "bundled, bundled_held_out, bundled_judge" in screen
    assert screen.rstrip().endswith("All that the nodes need is here.")
    assert not models.exists()


def test_what_is_found_is_not_asked_for(models):
    first = doctor.run_doctor()[0]
    assert line(first, "Set Metrics: FID").startswith("  no ")
    assert line(first, "VAE Targets").endswith("antipure fetch-models taesd")
    for name in ("inception", "taef1"):
        for path in MODELS[name].files(models):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"weights")
    again = doctor.run_doctor()[0]
    assert line(again, "Set Metrics: FID") == "  yes  Set Metrics: FID, KID"
    assert line(again, "VAE Targets") == "  yes  VAE Targets, VAE Metrics", "one of them is enough"
    assert line(again, "antipure_encoders").endswith(MODELS["inception"].file_name)


def test_what_is_missing_comes_with_its_command(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "onnxruntime" else object())
    monkeypatch.setattr(requirements, "missing", lambda: ["peft"])
    monkeypatch.setattr(doctor, "BUNDLED_FOLDER", models)
    screen, whole = doctor.run_doctor()
    assert not whole
    assert line(screen, "Face Metrics").endswith(": pip install onnxruntime; antipure fetch-models buffalo_l")
    assert "peft is not installed; run: " in screen
    assert "lacks bundled/denoiser.safetensors" in screen


def test_a_gpu_is_named_with_its_memory(models, monkeypatch):
    class Properties:
        name, total_memory = "Some GPU", 24 * 2**30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Properties)
    assert line(doctor.run_doctor()[0], "GPU 0").endswith("Some GPU, 24 GiB")


def test_every_download_is_known():
    named = [name for item in doctor.OPTIONAL for name in item.models]
    assert sorted(named) == sorted(MODELS), "who can be fetched is for something"
