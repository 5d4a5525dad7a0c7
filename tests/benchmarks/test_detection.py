"""The detector against perturbations anybody finds and none, its figure against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from antipure.benchmarks import sets
from antipure.benchmarks.detection import development, held_out, unprotected, windows
from antipure.benchmarks.detector import Detector, auc, bootstrap_auc, scores, train_detector
from antipure.benchmarks.work import read
from antipure.methods.diffusion.checkpoints import BUNDLED
from sklearn.metrics import roc_auc_score


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_scikit_learns(seed):
    generator = np.random.default_rng(seed)
    n, m = generator.integers(1, 30, 2)
    positive, negative = generator.normal(0.5, 1, n), generator.normal(0, 1, m)
    if seed % 2:  # ties
        positive, negative = positive.round(), negative.round()
    expected = roc_auc_score([1] * n + [0] * m, np.concatenate([positive, negative]))
    assert auc(positive, negative) == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_over_pictures():
    """Windows of one picture move together: ten equal windows of each widen nothing and narrow nothing."""
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(0.8, 1, 12), generator.normal(0, 1, (3, 12))
    names = [f"{i}" for i in range(12)]
    value, low, high = bootstrap_auc(positive, negative, names)
    assert low < value < high
    assert value == pytest.approx(roc_auc_score([1] * 12 + [0] * 36, np.concatenate([positive, negative.ravel()])))
    many = bootstrap_auc(np.repeat(positive, 10), np.repeat(negative, 10, axis=1), np.repeat(names, 10))
    assert many == pytest.approx((value, low, high), abs=1e-12)
    as_if_single = bootstrap_auc(np.repeat(positive, 10), np.repeat(negative, 10, axis=1), range(120))
    assert as_if_single[2] - as_if_single[1] < (high - low) / 2


@pytest.fixture(scope="module")
def clean():
    """Training and test windows 32×32 of two halves of a face: nothing of one is in the other."""
    face = read(BUNDLED.with_name("astronaut_face.png"))
    return [windows({"face": half}, 12, 32, seed=1)[1] for half in (face[..., :64], face[..., 64:])]


def striped(pictures):
    """One-pixel stripes of 4 levels."""
    stripes = torch.tensor([1.0, -1.0]).repeat(pictures.shape[-1] // 2)
    return (pictures + 4 / 255 * stripes).clamp(0, 1)


def rated(clean, change, steps=80):
    train, test = clean
    detector = train_detector({"clean": train}, {"changed": change(train)}, steps=steps, batch=8, side=24)
    return scores(detector, change(test)), scores(detector, test)


def test_stripes_are_found_and_nothing_is_not(clean):
    assert auc(*rated(clean, striped)) > 0.98
    assert auc(*rated(clean, lambda x: x, steps=5)) == 0.5


def test_noise_that_both_sides_carry_is_no_evidence(clean):
    """Other draws of the same noise on both sides: chance, within what 12 against 12 windows scatter by."""

    def noisy(pictures, seed):
        return pictures + 8 / 255 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed))

    train, test = clean
    detector = train_detector({"a": noisy(train, 1)}, {"b": noisy(train, 2)}, steps=30, batch=8, side=24)
    assert 0.25 < auc(scores(detector, noisy(test, 3)), scores(detector, noisy(test, 4))) < 0.75


def test_the_same_seed_gives_the_same_detector(clean):
    first, again, other = (
        train_detector({"clean": clean[0]}, {"s": striped(clean[0])}, steps=3, batch=2, seed=seed).state_dict()
        for seed in (4, 4, 5)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["out.weight"], other["out.weight"])


def test_sides_of_different_windows_are_refused(clean):
    with pytest.raises(ValueError, match="same windows"):
        train_detector({"clean": clean[0]}, {"s": clean[0][1:]})


def test_scores_do_not_depend_on_the_batch(clean):
    torch.manual_seed(0)
    detector, pictures = Detector(), torch.cat([*clean])
    alone = [scores(detector, one[None])[0] for one in pictures]
    assert scores(detector, pictures) == pytest.approx(alone, abs=1e-5)


def test_what_is_not_protected_stays_near_the_clean_window(clean):
    others = unprotected(clean[0])
    assert list(others) == ["clean", "JPEG", "noise"]
    assert others["clean"] is clean[0]
    for name in ("JPEG", "noise"):
        rms = (others[name] - clean[0]).square().mean((1, 2, 3)).sqrt() * 255
        assert (rms > 0.3).all(), "each is changed"
        assert (rms < 16).all()
    assert all(torch.equal(others[name], again) for name, again in unprotected(clean[0]).items())


def test_nothing_the_detector_learns_from_is_tested_on():
    learned, tested = development(), held_out()
    assert not set(learned) & set(tested)
    assert set(tested) == {name for name, p in sets.load().items() if p.half == "held_out"}
    assert {name for name, p in sets.load().items() if p.half == "development"} < set(learned)
    names, found = windows(tested, 2, 64)
    assert len(found) == len(names) == 2 * len(tested)
    for name, window in zip(names, found, strict=True):
        views = tested[name][0].unfold(1, 64, 1).unfold(2, 64, 1)
        rows = (views[:, :, :, 0, 0] == window[:, None, None, 0, 0]).all(0).nonzero()
        assert any(torch.equal(views[:, top, left], window) for top, left in rows.tolist())
