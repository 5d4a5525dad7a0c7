"""The customization benchmark's stages: kept, and made again exactly where a setting of theirs changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from antipure.benchmarks.customization import BASE, Run, measure
from antipure.benchmarks.customization_report import markdown
from antipure.benchmarks.work import Clock, read
from antipure.methods.customization.dreambooth_lora import CustomizationSettings
from antipure.methods.diffusion.checkpoints import BUNDLED
from antipure.methods.errors import AntiPureError


def run(work: Path, **changes) -> Run:
    settings = {
        "levels": 8, "protection_steps": 1, "purifier": "gridpure1/1", "sampling_steps": 1, "probe_crops": 2,
        "settings": CustomizationSettings(rank=1, steps=1, batch=1), "precision": "fp32", "customize": "bundled",
        "pipeline": None, "prompt": "", "clock": Clock(Counter()),
    }  # fmt: skip
    return Run(work, **settings | changes)


def test_an_unseen_purifier_and_an_unseen_model_redo_what_depends_on_them(tmp_path):
    subjects = {"face": read(BUNDLED.with_name("astronaut_face.png"))[..., :64, :64]}

    def files() -> Counter:
        return Counter(path.parent.name for path in tmp_path.rglob("*") if path.is_file())

    def figures(**changes) -> tuple[dict[tuple[str, bool], float], str]:
        results, _, left_out = measure(run(tmp_path, **changes), subjects, ["clean", "smooth", "mist_textural"], 1)
        assert list(left_out) == ["mist_textural"]
        return {(r.version, r.purified): r.loss for r in results}, markdown(results, BASE)

    first, page = figures()
    cases = [(BASE, False), ("clean", False), ("clean", True), ("smooth", False), ("smooth", True)]
    assert sorted(first) == sorted(cases)
    assert "Customized on it purified" in page
    assert files() == {"protected": 1, "purified": 2, "customized": 5, "samples": 5}
    assert figures()[0] == first
    assert files() == {"protected": 1, "purified": 2, "customized": 5, "samples": 5}

    unseen_purifier, _ = figures(purifier="held_out:gridpure1/1")
    assert files() == {"protected": 1, "purified": 4, "customized": 7, "samples": 7}
    assert {case for case in cases if unseen_purifier[case] != first[case]} == {case for case in cases if case[1]}

    unseen_model, _ = figures(customize="held_out")
    assert files() == {"protected": 1, "purified": 4, "customized": 12, "samples": 12}
    assert not set(unseen_model.values()) & set(first.values())


def test_a_purifier_that_cannot_be_run_is_refused(tmp_path):
    with pytest.raises(AntiPureError, match="VAE"):
        run(tmp_path, purifier="vae").purified("x", read(BUNDLED.with_name("astronaut_face.png")), 0)
