"""What an attack is told: seeds for each picture, and refusals before work starts."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.errors import AntiPureError


def test_one_seed_serves_all_pictures_and_a_list_must_fit():
    assert AttackSettings(seeds=4).seeds_of(3) == [4, 4, 4]
    assert AttackSettings(seeds=[1, 2]).seeds_of(2) == [1, 2]
    with pytest.raises(AntiPureError, match="2 seeds for 3 pictures"):
        AttackSettings(seeds=[1, 2]).seeds_of(3)


def test_the_mask_of_a_part_is_that_pictures_own_copy():
    mask = torch.rand(3, 1, 4, 5)
    part = AttackSettings(mask=mask).mask_of(slice(1, 2))
    assert torch.equal(part, mask[1:2])
    part.zero_()
    assert mask[1].any()
    assert AttackSettings().mask_of(slice(0, 1)) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"levels": 0}, "levels is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"mask": torch.ones(1, 1, 4, 4)}, "mask has shape"),
        ({"mask": torch.full((1, 1, 4, 5), 1.5)}, "outside 0..1"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, sentence):
    with pytest.raises(AntiPureError, match=sentence) as caught:
        AttackSettings(**changes).check(torch.rand(1, 3, 4, 5))
    assert "\n" not in str(caught.value)
