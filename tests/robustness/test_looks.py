"""Version 2 of the robustness report: looks, views, VAEs, and that readers of version 1 still read it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control
from antipure.methods.diffusion.autoencoder import Autoencoder
from antipure.methods.metrics import image as metrics
from antipure.methods.metrics import visibility
from antipure.methods.metrics.latent import latent_shift
from antipure.methods.pictures import round_8bit, to_pixels
from antipure.methods.purification.purifiers import parse_purifier, parse_purifiers
from antipure.methods.purification.upscaling import Upscaler
from antipure.methods.purification.vae import vae_round_trip
from antipure.methods.robustness.measure import measure
from antipure.methods.robustness.report import LATENT_FLOOR
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


class Counting(Averages):
    """Keeps what it was given to encode; its decoder gives mosaics."""

    def __init__(self, name: str):
        self.name, self.encoded = name, []

    def encode(self, pixels):
        self.encoded.append(pixels.detach().clone())
        return super().encode(pixels)

    def decode(self, latent):
        return torch.nn.functional.interpolate(latent, scale_factor=4)


class Twice(Upscaler):
    name, scale = "twice", 2

    def enlarge(self, picture):
        return torch.nn.functional.interpolate(picture, scale_factor=2, mode="bilinear")


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
    shifts = [[[max(latent(i, k, c), 0.02) for k in ("protection", "matched")] for c in columns] for i in range(2)]
    ratios = [min(ours / theirs for ours, theirs in picture) for picture in shifts]
    assert report.latent_worst("noise", "mean") == pytest.approx(sum(ratios) / 2)
    assert f"{report.over_attackers('noise'):.2f}" in next(
        line for line in markdown(report).split("\n") if line.startswith("| worst over attackers")
    )


def test_a_vae_encodes_a_clean_picture_once_for_each_purifier(originals, protections):
    vae = Counting("counting")
    listed = parse_purifiers("blur1, jpeg60", {})
    noise = protections["noise"][:1]
    measure(originals[:1], {"noise": noise}, listed, seeds=(3, 9), autoencoders={"counting": vae})

    def times(picture: torch.Tensor) -> int:
        return sum(int(torch.equal(p, to_pixels(picture)[0])) for pixels in vae.encoded for p in pixels)

    assert times(originals[:1]) == 1  # whatever the seeds
    assert times(round_8bit(noise)) == 1
    # These two see no seed; nothing that a purifier takes is encoded twice for one seed.
    assert [times(purifier(originals[:1])) for purifier in listed] == [2, 2]


def test_vaes_and_upscalers_that_purify_are_named_and_counted(tiny, originals, protections):
    small, seen = originals[:1, :, :24, :24], []
    protected = {"noise": protections["noise"][:1, :, :24, :24]}
    text = "vae2, gridpure1@2+a:impress3, noise8+upscale4, noise8"
    models = {"denoisers": {"d": tiny}, "autoencoders": {"a": Counting("a-vae")}, "upscalers": {"u": Twice()}}
    listed = parse_purifiers(text, **models)
    assert [purifier.cost for purifier in listed] == [2, 2 + 9, 2, 0]
    found = measure(small, protected, listed, progress=lambda *step: seen.append(step))
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert {step[1] for step in seen} == {(2 + 11 + 2 + 1) * 5}  # clean, protected and three controls
    assert done[-1] == 80
    assert [(c.network, c.denoiser, c.diffusion) for c in found.columns] == [
        ("VAE", "a-vae", True),
        ("networks" if tiny.name else "VAE", " and ".join(sorted({"a-vae", tiny.name} - {""})), True),
        ("upscale model", "twice", True),
        ("denoiser", "", False),
    ]
    assert "vae2 with the VAE a-vae leaves" in verdict(found)
    assert "upscale model twice" in markdown(found)
    pure = (vae_round_trip(x, Counting("b"), iterations=2) for x in (small, round_8bit(protected["noise"])))
    assert found.row(0, "protection", "noise").cells[0].distortion == (float(metrics.structural_distortion(*pure)[0]),)


def test_a_ratio_of_two_shifts_that_are_almost_nothing_is_no_finding(report):
    def shrunk(row, times: float):
        cells = [replace(c, latent=tuple(tuple(times * v for v in vs) for vs in c.latent)) for c in row.cells]
        return replace(row, cells=tuple(cells), latent=tuple(tuple(times * v for v in vs) for vs in row.latent))

    # Ten times as far as its noise, but both far below what a single level of noise does.
    rows = [shrunk(row, 1e-3 if row.kind == "protection" else 1e-4) for row in report.rows]
    small = replace(report, rows=tuple(rows))
    assert max(small.latent("protection", "noise", "mean", c) for c in (None, *report.columns)) < LATENT_FLOOR
    assert small.latent_ratio("noise", "mean") == small.latent_worst("noise", "mean") == 1
    assert "The VAE mean hardly sees it" in verdict(small)
    assert "times as far" not in verdict(small)
    assert f"below {LATENT_FLOOR:g} count as {LATENT_FLOOR:g}" in markdown(small)
    assert json.loads(to_json(small))["thresholds"]["latent_floor"] == LATENT_FLOOR


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
