"""Version 2 of the robustness report: looks, views, VAEs, and that readers of version 1 still read it."""

from __future__ import annotations

import json

import pytest
import torch
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control
from antipure.methods.diffusion.autoencoder import Autoencoder
from antipure.methods.metrics import image as metrics
from antipure.methods.metrics import visibility
from antipure.methods.metrics.latent import latent_shift
from antipure.methods.pictures import round_8bit
from antipure.methods.purification.purifiers import parse_purifier, parse_purifiers
from antipure.methods.robustness.measure import measure
from antipure.methods.robustness.sheet import robustness_sheet
from antipure.methods.robustness.text import markdown, to_json, verdict

LIST = "gridpure1, shrink0.5+gridpure1, shrink0.5, jpeg60"


class Averages(Autoencoder):
    """A VAE whose latent is the mean colour of 4×4 pixels."""

    name, multiple, channels, device = "averages", 4, 3, torch.device("cpu")

    def parts(self):
        return ()

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 4)

    def decode(self, latent):
        return latent


def pictures(count: int, *size: int) -> torch.Tensor:
    noise = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return round_8bit(torch.nn.functional.interpolate(noise, size, mode="bicubic").clamp(0.1, 0.9))


@pytest.fixture(scope="module")
def originals():
    return pictures(2, 64, 72)


@pytest.fixture(scope="module")
def protections(originals):
    stripes = torch.full_like(originals, 6 / 255)
    stripes[..., ::2] *= -1
    return {"noise": apply_control("random", originals, AttackSettings(levels=6)), "stripes": originals + stripes}


@pytest.fixture(scope="module")
def report(tiny, originals, protections):
    listed = parse_purifiers(LIST, {"denoiser": tiny})
    return measure(originals, protections, listed, seeds=(3, 9), autoencoders={"mean": Averages()})


def test_looks_are_those_of_their_functions(report, originals, protections):
    for name, value in protections.items():
        looks = report.row(1, "protection", name).looks
        one, other = originals[1:], value[1:]
        assert looks.peak_share == visibility.peak_share(round_8bit(other) - one).item()
        found = (*visibility.ciede2000(one, other), *visibility.seen_rms(one, other))
        expected = (looks.ciede2000, looks.ciede2000_p95, looks.seen_luma, looks.seen_chroma)
        assert tuple(v.item() for v in found) == expected


def test_views_are_compared_at_their_own_size(report, originals, protections, tiny):
    assert [column.view for column in report.columns] == [False, True, True, False]
    for column in report.columns:
        purifier = parse_purifier(column.name, {"denoiser": tiny}, 9)
        base, pure = purifier(originals[:1]), purifier(protections["noise"][:1])
        cell = report.cell(0, "protection", "noise", column)
        assert cell.psnr[1] == float(metrics.psnr(round_8bit(purifier.view(originals[:1])), pure)[0])
        assert cell.distortion[1] == float(metrics.structural_distortion(base, pure)[0])
        assert cell.latent[0][1] == float(latent_shift(base, pure, Averages()).value[0])


def test_worst_over_attackers_is_each_pictures_own(report):
    expected = sum(min(report.ratio(i, "noise", c) for c in report.columns[:2]) for i in range(2)) / 2
    assert report.over_attackers("noise") == pytest.approx(expected)

    def latent(i: int, kind: str, column: int | None) -> float:
        row = report.row(i, kind, "noise")
        return sum((row.latent if column is None else row.cells[column].latent)[0]) / 2

    columns = [None, 0, 1, 2, 3]
    ratios = [min(latent(i, "protection", c) / latent(i, "matched", c) for c in columns) for i in range(2)]
    assert report.latent_worst("noise", "mean") == pytest.approx(sum(ratios) / 2)
    assert f"{report.over_attackers('noise'):.2f}" in next(
        line for line in markdown(report).split("\n") if line.startswith("| worst over attackers")
    )


def test_a_stripe_is_named_a_defect(report):
    lines = verdict(report).split("\n")
    assert "A defect" not in lines[0]
    assert "A defect: 100 % of its energy lies in one frequency" in lines[1]
    assert "The VAE mean sees it" in lines[0]


def read_version_1(text: str) -> dict:
    """What a reader of version 1 takes from a report, written against that version."""
    read = json.loads(text)
    assert read["format"] == "antipure-robustness"
    worst = {(w["picture"], w["protection"]): (w["purifier"], w["ratio"], w["level"]) for w in read["worst"]}
    cells = {}
    for row in read["rows"]:
        assert set(row) >= {"picture", "kind", "protection", "psnr", "ssim", "levels", "curve"}
        for purifier in read["purifiers"]:
            assert set(purifier) >= {"name", "diffusion", "denoiser", "made_against"}
            cell = row["cells"][purifier["name"]]
            key = (row["picture"], row["kind"], row["protection"], purifier["name"])
            cells[key] = list(zip(*(cell[name] for name in ("distortion", "detail", "psnr")), strict=True))
    thresholds = [read["thresholds"][name] for name in ("survives", "partly", "floor")]
    return {"cells": cells, "worst": worst, "thresholds": thresholds, "seeds": read["seeds"], "curve": read["curve"]}


def test_a_reader_of_version_1_reads_version_2(report):
    read = read_version_1(to_json(report))
    column = report.columns[0]
    cell = report.cell(1, "matched", "noise", column)
    expected = list(zip(cell.distortion, cell.detail, cell.psnr, strict=True))
    assert read["cells"][1, "matched", "noise", column.name] == expected
    assert read["worst"][0, "noise"][1] == report.worst(0, "noise").ratio
    assert read["seeds"] == [3, 9]
    new = json.loads(to_json(report))
    assert new["version"] == 2
    assert new["autoencoders"] == ["mean"]
    assert new["rows"][1]["cells"]["jpeg60"]["latent"]["mean"] == list(report.rows[1].cells[3].latent[0])


def test_the_sheet_has_a_line_for_each_protection(report):
    assert robustness_sheet(report).shape[3] == 1480
