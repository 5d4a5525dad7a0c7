"""How often a step's host waits for a GPU, counted on the pretended device (tests/pretended): what of it is known.

While it waits it launches nothing, and the GPU idles. Whatever comes into the loops later is counted, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from antipure.methods import protections

WORK = Path(__file__).parent / "pretended" / "waits.py"
LATENT_ONLY = ("mist", "mist_semantic", "pid")
LIKE_OTHERS = ("robust_fast", "fast")  # but for their numbers
CLEANED = ("robust", "robust_set")  # with JPEG among the cleaners
MADE = [name for name in protections.NAMES if protections.needs_denoiser(name) and name not in LIKE_OTHERS]
SURROGATE = ("anti_dreambooth_aspl", "simac")
PURIFIERS = ("gridpure", "diffpure", "diffpure_resized", "vae")
NOTHING = [
    *(f"{name}, pixels" for name in MADE if name not in (*CLEANED, *LATENT_ONLY, *SURROGATE)),
    "strong, balanced",
    *(f"purify {name}" for name in PURIFIERS),
]
# Half precision may have overflowed: looked at once, for all segments together.
OVERFLOW = "looked at, methods/gradients/differentiation.py"
SURROGATES_LOSS = "looked at, methods/baselines/surrogate.py"
JPEG = "copied to the CPU, methods/pictures.py"  # Pillow's


@pytest.fixture(scope="module")
def found(pretended) -> dict:
    done = subprocess.run([sys.executable, str(WORK)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def waits(check: dict) -> dict[str, float]:
    """By file, how often in a step."""
    assert "failed" not in check, check
    by_file: dict[str, float] = {}
    for place, count in check["waits"].items():
        file = place.rsplit(":", 1)[0]
        by_file[file] = by_file.get(file, 0) + count / check["steps"]
    return by_file


@pytest.mark.parametrize("name", NOTHING)
def test_a_step_waits_for_nothing(found, name):
    assert waits(found[name]) == {}


@pytest.mark.parametrize("name", [name for name in MADE if name not in CLEANED])
def test_a_latent_step_waits_once_for_all_segments(found, name):
    expected = {OVERFLOW: 1.0} | ({SURROGATES_LOSS: 2 / 6} if name in SURROGATE else {})
    assert waits(found[f"{name}, latent"]) == expected


@pytest.mark.parametrize("name", SURROGATE)
def test_a_surrogates_training_is_looked_at_once(found, name):
    assert waits(found[f"{name}, pixels"]) == {SURROGATES_LOSS: 2 / 6}  # two of three steps each, for six of PGD's


@pytest.mark.parametrize("model", ["pixels", "latent"])
def test_what_is_saved_as_jpeg_is_fetched_together(found, model):
    overflow = {OVERFLOW: 1.0} if model == "latent" else {}
    # Once for a step's tiles and, with the clean picture's, twice for each VAE's view: one VAE here.
    assert waits(found[f"all through JPEG, {model}"]) == {JPEG: 3.0} | overflow
    for name in CLEANED:
        drawn = waits(found[f"{name}, {model}"])
        assert drawn.pop(JPEG, 0) <= 3
        assert drawn == overflow


def test_the_worst_of_two_is_chosen_by_one_look(found):
    seen = waits(found["strong, worst of two"])
    assert seen.pop("copied to the CPU, methods/attacks/ensemble.py") == 1
    assert seen.pop(OVERFLOW, 0) <= 1  # where it is the latent one that is taken
    assert seen == {}


def test_every_kind_of_wait_is_counted(found):
    check = found["one of each kind"]
    # A mask is told twice, as its places are found, and an index from the CPU, as it is copied.
    kinds = {
        "looked at": 1, "copied to the CPU": 1, "copied from the CPU": 4, "aten::nonzero": 1, "aten::equal": 1,
        "indexed by a mask or from the CPU": 2,
    }  # fmt: skip
    seen: dict[str, float] = {}
    for place, count in check["waits"].items():
        kind = place.split(", ")[0]
        seen[kind] = seen.get(kind, 0) + count / check["steps"]
    assert seen == kinds
    assert sum(waits(found["strong, nothing pinned"]).values()) > 4


def test_everything_is_asked_for(found):
    latent = {f"{name}, latent" for name in MADE}
    pixels = {f"{name}, pixels" for name in MADE if name not in LATENT_ONLY}
    more = {"all through JPEG, pixels", "all through JPEG, latent"}
    more |= {"strong, worst of two", "one of each kind", "strong, nothing pinned"}
    assert set(found) == {*NOTHING, *latent, *pixels, *more}
