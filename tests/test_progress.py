"""Progress of a piece within the whole."""

from __future__ import annotations

import pytest
from antipure.methods.progress import part, silent


def told(pieces: list[tuple[int, list[tuple[int, int]]]]) -> list[tuple[int, int]]:
    """What is told of pieces that cost so much and tell such (done, total), one after the other."""
    seen: list[tuple[int, int]] = []
    whole, before = sum(cost for cost, _ in pieces), 0
    for cost, steps in pieces:
        report = part(lambda done, total, *_: seen.append((done, total)), before, cost, whole)
        for done, total in steps:
            report(done, total)
        before += cost
    return seen


def test_pieces_count_in_units_of_their_own_and_add_up():
    seen = told([(10, [(1, 2), (2, 2)]), (30, [(1, 3), (2, 3), (3, 3)])])
    assert seen == [(5, 40), (10, 40), (20, 40), (30, 40), (40, 40)]


def test_a_piece_of_several_counts_stays_at_its_end():
    """A composition counts anew for each of its parts: never past what the piece costs."""
    seen = told([(4, [(1, 2), (2, 2), (3, 2)])])
    assert seen == [(2, 4), (4, 4), (4, 4)]


@pytest.mark.parametrize("total", [0, 1])
def test_a_piece_without_steps_is_no_error(total):
    assert told([(3, [(0, total)])]) == [(0, 3)]


def test_picture_and_loss_pass_through():
    seen = []
    part(lambda *arguments: seen.append(arguments), 2, 4, 8)(1, 2, "picture", 0.5)
    assert seen == [(4, 8, "picture", 0.5)]
    assert silent(1, 2) is None


def test_who_cancels_is_heard():
    def cancel(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part(cancel, 0, 1, 1)(1, 1)
