"""Progress within a step: what share of it is done, whatever the loss is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.antipure.protect import protect
from antipure.methods.attacks.ensemble import combine
from antipure.methods.attacks.loss import FunctionLoss
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.baselines import BASELINES, apply_baseline


def picture() -> torch.Tensor:
    return torch.randint(256, (1, 3, 40, 40), generator=torch.Generator().manual_seed(3)) / 255


def one_tile_at_a_time(make_tiny, **settings):
    denoiser = make_tiny(**settings)
    denoiser.memory_bytes = 1
    return denoiser


def even(told: list[float], begin: float, end: float) -> None:
    """Between two places it is told in equal parts, at least as many as 16-px tiles cover 40×40 pixels."""
    part = [share for share in told if begin < share <= end]
    assert len(part) >= 9
    assert part == pytest.approx([begin + (end - begin) * (n + 1) / len(part) for n in range(len(part))])


def shares(run) -> tuple[torch.Tensor, list[float]]:
    told = []
    result = run(AttackSettings(levels=4, steps=2, progress=lambda done, total, shown, loss=None: told.append(done)))
    return result, told


def test_each_batch_of_tiles_is_told_and_the_step_at_its_end(make_tiny):
    denoiser = one_tile_at_a_time(make_tiny)
    _, told = shares(lambda settings: protect(picture(), denoiser, PRESETS["unrolled"], settings))
    even(told, 0, 1)
    even(told, 1, 2)


@pytest.mark.parametrize("mode", ["mean", "worst"])
def test_members_take_their_turns(make_tiny, mode):
    both = combine(one_tile_at_a_time(make_tiny), one_tile_at_a_time(make_tiny, seed=1), mode)
    _, told = shares(lambda settings: protect(picture(), both, PRESETS["unrolled"], settings))
    for begin, end in ((0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2)):
        if mode == "mean" or end in (1, 2):  # "worst" spends the first half on choosing
            even(told, begin, end)
    assert told == sorted(set(told))


@pytest.mark.parametrize("name", ["advdm", "anti_dreambooth_aspl", "simac"])
def test_published_protections_tell_it_too(make_tiny, name):
    denoiser, told = one_tile_at_a_time(make_tiny), []

    def look(done, total, shown, loss=None):
        told.append(done)
        assert shown.shape == (1, 3, 40, 40)
        if done > 1:
            raise KeyboardInterrupt  # a second step costs no more than it has to

    settings = replace(BASELINES[name].settings, levels=4, steps=16, progress=look)
    with pytest.raises(KeyboardInterrupt):
        apply_baseline(name, picture(), denoiser, settings)
    even(told, 0, 1)


def test_a_cancel_within_a_step_leaves_it(make_tiny):
    def cancel(done, total, shown, loss=None):
        if done > 0.3:
            raise KeyboardInterrupt

    denoiser = one_tile_at_a_time(make_tiny)
    with pytest.raises(KeyboardInterrupt):
        protect(picture(), denoiser, PRESETS["unrolled"], AttackSettings(levels=4, steps=2, progress=cancel))
    assert all(p.grad is None for p in denoiser.unet.parameters())


def test_a_loss_that_knows_no_parts_tells_whole_steps():
    def squares(pixels, generator):
        yield pixels.square().sum()

    _, told = shares(lambda settings: pgd(picture(), lambda clean: FunctionLoss(squares), settings))
    assert told == [1, 2]
