"""Methods and nodes on a pretended device (tests/pretended): the same pictures as on the CPU, nothing left behind.

tests/comfyui/test_pretended_device.py has the nodes that ComfyUI's own models go through.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from antipure.methods import protections

CHECKS = Path(__file__).parent / "pretended" / "checks.py"
# Those that need a latent denoiser's own parts; tests/comfyui has one on the device.
LATENT = ("mist", "mist_semantic", "pid")
NAMES = (
    "a tensor left behind",
    "an operation in no fixed order",
    *(f"cleaner {name}" for name in ("bilateral", "median", "blur", "jpeg")),
    *(f"protect {name}" for name in protections.NAMES if protections.needs_denoiser(name) and name not in LATENT),
    *("purify gridpure", "purify diffpure", "nodes", "half precision overflows", "train a patch"),
)


@pytest.fixture(scope="module")
def found(pretended) -> dict:
    done = subprocess.run([sys.executable, str(CHECKS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.parametrize("name", NAMES)
def test_the_device_gives_what_the_cpu_gives(found, name):
    check = found[name]
    assert "failed" not in check, check
    assert check["acts"]
    assert check["most"] < 1e-4, "the kernels are the CPU's, and noise is the same bytes"


def test_every_check_is_asked_for_and_ran_on_the_device(found):
    assert set(found) == {*NAMES, "used"}
    assert found["used"] > 1e6
