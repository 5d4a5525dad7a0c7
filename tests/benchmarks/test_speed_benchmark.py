"""The speed benchmark: its plain code computes what the pack computes, and its parts run."""

from __future__ import annotations

import pytest
import torch
from antipure.benchmarks import plain, speed
from antipure.benchmarks.speed_report import markdown
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.pictures import round_8bit
from antipure.methods.purification.gridpure import gridpure
from antipure.nodes import host


def picture(height: int, width: int) -> torch.Tensor:
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2))
    return round_8bit(torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


@pytest.mark.parametrize("name", ["paper", "strong"])
def test_plain_protection_is_ours_up_to_rounding(tiny, name):
    x, objective = picture(24, 40), PRESETS[name]
    slow = plain.protect(x, tiny, objective, levels=8, steps=1)
    fast = protect(x, tiny, objective, AttackSettings(levels=8, steps=1))
    assert ((slow - fast).abs() * 255 > 0.5).float().mean() < 0.01, "only signs of slopes near 0 may differ"


def test_plain_gridpure_is_ours_but_for_its_8_bit_tiles(tiny):
    x = picture(24, 40)
    difference = (plain.gridpure(x, tiny, iterations=2, timestep=3) - gridpure(x, tiny, iterations=2, timestep=3)) * 255
    assert difference.abs().max() <= 3
    assert difference.square().mean().sqrt() < 0.7


def test_its_parts_run_and_make_a_page(tiny, monkeypatch):
    bench = speed.Bench(torch.device("cpu"), 1, True, tiny, picture(16, 24))
    monkeypatch.setattr(speed, "development", lambda: {"one": picture(16, 16)})

    def light(x, denoiser, **settings):
        return gridpure(x, denoiser, **{**settings, "iterations": 1})

    monkeypatch.setattr(speed, "gridpure", light)
    parts = {
        "floor": speed.floor(bench),
        "plain": speed.plain_code(bench),
        "kernels": speed.kernels(bench, 64),
        "pixels": speed.pixels(bench, [16, 24]),
        "fast": speed.fast(bench, 10, 1),
        "substeps": speed.substeps(bench),
    }
    assert all(rows for rows in parts.values())
    results = {"machine": "m", "repeats": 1, "quick": True, "devices": {"cpu": parts, "cuda": {}}}
    page = markdown(results)
    assert page.count("**") == 2 * len(parts)
    assert "nothing measured" in page.split("## cuda")[1]


def test_batches_are_sized_as_the_nodes_size_them(monkeypatch):
    monkeypatch.setattr(host, "memory_allowance", lambda denoiser: 12345)
    bench = speed.Bench.on("cpu", 1, quick=True)
    for denoiser in (bench.denoiser, speed.bundled(bench.device, precision="bf16")):
        assert denoiser.batching.memory_bytes == 12345


def test_the_two_ways_to_pfg_agree_and_bytes_are_counted(tiny):
    bench = speed.Bench(torch.device("cpu"), 1, True, tiny, picture(16, 16))
    rows = {row["row"]: row for row in speed.kernels(bench, 128)}
    for label in ("PFG through the DCT over the closed form", "the same with the gradient"):
        assert rows[label]["apart, relative"] < 1e-5
    picture_mb = 4 * 3 * 128**2 * 4 / 1e6
    moved = {name: row["MB moved"] / picture_mb for name, row in rows.items() if "MB moved" in row}
    assert {name: moved[name] for name in ("copy", "PGD update", "noising", "PFG")} == {
        "copy": 2, "PGD update": 5, "noising": 3, "PFG": 1,
    }  # fmt: skip
    assert moved["tiles cut"] == pytest.approx(2 / 4), "one of the four pictures, read and written"
    assert moved["tiles averaged"] == pytest.approx((9 * 64**2 / 128**2 + 1) / 4), "3×3 overlapping tiles"
    for row in rows.values():
        if "MB moved" in row:
            assert row["GB/s"] * row["seconds"] == pytest.approx(row["MB moved"] / 1e3)
