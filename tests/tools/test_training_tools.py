"""The training data and timesteps of the bundled denoiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

REASON = "scikit-learn carries two of the training photos; install antipure[train]"


@pytest.fixture
def data(tool):
    return tool("training_data")


@pytest.fixture(scope="module")
def photos():
    """Loaded once: reading and scaling them takes a second."""
    return []


@pytest.fixture
def sampler_class(data, photos, monkeypatch):
    """`TileSampler` over photos that are read once, with one procedural picture."""
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn", reason=REASON)
    if not photos:
        photos.extend(data.load_photos())
    monkeypatch.setattr(data, "load_photos", lambda: list(photos))
    return lambda seed, **arguments: data.TileSampler(seed, **{"procedural": 1, **arguments})


def test_the_measured_photo_is_never_opened_for_training(data, monkeypatch):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn", reason=REASON)
    opened = []

    def record(path, *arguments):
        opened.append(path.name)
        return Image.new("RGB", (80, 80))

    monkeypatch.setattr(data.Image, "open", record)
    data.load_photos()
    assert sorted(opened) == sorted([*data.SKIMAGE_PHOTOS, *data.SKLEARN_PHOTOS])
    assert not any("astronaut" in name for name in opened)


def test_no_training_photo_looks_like_the_measured_one(sampler_class, photos, face):
    """Whatever the files are called: no 512×512 photo correlates with the astronaut."""
    from antipure.methods.diffusion.checkpoints import BUNDLED

    measured = np.asarray(Image.open(BUNDLED.with_name("astronaut.png")).convert("L").resize((32, 32))).ravel()
    for _, photo in photos:
        small = np.asarray(Image.fromarray(photo).convert("L").resize((32, 32))).ravel()
        assert np.corrcoef(measured, small)[0, 1] < 0.9


def test_tiles_are_pixels_in_range_and_varied(sampler_class):
    batch = sampler_class(0).batch(40)
    assert batch.shape == (40, 3, 64, 64)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert batch.min() >= -1
    assert batch.max() <= 1
    assert batch.min() < -0.9
    assert batch.max() > 0.9
    assert len({tile.tobytes() for tile in batch}) == 40


def test_tiles_are_the_same_for_the_same_seed_only(sampler_class):
    first, again, other = sampler_class(3), sampler_class(3), sampler_class(4)
    for _ in range(2):
        batch = first.batch(6)
        np.testing.assert_array_equal(batch, again.batch(6))
        assert not np.array_equal(batch, other.batch(6))


def test_sampling_leaves_the_global_random_state_alone(sampler_class):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    sampler_class(0).batch(2)
    assert np.array_equal(before, np.random.get_state()[1])


def test_photos_and_procedural_pictures_share_the_draws_as_stated(sampler_class, data):
    sampler = sampler_class(0)
    assert sampler.weights.sum() == pytest.approx(1)
    assert len(sampler.weights) == len(sampler.pictures)
    assert sampler.weights[-1] == pytest.approx(data.PROCEDURAL_SHARE)
    assert (sampler.weights > 0).all()
    assert all(p.dtype == np.uint8 and min(p.shape[:2]) >= 64 for p in sampler.pictures)


def test_dead_leaves_are_pictures_with_the_detail_of_photographs(data):
    palette = np.array([[200, 30, 30], [30, 200, 30], [20, 20, 90]], np.uint8)
    leaves = data.dead_leaves(np.random.default_rng(0), palette, size=96)
    assert leaves.shape == (96, 96, 3)
    assert leaves.dtype == np.uint8
    assert leaves.std() > 20
    np.testing.assert_array_equal(leaves, data.dead_leaves(np.random.default_rng(0), palette, size=96))


def test_timesteps_follow_the_stated_mixture(tool):
    train = tool("train_denoiser")
    t = train.sample_timesteps(40000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.long
    assert t.min() == 0
    assert 900 < t.max() <= 999
    below_20 = 0.55 + 0.35 * 20 / 150 + 0.10 * 20 / 1000
    below_150 = 0.55 + 0.35 + 0.10 * 150 / 1000
    assert (t < 20).float().mean().item() == pytest.approx(below_20, abs=0.012)
    assert (t < 150).float().mean().item() == pytest.approx(below_150, abs=0.007)
    counts = torch.bincount(t, minlength=1000)[:20] / len(t)
    assert counts.min() > 0.8 * counts.mean()
    again = train.sample_timesteps(40000, torch.Generator().manual_seed(0))
    assert torch.equal(t, again)


def test_excess_noise_is_bounded_unstructured_and_on_three_tiles_in_ten(tool):
    """Signs of up to 10 levels, or Gaussian noise of up to 8 levels, in pixels of -1..1 (2/255 a level)."""
    train = tool("train_denoiser")
    noise = train.excess_noise((600, 3, 16, 16), torch.Generator().manual_seed(0)) * 255 / 2
    touched = noise.flatten(1).any(1)
    assert touched.float().mean().item() == pytest.approx(0.3, abs=0.08)
    tiles = noise[touched]
    deviation = tiles.flatten(1).std(1)
    signs = (tiles.abs().flatten(1).amax(1) - tiles.abs().flatten(1).amin(1)) < 1e-4
    assert 0.3 < signs.float().mean() < 0.7
    assert 9 < deviation[signs].max() <= 10.1
    assert 7 < deviation[~signs].max() <= 8.5
    assert deviation.min() < 2, "weak noise too"
    normalised = tiles / deviation.view(-1, 1, 1, 1)
    assert abs(normalised.mean().item()) < 0.02
    for shifted in (normalised.roll(1, -1), normalised.roll(1, -2), normalised.roll(1, 1)):
        assert abs((normalised * shifted).mean().item()) < 0.02
