"""The protection benchmark end to end on two small crops, and its figures against scipy and plain numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from antipure.benchmarks import protection, protection_report, protection_run, protection_terms, sets, strangers
from antipure.benchmarks.protection_run import MATCHED, SMOOTH_EQUAL, Run, attacker
from antipure.benchmarks.upscalers import load_upscalers
from antipure.benchmarks.work import load_denoisers
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.image import psnr, structural_distortion
from antipure.methods.protections import apply_protection
from antipure.methods.purification.purifiers import parse_purifier
from scipy.stats import bootstrap

COLUMNS = ("none", "gridpure1/1", "jpeg75+shrink0.5")
ARMS = ("random", "strong", "strong" + MATCHED, "smooth", SMOOTH_EQUAL)


@pytest.fixture
def no_strangers(tmp_path, monkeypatch):
    """As on a machine that has none of their files."""
    caches = (protection_run.denoisers, protection_run.autoencoders)
    monkeypatch.setenv(strangers.VARIABLE, str(tmp_path / "nothing"))
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def run_main(folder, *more: str) -> tuple[str, dict]:
    page = folder / "page.md"
    given = ["--pictures", "hopper", "logo_ring", "--size", "64", "--steps", "1", "--seeds", "1", "--workers", "0"]
    given += ["--arms", *ARMS, "--columns", *COLUMNS, "ffdnet:gridpure1/1", "--work", str(folder / "work")]
    protection.main([*given, "--markdown", str(page), *more])
    return page.read_text(encoding="utf-8"), json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))


def test_a_page_and_all_figures_beside_it(tmp_path, no_strangers, capsys):
    page, found = run_main(tmp_path)
    assert "FFDNet" in found["about"]["missing"]
    assert "ffdnet:gridpure1/1" in found["about"]["missing"]
    assert found["about"]["missing"] in page
    assert found["about"]["command"].endswith("--columns none gridpure1/1 jpeg75+shrink0.5 ffdnet:gridpure1/1")
    assert str(tmp_path) not in page  # the page is committed
    assert {(r["picture"], r["arm"]) for r in found["rows"]} == {(p, a) for p in ("hopper", "logo_ring") for a in ARMS}
    assert all(set(r["after"]) == set(COLUMNS) and not r["after"]["none"]["shift"] for r in found["rows"])
    assert all(r["after"]["jpeg75+shrink0.5"]["size"] == [32, 32] for r in found["rows"])
    cells = {(c["arm"], c["column"], c["figure"], c["over"]): c for c in found["cells"]}
    left = {
        arm: np.mean([r["after"]["gridpure1/1"]["distortion"] for r in found["rows"] if r["arm"] == arm])
        for arm in ARMS
    }
    for arm, over in (("strong", "strong" + MATCHED), ("smooth", "random"), ("strong", "random")):
        cell = cells[arm, "gridpure1/1", "structure", "random" if over == "random" else "matched"]
        assert cell["value"] == pytest.approx(left[arm] / left[over])
        assert cell["low"] <= cell["value"] <= cell["high"]
        assert cell["pictures"] == 2
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]][:2] == ["random", "strong"]
    assert not any(MATCHED in line for line in lines)  # they are what others are divided by
    assert any(f"{cells['strong', 'none', 'structure', 'matched']['value']:.1f}" in line for line in lines)

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.*")}
    again, same = run_main(tmp_path, "--finished")
    assert same["cells"] == found["cells"]
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.*")}
    assert run_main(tmp_path, "--finished", "--seeds", "2")[1]["cells"] == found["cells"]
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(found), encoding="utf-8")
    _, joined = run_main(tmp_path, "--finished", "--arms", "strong", "strong" + MATCHED, "--with", str(earlier))
    assert sorted(joined["cells"], key=str) == sorted(found["cells"], key=str)
    assert capsys.readouterr().out


def test_figures_are_those_of_the_pictures(tmp_path, no_strangers):
    run = Run(tmp_path, steps=1, size=64)
    clean, smoothed, strong = run.clean("bird"), *(run.protected("bird", a, 8, 0) for a in (SMOOTH_EQUAL, "strong"))
    assert float(psnr(clean, smoothed)) == pytest.approx(float(psnr(clean, strong)), abs=0.3)
    looks, after = run.looks("bird", "strong", 8, 0), run.after("bird", "strong", 8, 0, "jpeg75+gridpure1/1+shrink0.5")
    assert looks["psnr"] == pytest.approx(float(psnr(clean, strong)))
    assert looks["levels"] <= 8
    # In one go and by its kept first part is the same: the same noise at every step.
    both = [attacker("jpeg75+gridpure1/1+shrink0.5", protection_run.PURIFIER_SEED)(x) for x in (clean, strong)]
    assert after["distortion"] == pytest.approx(float(structural_distortion(*both)), abs=1e-6)
    assert torch.equal(run.purified(clean, "jpeg75+gridpure1/1+shrink0.5", 0), both[0])


@pytest.mark.skipif(not strangers.vae_files(), reason=strangers.missing())
def test_the_latent_shift_of_a_picture_that_did_not_change_is_nothing(tmp_path):
    run = Run(tmp_path, steps=1, size=64)
    shift = {arm: run.after("bird", arm, 8, 0, "shrink0.5")["shift"] for arm in ("none", "random")}
    assert set(shift["none"]) == set(strangers.vae_files())
    assert set(shift["none"].values()) == {0.0}
    assert all(0.05 < value < 3 for value in shift["random"].values())


@pytest.mark.parametrize(("name", "scale", "least"), [("waifu2x", 2, 35), ("realesrgan", 4, 30)])
def test_restoration_networks_give_the_same_picture_larger(name, scale, least):
    if name not in load_upscalers():
        pytest.skip(f"{name}-ncnn-py is not installed, or does not run here")
    clean = sets.load()["bird"].read()[..., 32:96, 32:96]
    large = load_upscalers()[name].enlarge(clean)
    assert large.shape == (1, 3, 64 * scale, 64 * scale)
    assert float(psnr(clean, torch.nn.functional.avg_pool2d(large, scale))) > least


def test_an_unknown_picture_is_refused(tmp_path):
    with pytest.raises(AntiPureError, match="hoppper"):
        protection.main(["--pictures", "hoppper", "--work", str(tmp_path), "--workers", "0"])


def test_the_terms_of_the_loss_one_by_one(capsys):
    given = ["--pictures", "peaks", "--size", "64", "--steps", "1", "--iterations", "1", "--terms", "PFG", "strong"]
    protection_terms.main(given)
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1]
        for line in capsys.readouterr().out.splitlines()
        if "|" in line
    }
    clean = sets.load()["peaks"].read()[..., 32:96, 32:96]
    purifier = parse_purifier("gridpure1", load_denoisers(), protection_terms.SEED)
    strong = apply_protection("strong", clean, load_denoisers()["bundled"], AttackSettings(levels=8, steps=1, seeds=0))
    expected = 1000 * float(structural_distortion(purifier(clean), purifier(strong)))
    assert list(rows) == ["loss", next(key for key in rows if set(key) == {"-"}), "PFG", "strong"]
    assert float(rows["strong"][-1]) == pytest.approx(expected, abs=0.006)


def made_up(generator: np.random.Generator, arm: str, pictures: int) -> list[dict]:
    def after() -> dict:
        shift = dict(zip((*strangers.ATTACKED_VAES, "flux2"), generator.uniform(0.3, 1, 5), strict=True))
        return {"distortion": generator.uniform(0.01, 0.1), "shift": shift}

    return [
        {"group": "crops", "picture": f"p{i}", "arm": arm, "levels": 8.0, "seed": seed,
         "after": {column: after() for column in ("none", "a", "b")}}
        for i in range(pictures) for seed in range(2)
    ]  # fmt: skip


def test_ratios_and_intervals_against_scipy():
    generator = np.random.default_rng(1)
    own, control = (protection_report.select(made_up(generator, "x", 9), "crops", "x", 8.0) for _ in range(2))
    found = protection_report.ratio(own, control, "a", protection_report.distortion)
    per_picture = [
        np.array([sum(rows[f"p{i}", s]["after"]["a"]["distortion"] for s in range(2)) for i in range(9)])
        for rows in (own, control)
    ]
    assert found["value"] == pytest.approx(per_picture[0].sum() / per_picture[1].sum())
    expected = bootstrap(
        per_picture, lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), paired=True, vectorized=True,
        n_resamples=20000, method="percentile", rng=0,
    ).confidence_interval  # fmt: skip
    width = expected.high - expected.low
    assert found["low"] == pytest.approx(expected.low, abs=0.06 * width)
    assert found["high"] == pytest.approx(expected.high, abs=0.06 * width)


def test_the_worst_case_is_each_pictures_own():
    generator = np.random.default_rng(2)
    own, control = (protection_report.select(made_up(generator, "x", 5), "crops", "x", 8.0) for _ in range(2))
    four = protection_report.shifts(strangers.ATTACKED_VAES)
    least = []
    for i in range(5):
        of_columns = []
        for column in ("a", "b"):
            shift = [
                {
                    v: sum(rows[f"p{i}", s]["after"][column]["shift"][v] for s in range(2))
                    for v in strangers.ATTACKED_VAES
                }
                for rows in (own, control)
            ]
            of_columns.append(np.mean([shift[0][v] / shift[1][v] for v in strangers.ATTACKED_VAES]))
        least.append(min(of_columns))
    assert protection_report.worst(own, control, ("a", "b"), four)["value"] == pytest.approx(np.mean(least))
    lowest = protection_report.ratio(own, control, "a", four, np.min)["value"]
    assert lowest < protection_report.ratio(own, control, "a", four)["value"]
