"""Published protections on a MODEL over ComfyUI's own classes, in every checkout's interpreter."""

from __future__ import annotations

import json

import pytest
from antipure.methods.baselines import BASELINES


@pytest.fixture(scope="module")
def checks(run_in_checkout) -> dict:
    (line,) = [line for line in run_in_checkout("baseline_checks.py").splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.parametrize("name", BASELINES)
def test_every_preset_protects_and_leaves_the_model_whole(checks, name):
    assert 0 < checks["presets"][name]["change"] <= 4 + 2e-3
    assert checks["presets"][name]["same"]


def test_simacs_features_reach_the_picture(checks):
    assert checks["simac_gradient"]["blocks"] == 3
    assert checks["simac_gradient"]["differs"] > 1e-3
