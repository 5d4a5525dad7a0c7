"""The node that measures for benchmarks.gpu, in every checkout's interpreter (probe_checks.py): it is of today."""

from __future__ import annotations

import json

import pytest
from antipure.nodes.protect import DEFAULT


@pytest.fixture(scope="module")
def found(run_in_checkout) -> dict:
    (line,) = [line for line in run_in_checkout("probe_checks.py").splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def test_every_part_measured_something(found):
    assert set(found) == {"ready", "floor", DEFAULT, "strong", "paper", "gradient", "evicted", "same_bytes"}
    assert not [name for name, part in found.items() if "failed" in part], found
    assert 0 < found["floor"]["strong, bare, s per step"] < found["strong"]["s per step"]
    assert found["ready"]["tile"] == 48


def test_on_a_cpu_its_gradient_is_the_one_of_float32_copies(found):
    for name in ("error", "error, TF32 off", "error, TF32 off, evicted"):
        assert found["gradient"][name] < 1e-3
    assert found["gradient"]["finite"]
    assert found["evicted"]["during"] == found["evicted"]["after"] == found["gradient"]["twice"] == 0
    assert found["same_bytes"]["as it is"] == found["same_bytes"]["reproducible"] == 0
