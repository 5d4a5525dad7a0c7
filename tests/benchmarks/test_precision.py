"""Half precision by default only where the processor computes it."""

from __future__ import annotations

import pytest
from antipure.benchmarks import precision

SKYLAKE = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f avx512dq avx512bw avx512vl\n"
COOPER = SKYLAKE.replace("avx512vl", "avx512vl avx512_bf16")
SAPPHIRE = SKYLAKE.replace("avx512vl", "avx512vl amx_bf16")
GRAVITON3 = "processor\t: 0\nFeatures\t: fp asimd sve i8mm bf16\n"
GRAVITON2 = "processor\t: 0\nFeatures\t: fp asimd fphp\nCPU part : bf16\n"


@pytest.mark.parametrize(
    ("text", "units"), [(SKYLAKE, False), (COOPER, True), (SAPPHIRE, True), (GRAVITON3, True), (GRAVITON2, False)]
)
def test_cpuinfo_is_read(tmp_path, text, units):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert precision.has_bf16_units(file, "linux") is units


def test_what_does_not_tell_counts_as_without(tmp_path, monkeypatch):
    assert precision.has_bf16_units(tmp_path / "missing", "linux") is False
    assert precision.has_bf16_units(tmp_path / "missing", "win32") is False

    def no_sysctl(*args, **settings):
        raise FileNotFoundError

    monkeypatch.setattr(precision.subprocess, "run", no_sysctl)
    assert precision.has_bf16_units(system="darwin") is False


@pytest.mark.parametrize(("units", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_follows_the_processor_and_the_rest_is_kept(monkeypatch, units, expected):
    monkeypatch.setattr(precision, "has_bf16_units", lambda: units)
    assert precision.precision_for_cpu() == precision.precision_for_cpu(precision.AUTO) == expected
    assert [precision.precision_for_cpu(name) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
