"""What the identity judge is trained with: whom it may see, what counts as no portrait, the folded file, going on."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch
from antipure.methods.metrics.portrait_judge import SIDE, JudgeNetwork
from safetensors.torch import load_file, save_file
from scipy.stats import norm
from torch import nn


@pytest.fixture
def people(tool, monkeypatch):
    """tools.draw_judge_portraits with two persons a file and two heads of each."""
    module = tool("draw_judge_portraits")
    for name, value in {"PERSONS": 2, "HEADS": 2, "VARIANTS": 2, "HELD_OUT_SHOTS": 2}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_training_and_test_know_different_persons(people, tool):
    seen, held = people.training_file(1, 16), people.held_out_file(1, 16)
    limit = tool("latent_pool").HELD_OUT
    assert seen["who"].tolist() == [people.FIRST + 2] * 4 + [people.FIRST + 3] * 4
    assert seen["pictures"].shape == (8, 3, 16, 16)
    assert seen["empty"].shape == (4, 3, 16, 16)
    assert seen["who"].max() < limit
    assert held["who"].tolist() == [limit + 5_002] * 2 + [limit + 5_003] * 2
    plain = tool("portraits").draw_portraits(held["who"], held["shot"], side=16).pictures
    assert torch.equal(held["pictures"], (plain * 255).round().byte())
    assert len({one.numpy().tobytes() for one in torch.cat([held["pictures"], held["empty"]])}) == 8


def test_a_head_found_at_half_the_resolution_is_the_renderers(people, tool):
    """Studio portraits, so nearly the same picture; other shots and other persons are far from it."""
    who, shot = torch.tensor([40]), torch.tensor([3])
    other = tool("draw_pool").painted_often(who, shot, 48)[0]
    ours, empty = people.sittings(who, shot, 48)
    near = (ours[0] - other[0]).square().mean().sqrt()
    assert near < 0.08
    assert (ours[0] - people.sittings(who, shot + 1, 48)[0][0]).square().mean().sqrt() > 2 * near
    assert (ours[0] - empty[0]).square().mean().sqrt() > 2 * near


def test_drawing_goes_on_where_it_was_stopped(people, tmp_path, monkeypatch):
    monkeypatch.setattr(people, "training_file", lambda number, _: {"who": torch.tensor([number])})
    monkeypatch.setattr("sys.argv", ["draw_judge_portraits", "--out", str(tmp_path), "--persons", "5"])
    people.main()
    (tmp_path / "people-00001.safetensors").unlink()
    before = (tmp_path / "people-00000.safetensors").stat().st_mtime_ns
    people.main()
    assert (tmp_path / "people-00000.safetensors").stat().st_mtime_ns == before
    assert people.read_people(tmp_path)["who"].tolist() == [0, 1, 2]
    with pytest.raises(SystemExit, match="--held-out"):
        people.read_people(tmp_path, held_out=True)


def test_the_pool_says_whom_its_pictures_show(tool, tmp_path, monkeypatch):
    pools = tool("draw_pool")
    monkeypatch.setattr(pools, "POSES", 4)
    training = tool("train_portrait_judge")
    save_file(pools.drawn(0, pools.POSES, 0, 16), tmp_path / "pool-00000.safetensors")
    found = training.pool_people(tmp_path)
    heads, shots = pools.numbered(0, pools.POSES, 0)
    for i in (0, 5, 6, 15):
        at = 2 * (i // 8) + i % 2  # eight pictures of two heads, which take turns
        alone = pools.painted_often(heads[at : at + 1], shots[at : at + 1], 16)[0][i % 8 // 2]
        assert found["who"][i] == heads[at]
        assert torch.equal(found["pictures"][i], (alone * 255).round().byte())
    held = load_file(tmp_path / "pool-00000.safetensors")
    save_file(held | {"labels": held["labels"].flip(0)}, tmp_path / "pool-00000.safetensors")
    with pytest.raises(SystemExit, match="another version"):
        training.pool_people(tmp_path)


def test_what_shows_no_portrait(tool):
    pictures = tool("judge_pictures")
    torch.manual_seed(0)
    bytes_ = torch.randint(256, (5, 3, SIDE, SIDE)).byte()
    photos = [torch.rand(3, 120, 150)]
    for kind in pictures.KINDS:
        made = pictures.no_portraits(kind, 4, bytes_, bytes_, bytes_, photos, SIDE)
        assert made.shape == (4, 3, SIDE, SIDE), kind
        assert -1e-6 <= made.min() <= made.max() <= 1 + 1e-6, kind
    some = torch.rand(2, 3, 12, 12)
    mixed = pictures.shuffled(some, 3)
    assert not torch.equal(mixed, some)
    for a, b in zip(mixed, some, strict=True):
        np.testing.assert_array_equal(np.sort(a.flatten()), np.sort(b.flatten()))
    assert torch.equal(pictures.warped(some, 0.0, 4).sub(some).abs() < 1e-5, torch.ones_like(some, dtype=torch.bool))
    assert not set(pictures.PHOTOS) & set(pictures.HELD_OUT_PHOTOS)


def test_other_conditions_stay_pictures_and_differ(tool):
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 24, 24).repeat(30, 1, 1, 1)
    other = tool("judge_pictures").conditions(picture)
    assert other.shape == picture.shape
    assert 0 <= other.min() <= other.max() <= 1
    assert len({one.numpy().tobytes() for one in other}) == 30


def test_the_file_holds_what_was_trained(tool):
    training = tool("train_portrait_judge")
    torch.manual_seed(0)
    network = JudgeNetwork(nn.BatchNorm2d)
    pictures = torch.rand(6, 3, SIDE, SIDE)
    with torch.no_grad():
        for _ in range(3):
            network(pictures)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        expected = network.eval()(pictures)
        plain = JudgeNetwork().eval()
        plain.load_state_dict({k: v.float() for k, v in training.folded(network).items()})
        for ours, theirs in zip(plain(pictures), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
    assert isinstance(network.norm, nn.BatchNorm2d), "the network itself is left as it was"


def arguments(tmp_path, minutes: float) -> argparse.Namespace:
    return argparse.Namespace(people=tmp_path, pool=None, demo=None, out=tmp_path, minutes=minutes, rate=1e-3,
                              round_trips=2, seed=0, report=0, save=60)  # fmt: skip


def test_training_learns_and_goes_on(tool, tmp_path, monkeypatch, capsys):
    training = tool("train_portrait_judge")
    monkeypatch.setattr(training, "PORTRAITS", 8)
    monkeypatch.setattr(training, "OTHERS", 9)
    monkeypatch.setattr(training, "through_autoencoder", lambda pictures, *_: pictures)
    monkeypatch.setattr(training, "textures", lambda *_: torch.randint(256, (4, 3, 32, 32)).byte())
    monkeypatch.setattr(training, "demo_autoencoder", lambda _: None)
    file = {"pictures": torch.randint(256, (6, 3, 32, 32)).byte(), "who": torch.tensor([5, 5, 6, 6, 7, 7]),
            "shot": torch.arange(6), "empty": torch.randint(256, (2, 3, 32, 32)).byte()}  # fmt: skip
    save_file(file, tmp_path / "people-00000.safetensors")
    training.train(arguments(tmp_path, 0.01))
    first = torch.load(tmp_path / "judge.state", weights_only=True)
    assert "6 portraits of 3 persons" in capsys.readouterr().out
    training.train(arguments(tmp_path, 0.02))
    again = torch.load(tmp_path / "judge.state", weights_only=True)
    assert again["steps"] > first["steps"] > 0
    assert not torch.equal(first["proxies"], again["proxies"])
    JudgeNetwork().load_state_dict(load_file(tmp_path / "judge.safetensors"))
    # More persons were drawn since, one of them before the others: who is known keeps what was learned.
    more = {"pictures": file["pictures"][:2], "who": torch.tensor([4, 4]), "shot": torch.arange(2)}
    save_file(more | {"empty": file["empty"]}, tmp_path / "people-00001.safetensors")
    training.train(arguments(tmp_path, 0.0))
    grown = torch.load(tmp_path / "judge.state", weights_only=True)
    assert grown["persons"].tolist() == [4, 5, 6, 7]
    assert torch.equal(grown["proxies"][1:], again["proxies"])
    save_file(file | {"who": file["who"] + 999_995}, tmp_path / "people-00000.safetensors")
    with pytest.raises(SystemExit, match="held-out persons"):
        training.train(arguments(tmp_path, 0.03))


def test_the_equal_error_rate_of_bells(tool):
    measure = tool("measure_portrait_judge")
    stream = torch.Generator().manual_seed(0)
    genuine = torch.randn(20_000, generator=stream).double() + 2
    impostor = torch.randn(20_000, generator=stream).double()
    assert measure.equal_error_rate(genuine, impostor) == pytest.approx(norm.cdf(-1), abs=0.01)
    assert measure.equal_error_rate(genuine + 10, impostor) == 0
    assert measure.equal_error_rate(impostor, impostor) == pytest.approx(0.5, abs=0.01)


def test_pairs_are_split_by_person(tool):
    measure = tool("measure_portrait_judge")
    cosines = torch.arange(3 * 2 * 3 * 2).view(3, 2, 3, 2)
    genuine, impostor = measure.split(cosines, torch.tensor([0, 2, 2]), torch.ones(2, 2, dtype=torch.bool).triu(1))
    assert sorted(genuine.tolist()) == sorted([cosines[0, 0, 0, 1], cosines[2, 0, 2, 1], cosines[2, 0, 2, 1]])
    expected = [cosines[i, :, j] for i, j in ((0, 2), (0, 2), (2, 0), (2, 0))]
    assert sorted(impostor.tolist()) == sorted(torch.stack(expected).flatten().tolist())
