"""The LoRA patching benchmark: parts that are kept are the whole report, and go on where they were."""

from __future__ import annotations

import json

import pytest
import torch
from antipure.methods.generators.loading import generator_from_state
from antipure.methods.generators.stargan import StarGANNetwork
from antipure.methods.lora_patching.defence_report import defence_report
from antipure.methods.pictures import round_8bit

from benchmarks import lora_patching_runs as runs


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return generator_from_state(StarGANNetwork(2, 2, 1).state_dict(), size=16)


def test_parts_are_kept_and_add_up(generator, tmp_path, monkeypatch):
    faces = round_8bit(torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(4)))
    monkeypatch.setattr(runs, "AT_ONCE", 2)
    measured = []

    def counted(generator, patch, part, **settings):
        measured.append(len(part))
        return defence_report(generator, patch, part, **settings)

    monkeypatch.setattr(runs, "defence_report", counted)
    settings = {"seed": 3, "edits": ["label 0"], "strong": False}
    found = runs.in_parts(generator, None, faces, tmp_path / "a", **settings)
    assert measured == [2, 2, 1]
    (tmp_path / "a" / "2.json").unlink()
    again = runs.in_parts(generator, None, faces, tmp_path / "a", **settings)
    assert measured == [2, 2, 1, 2]
    whole = defence_report(generator, None, faces, batch=2, **settings)
    assert found.markdown() == again.markdown() == whole.markdown()
    assert runs.in_parts(generator, None, faces, None, **settings).markdown() == whole.markdown()


def test_both_starts_are_compared_over_seeds(generator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "load_generator", lambda size: generator)
    monkeypatch.setattr(runs, "draw_faces", lambda seeds, side: torch.rand(
        len(seeds), 3, side, side, generator=torch.Generator().manual_seed(seeds[0])
    ))  # fmt: skip
    found = runs.compare_initialisations(16, 3, 2, 2, "fp32", tmp_path)
    json.dumps(found)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{kind}_16px_3_2_fp32_{seed}.json" for kind in ("identity", "kaiming") for seed in (0, 1)}
    assert found["identity"]["faces"] == found["kaiming"]["faces"] == 4
    assert found["identity"]["psnr"] != found["kaiming"]["psnr"]
    table = capsys.readouterr().out
    assert "| identity |" in table
    assert "| kaiming  |" in table
    assert "2 seeds" in table
