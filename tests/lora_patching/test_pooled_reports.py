"""Reports of parts are the report of the whole: what a benchmark keeps ten faces at a time."""

from __future__ import annotations

import json

import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.generators.loading import generator_from_state
from antipure.methods.generators.stargan import StarGANNetwork
from antipure.methods.lora_patching.defence_report import defence_report
from antipure.methods.lora_patching.defence_table import pooled
from antipure.methods.lora_patching.warning import text_warning
from antipure.methods.pictures import round_8bit


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return generator_from_state(StarGANNetwork(4, 5, 1).state_dict(), size=16)


def test_parts_add_up_to_the_whole(generator):
    faces = round_8bit(torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(4)))
    settings = {"edits": ["Male", "Old"], "warning": text_warning(16, 16, "A"), "batch": 2, "strong": False}
    whole = defence_report(generator, None, faces, **settings)
    parts = [defence_report(generator, None, faces[i : i + 2], seed=i, **settings).data() for i in (0, 2, 4)]
    found = pooled(json.loads(json.dumps(parts)))
    assert found.faces == 5
    assert found.psnr == pytest.approx(whole.psnr)
    assert found.markdown() == whole.markdown()
    for row, other in zip(found.rows, whole.rows, strict=True):
        assert {k: v for k, v in row.cases.items() if v} == {k: v for k, v in other.cases.items() if v}
        assert dict(row.mean_l2) == pytest.approx(dict(other.mean_l2), rel=1e-4)
    with pytest.raises(AntiPureError, match="measure them alike"):
        pooled([parts[0], {**parts[1], "quality": 80}])


def test_half_precision_attacks_and_full_precision_judgement(generator):
    """The picture as it is says the same; the attacks end elsewhere, and break as much."""
    faces = round_8bit(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(4)))
    full, half = (
        defence_report(generator, None, faces, edits=["Male"], strong=False, precision=precision)
        for precision in ("fp32", "bf16")
    )
    assert full.rows[:3] == half.rows[:3]
    a, b = (report.row("Disrupting").mean_l2["original"] for report in (full, half))
    assert a != b
    assert a == pytest.approx(b, rel=0.2)
