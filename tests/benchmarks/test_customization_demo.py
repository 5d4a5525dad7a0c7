"""`benchmarks.customization --model demo`: stages kept, what they depend on, and the tables' arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from antipure.benchmarks import customization_demo as demo
from antipure.benchmarks import customization_demo_report as report
from antipure.benchmarks.work import Clock
from antipure.methods.attacks.ensemble import encoders_of, members_of
from antipure.methods.customization import demo_model
from antipure.methods.customization.demo_denoiser import DEMO_SETTINGS
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.portrait_judge import load_judge
from torch.nn.functional import normalize

TEXTS = ["none", "demo:vae"]


def run(work: Path, **changes) -> demo.DemoRun:
    settings = {
        "levels": 8, "protection_steps": 1, "settings": replace(DEMO_SETTINGS, rank=1, steps=1, batch=1), "samples": 2,
        "sampling_steps": 1, "precision": "fp32", "clock": Clock(Counter()),
    }  # fmt: skip
    return demo.DemoRun(work, **settings | changes)


@pytest.fixture(autouse=True)
def _one_person_under_other_lights(monkeypatch):
    """In place of drawn ones, which take seconds: the five portraits that are there, in a tint of the person's own."""

    def portraits(person: int, first: int, count: int) -> torch.Tensor:
        gains = torch.tensor([1 - person % 7 / 20, 1, 1 - person % 3 / 10]).view(1, 3, 1, 1)
        return (demo_model.portraits()[[(first + i) % 5 for i in range(count)]] * gains * 255).round() / 255

    monkeypatch.setattr(demo, "portraits", portraits)


def result(**values) -> demo.Result:
    plain = {
        "person": 1, "version": "clean", "after": "none", "seed": 0, "psnr": 99.0, "ism": 0.5, "impostor": 0.1,
        "d_prime": 2.0, "fdfr": 0.0, "kid": 0.01, "brisque": 30.0,
    }  # fmt: skip
    return demo.Result(**plain | values)


def test_stages_are_kept_and_redone_where_they_depend_on_what_changed(tmp_path):
    def files() -> Counter:
        return Counter(path.parent.name for path in tmp_path.rglob("*") if path.is_file())

    def figures(texts: list[str], **changes) -> list[demo.Result]:
        return demo.measure(run(tmp_path, **changes), [1], ["clean", "random"], texts, 1)[0]

    first = figures(TEXTS)
    assert [(r.version, r.after) for r in first] == [
        ("base", "none"), ("clean", "none"), ("random", "none"), ("clean", "demo:vae"), ("random", "demo:vae"),
    ]  # fmt: skip
    assert files() == {"protected": 1, "purified": 2, "samples": 5, "figures": 5}
    assert repr(figures(TEXTS)) == repr(first)  # NaN where no sample shows a portrait
    assert files() == {"protected": 1, "purified": 2, "samples": 5, "figures": 5}

    figures([*TEXTS, "jpeg75"])
    assert files() == {"protected": 1, "purified": 4, "samples": 7, "figures": 7}
    figures(TEXTS, settings=replace(DEMO_SETTINGS, rank=2, steps=1, batch=1))
    assert files()["samples"] == 11  # the base model's are the same

    page = report.markdown(first)
    assert "**Behind `demo:vae`**" in page
    assert page.count("| random") == 3
    shown = report.sheet(run(tmp_path), 1, ["clean", "random"], TEXTS)
    assert shown.shape[1] == 3
    again = torch.cat([(shown * 255).round().byte()], 1)
    clean = (demo.portraits(1, 0, 4)[0] * 255).round().byte()
    places = again.unfold(2, 128, 1).unfold(3, 128, 1)[0, :, 44, :, :, :]
    assert any(torch.equal(places[:, x], clean) for x in range(190, 210))


def test_what_the_model_does_not_take_is_named_and_left_out(tmp_path):
    results, left_out = demo.measure(run(tmp_path), [1], ["simac", "clean"], ["none", "jpeg75"], 1)
    assert [(r.version, r.after) for r in results] == [("base", "none"), ("clean", "none"), ("clean", "jpeg75")]
    assert list(left_out) == ["simac"]
    assert "U-Net" in left_out["simac"]


def test_what_each_protection_is_made_against(tmp_path):
    made = run(tmp_path)
    assert made.target("advdm") is made.model
    assert [v.name for v in encoders_of(made.target("robust"))] == ["demo"]
    assert [v.name for v in encoders_of(made.target(demo.BLIND))] == ["bundled"]
    assert not any(member is made.model for member in members_of(made.target("robust")))
    assert not encoders_of(made.target("strong"))
    with pytest.raises(AntiPureError, match="no denoiser 'sdxl'"):
        made.attacker("sdxl:gridpure10")


def test_figures_are_the_judges(tmp_path):
    made = run(tmp_path)
    samples = made.drawn("x", None, 0)
    found = made.result(2, demo.BASE, "none", 0, None)
    judge = load_judge()
    mine, seen = judge.look(samples)
    subject = normalize(judge.look(demo.portraits(2, 100, 8))[0].mean(0), dim=0)
    expected = (mine @ subject)[seen >= 0.5]
    assert found.fdfr == float((seen < 0.5).double().mean())
    assert math.isnan(found.ism) if not len(expected) else found.ism == pytest.approx(float(expected.mean()), abs=1e-5)


def test_the_worst_attacker_is_the_one_whose_model_draws_the_person_best():
    results = [
        result(after="none", ism=0.5), result(after="a", ism=0.4), result(version="base", ism=0.9),
        result(version="p", after="none", ism=0.15), result(version="p", after="a", ism=0.3),
        result(version="p", after="none", ism=math.nan, seed=1), result(version="p", after="a", ism=0.05, seed=1),
    ]  # fmt: skip
    worst = report.worst(results)
    assert {(name, place): r.after for name, found in worst.items() for place, r in found.items()} == {
        ("clean", (1, 0)): "none", ("p", (1, 0)): "a", ("p", (1, 1)): "none",
    }  # fmt: skip
    page = report.markdown(results)
    assert " -0.350 |" in page  # p against clean, the one pair that both have
    assert "1 of 2" in page  # less than the clean pictures', where these are known


def test_samples_without_a_portrait_are_counted_not_averaged():
    results = [result(ism=0.4), result(ism=math.nan, seed=1), result(ism=0.6, seed=2)]
    assert report.mean(results, lambda r: r.ism, 2).startswith("0.50")
    assert report.mean(results, lambda r: r.ism, 2).endswith("(2 of 3)")
    assert report.mean(results[1:2], lambda r: r.ism, 2) == "–"
