"""The benchmark of the bundled VAE encoder: shifts over random signs, mean and worst of the VAEs."""

from __future__ import annotations

import pytest
import torch
from antipure.benchmarks import small_vae
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control


def test_rows_are_ratios_to_random_signs(face, monkeypatch):
    """A protection that is the control itself has 1 everywhere; VAEs differ, so the worst lies below the mean."""
    settings = AttackSettings(8, 1, seeds=3)
    known = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 8.0]])
    control = apply_control("random", face, settings)
    monkeypatch.setattr(small_vae, "protect", lambda clean, target, *_: control if target == "same" else clean)
    monkeypatch.setattr(
        small_vae, "shifts", lambda clean, picture, vaes: known if torch.equal(picture, control) else 3 * known.flip(1)
    )
    rows = small_vae.measure(face, {"same": "same", "other": "other"}, [], settings)
    assert rows["same"][1:].tolist() == pytest.approx([1.0] * 6)
    expected = [x for a, b in known.tolist() for x in ((3 * b / a + 3 * a / b) / 2, min(3 * b / a, 3 * a / b))]
    assert rows["other"][1:].tolist() == pytest.approx(expected)
