"""The benchmark of the three settings of `visibility`: what is kept is a share of what `full` has."""

from __future__ import annotations

import sys

import pytest
from antipure.benchmarks import visibility
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control
from antipure.methods.metrics import image as metrics


def test_shares_are_of_the_same_pictures_full(tmp_path, monkeypatch, capsys):
    """A protection of as many levels as the setting has letters; effects in proportion: shares are ratios of levels."""
    monkeypatch.setattr(visibility, "target_of", lambda preset: None)
    monkeypatch.setattr(
        visibility, "protect", lambda clean, target, preset, s: clean + len(s.visibility) / 255 * (clean < 0.5)
    )
    monkeypatch.setattr(visibility, "effects", lambda clean, picture: [float((picture - clean).abs().max())] * 3)
    words = ["--pictures", "astronaut_face", "logo_chart", "--steps", "1", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["visibility", *words])
    visibility.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    shares = {row.split("|")[1].strip(): row.split("|")[-4:-1] for row in table}
    wanted = {"full": "100%", "balanced": "200%", "gentle": "150%"}
    assert {name: {cell.strip() for cell in cells} for name, cells in shares.items()} == {
        name: {share} for name, share in wanted.items()
    }
    assert len(list(tmp_path.glob("*.png"))) == 6, "pictures to look at"


def test_looks_are_the_metrics(face):
    noisy = apply_control("random", face, AttackSettings(8, 1, seeds=1))
    found = visibility.looks(face, noisy, None)
    assert found[0] == pytest.approx(float(metrics.psnr(face, noisy)))
    assert found[-1] != found[-1], "no LPIPS without AlexNet"
    assert visibility.looks(face, face, None)[1:5] == pytest.approx([0] * 4, abs=1e-5)
