"""Procedural faces: deterministic, truly the same face under other attributes, varied, and split for training."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.generators import load_generator
from antipure.methods.generators.procedural_faces import (
    BATCH,
    GIVEN_FRAME,
    HAIR,
    draw_edited,
    draw_faces,
    random_attributes,
)


def test_a_face_depends_on_its_own_seed_alone():
    together = draw_faces([5, 6, 7])
    assert together.shape == (3, 3, 64, 64)
    assert together.dtype == torch.float32
    assert 0 <= together.min() < together.max() <= 1
    assert torch.equal(draw_faces([6]), together[1:2])
    many = draw_faces([*range(100, 100 + BATCH), 6])
    assert torch.equal(many[-1], together[1])
    state = torch.get_rng_state()
    draw_faces([1])
    assert torch.equal(torch.get_rng_state(), state)


def test_own_attributes_are_the_default_and_balanced():
    seeds = range(600)
    hair, glasses = random_attributes(seeds)
    assert torch.equal(draw_faces(seeds[:5]), draw_faces(seeds[:5], hair[:5], glasses[:5]))
    assert all(150 < int((hair == h).sum()) < 250 for h in range(len(HAIR)))
    assert 240 < int(glasses.sum()) < 360


def test_glasses_change_only_what_is_around_the_eyes():
    seeds = range(40)
    off, on = (draw_faces(seeds, [0] * 40, [g] * 40) for g in (False, True))
    changed = (off - on).abs().amax(1) > 0.02
    share = changed.float().mean((1, 2))
    assert (share > 0.02).all()
    assert (share < 0.25).all()
    assert not changed[:, -12:].any()


def test_hair_colour_changes_hair_and_brows_and_nothing_else():
    seeds = range(40)
    black, blond, brown = (draw_faces(seeds, [h] * 40, [False] * 40) for h in range(3))
    changed = (black - blond).abs().amax(1) > 0.02
    share = changed.float().mean((1, 2))
    assert (share > 0.05).all()
    assert (share < 0.6).all()
    where = changed & ((black - blond).abs().amax(1) > 0.3)
    tone = [torch.stack([p[:, c][where].mean() for c in range(3)]) for p in (black, blond, brown)]
    assert tone[0].max() < 0.2
    assert tone[1][0] > tone[1][1] > tone[1][2] > tone[0][2]
    assert tone[0][0] < tone[2][0] < tone[1][0]
    assert (black - brown)[~changed[:, None].expand_as(black)].abs().max() < 0.05


def test_faces_vary():
    faces = draw_faces(range(50), [0] * 50, [False] * 50).flatten(1)
    distance = torch.cdist(faces, faces) / faces.shape[1] ** 0.5
    assert distance[~torch.eye(50, dtype=torch.bool)].min() > 0.08


def test_edges_are_soft():
    """Anti-aliased: halving a picture drawn twice as large gives nearly the same."""
    small, large = draw_faces([3], [1], [True]), draw_faces([3], [1], [True], side=128)
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert (small - halved).abs().mean() < 0.02


def test_another_frame_changes_the_glasses_alone():
    """A face without glasses is the same; one with them differs only where some glasses are."""
    seeds = [3, 4]
    plain, own = draw_faces(seeds, [0, 1], [False] * 2), draw_faces(seeds, [0, 1], [True] * 2)
    assert torch.equal(draw_faces(seeds, [0, 1], [False] * 2, frame=5), plain)
    other, again = (draw_faces(seeds, [0, 1], [True] * 2, frame=5) for _ in range(2))
    assert torch.equal(other, again)
    assert torch.equal(other[1:], draw_faces(seeds[1:], [1], [True], frame=5))
    glasses = torch.maximum((own - plain).abs(), (other - plain).abs()).amax(1) > 0
    changed = (other - own).abs().amax(1)
    assert (changed > 0.1).any(-1).any(-1).all()
    assert not changed[~glasses].any()
    assert glasses.float().mean() < 0.2
    assert not torch.equal(other, draw_faces(seeds, [0, 1], [True] * 2, frame=6))


def test_the_truth_of_an_edit_is_the_same_face_and_glasses_that_are_put_on_are_one_frame_for_all():
    seeds = range(12)
    hair, glasses = random_attributes(seeds)
    assert glasses.any()
    assert not glasses.all()
    put_on = draw_edited(seeds, "glasses")
    assert torch.equal(put_on[glasses], draw_faces(seeds)[glasses])  # who wears some keeps them
    given = draw_faces(seeds, hair, [True] * 12, frame=GIVEN_FRAME)
    assert torch.equal(put_on[~glasses], given[~glasses])
    assert torch.equal(draw_edited(seeds, "no glasses"), draw_faces(seeds, hair, [False] * 12))
    assert torch.equal(draw_edited(seeds, "brown hair"), draw_faces(seeds, [2] * 12))


def test_bad_requests_are_refused():
    for arguments in (([],), ([1, 2], [0]), ([1], [3]), ([1], [-1]), ([1], [0], [True, False])):
        with pytest.raises(AntiPureError):
            draw_faces(*arguments)


def test_training_never_sees_held_out_faces_and_truth_is_the_edited_face(tool, monkeypatch):
    training = tool("train_generator")
    seen = []

    def spy(seeds, *arguments, **options):
        seen.extend(seeds)
        return draw_faces(seeds, *arguments, **options)

    monkeypatch.setattr(training, "draw_faces", spy)
    faces = training.Faces(6)
    assert max(seen) < training.HELD_OUT
    with pytest.raises(SystemExit):
        training.Faces(training.HELD_OUT + 1)
    pixels, labels, truth = faces.batch(200, torch.Generator().manual_seed(0))
    assert labels.shape == (200, len(training.EDITS))
    none = labels.sum(1) == 0
    assert none.any()
    assert torch.equal(pixels[none], truth[none])
    glasses = labels[:, 3] == 1
    _, own = random_attributes(range(6))
    expected = (draw_edited(range(6), "glasses") * 255).round() / 127.5 - 1
    either = torch.cat([expected, expected.flip(-1)])
    nearest = (truth[glasses][:, None] - either).abs().amax((2, 3, 4)).amin(1)
    assert nearest.max() < 1e-6
    assert own.any()
    assert not own.all()


def test_a_thin_frame_counts_as_much_as_a_head_of_hair(tool):
    """The loss: the mean L1, and that over each picture's changed pixels, by hand; unchanged pictures add nothing."""
    training = tool("train_generator")
    pixels = torch.zeros(3, 3, 8, 8)
    truth, output = pixels.clone(), pixels.clone()
    truth[0, :, 0, 0] = 0.5  # one pixel, as a frame
    truth[1, :, :4] = 0.5  # half the picture, as hair
    output[0, :, 0, 0] = 0.3
    output[1, :, :4] = 0.3
    output[2, 0, 5, 5] = 0.6  # the edit leaves this one alone
    total = (0.2 * 3 + 0.2 * 3 * 32 + 0.6) / (3 * 3 * 64)
    expected = total + training.CHANGED * (0.2 + 0.2 + 0) / 3
    assert training.distance(output, truth, pixels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_an_interrupted_training_goes_on_where_it_stopped(tool, monkeypatch, tmp_path):
    training = tool("train_generator")
    monkeypatch.setattr(training, "NETWORK", {"conv_dim": 12, "n_labels": 5, "blocks": 1})

    def train(name, *arguments):
        fixed = ["--faces", "3", "--steps", "4", "--batch", "2", "--fragile-from", "3", "--save-every", "2"]
        monkeypatch.setattr("sys.argv", ["train_generator", "--out", str(tmp_path / name), *fixed, *arguments])
        training.main()
        return load_generator(tmp_path / name)

    whole = train("whole.safetensors")
    assert whole.edits == training.EDITS
    assert whole.size == 64
    with monkeypatch.context() as patch:

        def stop(path, state):
            real(path, state)
            raise KeyboardInterrupt

        real = training.write_checkpoint
        patch.setattr(training, "write_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train("parts.safetensors")
    half = load_generator(tmp_path / "parts.safetensors").network.state_dict()
    parts = train("parts.safetensors", "--resume")
    key = "main.0.weight"
    assert not torch.equal(half[key], whole.network.state_dict()[key])
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, parts.network.state_dict()[key])
    assert not list(tmp_path.glob("*.state"))
