"""One line for each protection: levels counted by hand, attackers named, and whether it is seen."""

from __future__ import annotations

import pytest
from antipure.methods.robustness.headline import SEEN, headline, headlines
from antipure.methods.robustness.report import Cell, Column, Looks, Report, Row


def made(ratios: dict[str, float], *, random: float = 1.0, seen: float | None = 0.5, diffusion: bool = True) -> Report:
    """A protection named mine that each attacker leaves so many times what it leaves of noise of the same spectrum."""
    columns = tuple(Column(name, diffusion, "bundled" if diffusion else "") for name in ratios)
    looks = None if seen is None else Looks(0.01, 1.0, 2.0, seen, 0.1)

    def row(kind: str, values: list[float]) -> Row:
        cells = tuple(Cell((value,), (1.0,), (30.0,)) for value in values)
        return Row(0, kind, "mine", 31.0, 0.9, 8.0, cells, looks=looks)

    count = len(ratios)
    rows = (
        row("clean", [0.0] * count),
        row("protection", list(ratios.values())),
        row("matched", [1.0] * count),
        row("random", [random] * count),
    )
    return Report(("mine",), columns, (0,), (64, 64), rows)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ({"a": 3.0, "b": 7.0}, "holds against all 2 purifiers."),
        ({"a": 4.0}, "holds against a (bundled)."),
        ({"a": 1.0, "b": 1.4}, "does not hold against all 2 purifiers."),
        ({"a": 1.6, "b": 2.9}, "holds in part: partly against all 2 purifiers."),
        ({"a": 4.0, "b": 1.0}, "holds in part: against a (bundled), not against b (bundled)."),
        (
            {"a": 4.0, "b": 2.0, "c": 1.0, "d": 1.0, "e": 1.0, "f": 1.0},
            "holds in part: against a (bundled), partly against b (bundled), not against 4 of 6 purifiers.",
        ),
    ],
)
def test_does_it_hold_and_against_whom(ratios, words):
    assert headline(made(ratios), "mine") == f"mine: {words} Visible: barely."


def test_the_other_noise_counts_where_it_says_less():
    assert "does not hold" in headline(made({"a": 9.0}, random=9.0), "mine")


def test_is_it_seen():
    assert headline(made({"a": 1.0}, seen=SEEN + 0.01), "mine").endswith("Visible: yes.")
    assert "Visible" not in headline(made({"a": 1.0}, seen=None), "mine")


def test_transforms_are_called_so_and_each_protection_has_a_line():
    report = made({"a": 4.0, "b": 4.0}, diffusion=False)
    assert headlines(report) == "mine: holds against all 2 transforms. Visible: barely."
