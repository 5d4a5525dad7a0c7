"""The customization benchmark's stages: kept, and made again exactly where a setting of theirs changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from antipure.benchmarks.customization import measure
from antipure.benchmarks.customization_report import BASE, CLEAN, REFERENCE, Result, gaps, markdown, worst
from antipure.benchmarks.customization_run import Run, attacker
from antipure.benchmarks.work import Clock, read
from antipure.methods.customization.dreambooth_lora import CustomizationSettings
from antipure.methods.diffusion.checkpoints import BUNDLED
from antipure.methods.errors import AntiPureError


def run(work: Path, **changes) -> Run:
    settings = {
        "levels": 8, "protection_steps": 1, "samples": 4, "sampling_steps": 1, "probe_crops": 2,
        "settings": CustomizationSettings(rank=1, steps=1, batch=1), "precision": "fp32", "customize": "bundled",
        "pipeline": None, "prompt": "", "clock": Clock(Counter()),
    }  # fmt: skip
    return Run(work, **settings | changes)


@pytest.fixture
def subjects():
    return {"face": read(BUNDLED.with_name("astronaut_face.png"))[..., :64, :64]}


def test_unseen_attackers_and_an_unseen_model_redo_what_depends_on_them(tmp_path, subjects):
    def files() -> Counter:
        return Counter(path.parent.name for path in tmp_path.rglob("*") if path.is_file())

    def figures(after: list[str], **changes) -> dict[tuple[str, str], float]:
        results, _, left_out = measure(
            run(tmp_path, **changes), subjects, ["clean", "smooth", "mist_textural"], after, 1
        )
        assert list(left_out) == ["mist_textural"]
        page = markdown(results)
        assert all(f" {text} " in page for text in after)
        assert "timesteps 20-100" in page
        assert "timesteps 100-400" in page
        return {(r.version, r.after): r.loss_20_100 for r in results}

    usual = ["none", "gridpure1/1"]
    first = figures(usual)
    cases = [(BASE, "none"), *((version, text) for version in ("clean", "smooth") for text in usual)]
    assert sorted(first) == sorted(cases)
    assert files() == {"protected": 1, "purified": 2, "customized": 5, "samples": 5}
    assert figures(usual) == first
    assert files() == {"protected": 1, "purified": 2, "customized": 5, "samples": 5}

    more = figures([*usual, "held_out:gridpure1/1"])
    assert files() == {"protected": 1, "purified": 4, "customized": 7, "samples": 7}
    assert {case: more[case] for case in cases} == first

    unseen_model = figures(usual, customize="judge")
    assert files() == {"protected": 1, "purified": 4, "customized": 12, "samples": 12}
    assert not set(unseen_model.values()) & set(first.values())


def test_what_changes_the_size_is_judged_at_that_size(tmp_path, subjects):
    """Its reference is customized on the clean picture at that size: the clean row is 0, by the very same file."""
    clean = subjects["face"]
    subjects = {"face": read(BUNDLED.with_name("astronaut_face.png"))}
    results, shown, _ = measure(run(tmp_path, samples=0), subjects, ["clean", "random"], ["none", "shrink0.5"], 1)
    views = {(r.version, r.after): r.view for r in results}
    expected = [(BASE, ""), ("clean", ""), ("random", ""), (BASE, "shrink0.5"), (REFERENCE, "shrink0.5")]
    expected += [("clean", "shrink0.5"), ("random", "shrink0.5")]
    assert views == {(version, view or "none"): view for version, view in expected}
    assert len(list((tmp_path / "customized").iterdir())) == len(results) - 1
    assert all(r.swd is None for r in results)
    assert list(shown["face"]) == ["original"]
    for loss in Result.LOSSES:
        gap = {(r.version, r.after): value for r, value in gaps(results, loss).items()}
        assert gap["clean", "shrink0.5"] == gap["clean", "none"] == 0
        assert gap["random", "shrink0.5"] != 0
    losses = {(r.version, r.after): r.loss_20_100 for r in results}
    assert losses[BASE, "shrink0.5"] != losses[BASE, "none"]
    small = run(tmp_path).view(subjects["face"], "shrink0.5")
    assert small.shape[-2:] == clean.shape[-2:]
    assert "shrink0.5" in markdown(results)


def row(version: str, after: str, loss: float, subject: str = "a", seed: int = 0, view: str = "") -> Result:
    return Result(subject, version, after, seed, view, None if version == BASE else 30.0, loss, loss / 2)


def test_gaps_and_the_worst_attacker():
    results = [
        row(BASE, "none", 0.9),
        row(CLEAN, "none", 0.1), row(CLEAN, "p", 0.2), row("x", "none", 0.5), row("x", "p", 0.3),
        row(CLEAN, "none", 0.2, "b"), row(CLEAN, "p", 0.2, "b"), row("x", "none", 0.3, "b"), row("x", "p", 0.7, "b"),
        row(BASE, "v", 0.8, view="v"), row(REFERENCE, "v", 0.4, view="v"), row("x", "v", 0.55, view="v"),
    ]  # fmt: skip
    gap = gaps(results, "loss_20_100")
    by = {(r.subject, r.version, r.after): value for r, value in gap.items()}
    assert by["a", "x", "p"] == pytest.approx(0.2)
    assert by["a", "x", "v"] == pytest.approx(0.15)
    assert by["a", BASE, "v"] == pytest.approx(0.4)
    least = worst(gap)
    assert set(least) == {CLEAN, "x"}
    assert {place: r.after for place, r in least["x"].items()} == {("a", 0): "v", ("b", 0): "none"}
    half = {(r.subject, r.version, r.after): value for r, value in gaps(results, "loss_100_400").items()}
    assert half["a", "x", "p"] == pytest.approx(0.1)
    page = [line.split("|") for line in markdown(results).splitlines() if line.startswith("| x ")]
    assert page[0][-2].strip().startswith("125.0"), "mean of 150 and 100"


def test_the_tables_grow_with_the_run(tmp_path, subjects):
    pages: list[str] = []
    subject = run(tmp_path, samples=0)
    measure(subject, subjects, ["clean"], ["none", "blur1"], 2, lambda found: pages.append(markdown(found)))
    assert ["blur1" in page for page in pages] == [False, True, True]
    assert "±" not in pages[0].split("\n\n")[2]
    assert "±" in pages[-1].split("\n\n")[2]


def test_an_attacker_that_cannot_be_run_is_refused(tmp_path):
    with pytest.raises(AntiPureError, match="VAE"):
        run(tmp_path).purified("x", read(BUNDLED.with_name("astronaut_face.png")), "vae", 0)
    with pytest.raises(AntiPureError, match="no denoiser 'nobody'"):
        attacker("nobody:gridpure1")
