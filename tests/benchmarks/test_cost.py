"""The benchmark of what steps cost: the first step stands apart, the others share the rest."""

from __future__ import annotations

import sys

from antipure.benchmarks import cost


def test_minutes_of_all_steps(monkeypatch, capsys):
    """10 s for the first step, 2 processor and 3 wall seconds for each after it."""
    monkeypatch.setattr(cost, "seconds", lambda preset, side, steps: (10 + 2.0 * (steps - 1), 10 + 3.0 * (steps - 1)))
    monkeypatch.setattr(sys, "argv", ["cost", "--sides", "64", "--steps", "26", "--measured", "5", "--cores", "1"])
    cost.main()
    assert "| 64 | 2.00 | 3.00 | 1.0 |" in capsys.readouterr().out.splitlines()
