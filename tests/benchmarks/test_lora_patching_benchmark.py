"""The LoRA patching benchmark: parts that are kept are the whole report, and go on where they were."""

from __future__ import annotations

import json

import pytest
import torch
from antipure.methods.generators.loading import generator_from_state
from antipure.methods.generators.procedural_faces import EDITS
from antipure.methods.generators.stargan import StarGAN, StarGANNetwork
from antipure.methods.lora_patching.defence_report import defence_report
from antipure.methods.lora_patching.defence_table import INPUTS, TRANSFERRED
from antipure.methods.lora_patching.save_and_load import load_patch
from antipure.methods.pictures import round_8bit

from benchmarks import lora_patching as command
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
    starts = [f"{kind}_16px_3" for kind in ("identity", "kaiming")]
    assert names == {f"{start}_fp32_{seed}.safetensors" for start in starts for seed in (0, 1)} | {
        f"{start}_2_fp32_{seed}_of_2.json" for start in starts for seed in (0, 1)
    }
    assert found["identity"]["faces"] == found["kaiming"]["faces"] == 4
    assert found["identity"]["psnr"] != found["kaiming"]["psnr"]
    assert found["identity"]["seconds"] > 0
    # Every patch against the other seed's: the pool of two reports that are told so.
    patches = [load_patch(tmp_path / f"kaiming_16px_3_fp32_{seed}.safetensors") for seed in (0, 1)]
    faces = round_8bit(runs.draw_faces(range(runs.HELD_OUT, runs.HELD_OUT + 2), side=16))
    l2 = [
        defence_report(generator, patches[i], faces, seed=i, strong=False, other=patches[1 - i]).row(TRANSFERRED[0])
        for i in (0, 1)
    ]
    row = found["kaiming"]["rows"][len(INPUTS)]
    assert row["input"] == TRANSFERRED[0]
    cases = [one.cases["patched"] for one in l2]
    mean = sum(one.mean_l2["patched"] * count for one, count in zip(l2, cases, strict=True) if count) / sum(cases)
    assert row["patched"]["cases"] == sum(cases)
    assert row["patched"]["mean_l2"] == pytest.approx(mean)
    again = runs.compare_initialisations(16, 3, 2, 2, "fp32", tmp_path)
    assert again == found
    one = runs.compare_initialisations(16, 3, 2, 2, "fp32", tmp_path, ("kaiming",))
    assert {key: value for key, value in found.items() if key != "identity"} == one
    table = capsys.readouterr().out
    assert "| identity |" in table
    assert "| kaiming  |" in table
    assert "2 seeds" in table


def test_the_command_knows_another_patch_and_counts_its_stages(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    labels = {edit: tuple(float(i == j) for j in range(len(EDITS))) for i, edit in enumerate(EDITS)}
    small = StarGAN(StarGANNetwork(2, len(EDITS), 1), labels, size=64)
    monkeypatch.setattr(command, "load_generator", lambda: small)
    for name, result in (("overheads", None), ("merging", None), ("against_truth", (1.0, 1.0))):  # slow, not asked here
        monkeypatch.setattr(command, name, lambda *_, result=result: result)
    common = ["x", "--only", "evaluation", "--faces", "2", "--held-out", "1", "--edits", "glasses", "--no-strong"]
    common += ["--ablation-faces", "0", "--watermark-faces", "0", "--precision", "fp32"]

    def run(name, *arguments):
        folder = tmp_path / name
        monkeypatch.setattr("sys.argv", [*common, "--patches", str(folder), "--out", str(folder) + ".json", *arguments])
        command.main()
        return json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))

    first = run("first")
    assert [row["input"] for row in first["evaluation"]["rows"]] == list(INPUTS)
    second = run("second", "--seed", "1", "--other", str(tmp_path / "first" / "evaluation.safetensors"))
    assert [row["input"] for row in second["evaluation"]["rows"]] == [*INPUTS, *TRANSFERRED]
    stages = second["processor_time"]
    assert list(stages) == [
        "drawing faces",
        "training, evaluation",
        "report, evaluation",
        "against the truth, merging",
    ]
    assert all(stage["processor"] > 0 for stage in stages.values())
    assert "| training, evaluation " in capsys.readouterr().out
    # With the other patch's rows a report is another one, and is not taken for the first.
    third = run("second", "--seed", "1")
    assert [row["input"] for row in third["evaluation"]["rows"]] == list(INPUTS)
