"""The defence report: both references, the cases behind every share, Wilson's intervals, and the strong defender."""

from __future__ import annotations

import json
import math

import pytest
import torch
from antipure.methods.architecture import fingerprint
from antipure.methods.attacks.loss import FunctionLoss
from antipure.methods.attacks.momentum import Momentum
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.errors import AntiPureError
from antipure.methods.generators.generator import Generator
from antipure.methods.generators.loading import generator_from_state
from antipure.methods.generators.stargan import StarGANNetwork
from antipure.methods.lora_patching.defence_metrics import wilson
from antipure.methods.lora_patching.defence_report import defence_report
from antipure.methods.lora_patching.defence_table import INPUTS, STRONG, TRANSFERRED
from antipure.methods.lora_patching.disrupting import LEVELS, disrupt
from antipure.methods.lora_patching.low_rank import PatchConfig
from antipure.methods.lora_patching.patch import LoraPatch, new_patch, patched, patched_copy
from antipure.methods.lora_patching.strong_defender import STRONG_LEVELS, strong_disrupt
from antipure.methods.lora_patching.warning import painted_over, text_warning
from antipure.methods.pictures import random_stream, round_8bit
from torch import nn

SIDE = 32


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return generator_from_state(StarGANNetwork(4, 5, 1).state_dict(), size=SIDE)


@pytest.fixture(scope="module")
def faces():
    return round_8bit(torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4)))


def made_patch(generator, scale, seed=7):
    """A patch of random factors: the larger, the further from the original network."""
    applied = new_patch(generator, PatchConfig(2))
    stream = torch.Generator().manual_seed(seed)
    tensors = {
        name: value if "gate" in name else scale * torch.randn(value.shape, generator=stream)
        for name, value in applied.tensors().items()
    }
    applied.remove()
    return LoraPatch(PatchConfig(2), tensors, fingerprint(generator), {})


@pytest.mark.parametrize(
    ("hits", "cases", "low", "high"),
    # Newcombe, Statistics in Medicine 17, 1998, Table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(hits, cases, low, high):
    assert wilson(hits / cases, cases) == pytest.approx((low, high), abs=5e-5)


def test_wilson_bounds_solve_the_score_equation():
    for hits, cases in ((1, 3), (7, 9), (50, 500), (499, 500)):
        share = hits / cases
        for bound in wilson(share, cases):
            assert abs(share - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / cases), rel=1e-6)
    assert all(math.isnan(bound) for bound in wilson(0.5, 0))


def test_a_patch_that_wrecks_the_network_is_seen_in_the_second_reference(generator, faces):
    """Against itself nothing is disrupted by the picture as it is, whatever the network has become."""
    report = defence_report(generator, made_patch(generator, 2.0), faces, edits=["Male", "Old"], strong=False)
    row = report.row(INPUTS[0])
    assert row.original == row.patched == 0
    assert row.against_original > 0.8
    assert report.psnr < 15


def test_shares_and_cases_by_hand(generator, faces):
    """Both references for one row, in plain torch, a loop over edits and faces."""
    patch = made_patch(generator, 0.3)
    edits = ["Male", "Blond_Hair"]
    row = defence_report(generator, patch, faces, edits=edits, strong=False).row("Disrupting")
    hits, cases = {"original": 0, "patched": 0, "against_original": 0}, dict.fromkeys(
        ("original", "patched", "against_original"), 0
    )  # fmt: skip
    grid = lambda y: ((y + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1  # noqa: E731
    for edit in edits:
        attacked = disrupt(generator, faces, [edit], together=True) * 2 - 1
        plain = faces * 2 - 1
        with torch.no_grad():
            original, broken = grid(generator.edit(plain, edit)), grid(generator.edit(attacked, edit))
            with patched(generator, patch):
                own, output = grid(generator.edit(plain, edit)), grid(generator.edit(attacked, edit))
        for key, reference, found in (
            ("original", original, broken), ("patched", own, output), ("against_original", original, output),
        ):  # fmt: skip
            for i in range(len(faces)):
                places = (reference[i] - plain[i]).abs().sum(0) > 0.5
                if places.any():
                    cases[key] += 1
                    hits[key] += bool((found[i] - reference[i]).square().mean(0)[places].mean() > 0.05)
    for key, count in cases.items():
        assert row.cases[key] == count > 0
        assert getattr(row, key) == pytest.approx(hits[key] / count)
        assert row.interval(key) == wilson(hits[key] / count, count)


def test_a_perturbation_against_another_patch(generator, faces):
    """Made by another patched network, judged in this one and in the original: by hand, edit by edit."""
    patch, other = made_patch(generator, 0.3), made_patch(generator, 0.3, seed=8)
    edits = ["Male", "Blond_Hair"]
    report = defence_report(generator, patch, faces, edits=edits, strong=False, other=other)
    assert [row.input for row in report.rows] == [*INPUTS, *TRANSFERRED]
    pixels, second = faces * 2 - 1, patched_copy(generator, other)
    values = {"original": [], "patched": [], "against_original": []}
    first = patched_copy(generator, patch)
    grid = lambda y: ((y + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1  # noqa: E731
    for edit in edits:
        attacked = disrupt(second, faces, [edit], together=True) * 2 - 1
        with torch.no_grad():
            original, own = grid(generator.edit(pixels, edit)), grid(first.edit(pixels, edit))
            broken, output = grid(generator.edit(attacked, edit)), grid(first.edit(attacked, edit))
        for key, reference, found in (
            ("original", original, broken), ("patched", own, output), ("against_original", original, output),
        ):  # fmt: skip
            for i in range(len(faces)):
                places = (reference[i] - pixels[i]).abs().sum(0) > 0.5
                values[key].append(float((found[i] - reference[i]).square().mean(0)[places].mean()))
    row = report.row(TRANSFERRED[0])
    for key, l2 in values.items():
        assert row.cases[key] == len(l2)
        assert row.mean_l2[key] == pytest.approx(sum(l2) / len(l2), rel=0.05)  # `second` is merged: other last bits
    assert row.mean_l2["patched"] != report.row(INPUTS[5]).mean_l2["patched"]


def test_the_other_patch_may_be_the_same_or_none_at_all(generator, faces):
    """Against itself a transferred perturbation is the leaked one, against an untrained patch the plain one."""
    patch = made_patch(generator, 0.3)
    settings = {"edits": ["Male"], "strong": False}
    for other, twin in ((patch, INPUTS[5]), (made_patch(generator, 0.0), INPUTS[3])):
        report = defence_report(generator, patch, faces, other=other, **settings)
        assert report.row(TRANSFERRED[0]).mean_l2 == report.row(twin).mean_l2
        assert report.row(TRANSFERRED[1]).mean_l2 == report.row(f"{twin} + JPEG").mean_l2
    plain = defence_report(generator, patch, faces, **settings)
    assert plain.rows == report.rows[: len(plain.rows)]
    strange = generator_from_state(StarGANNetwork(2, 5, 1).state_dict(), size=SIDE)
    with pytest.raises(AntiPureError, match="not for this network"):
        defence_report(generator, patch, faces, other=made_patch(strange, 0.3), **settings)


class Partly(Generator):
    """An edit that changes bright pictures alone."""

    name = "partly"

    def __init__(self):
        super().__init__(nn.Conv2d(3, 3, 1), edits=("edit",), size=SIDE, multiple=1)

    def _call(self, pixels, edit):
        bright = (pixels.mean((1, 2, 3), keepdim=True) > 0).float()
        return (pixels + bright * (1 + 0 * self.network(pixels))).clamp(-1, 1)


def test_edits_that_change_nothing_are_counted_and_said():
    pictures = round_8bit(torch.cat([torch.full((3, 3, SIDE, SIDE), 0.2), torch.full((1, 3, SIDE, SIDE), 0.6)]))
    pictures[:, 0] += 0.05  # not grey
    report = defence_report(Partly(), None, pictures, strong=False)
    assert {row.cases["original"] for row in report.rows} == {1}
    assert "valid cases of 4" in report.markdown()
    nothing = defence_report(Partly(), None, pictures[:3], strong=False)
    assert math.isnan(nothing.row("Disrupting").original)
    line = next(x for x in nothing.markdown().splitlines() if x.startswith("| Disrupting "))
    assert line.count(" - ") == 3
    assert json.loads(json.dumps(nothing.data()))["rows"][3]["original"] is None


def test_the_columns_that_were_there_stay_where_they_were(generator, faces):
    report = defence_report(generator, made_patch(generator, 0.3), faces, edits=["Male"])
    first = report.markdown().splitlines()
    assert [cell.strip() for cell in first[0].split("|")[1:4]] == ["input", "disrupted, original", "disrupted, patched"]
    assert [row.input for row in report.rows] == [*INPUTS, *STRONG]
    plain = defence_report(generator, made_patch(generator, 0.3), faces, edits=["Male"], strong=False)
    assert [row.input for row in plain.rows] == list(INPUTS)
    assert plain.rows == report.rows[: len(INPUTS)]
    assert all(torch.equal(value, report.examples[name]) for name, value in plain.examples.items())
    entry = json.loads(json.dumps(report.data()))["rows"][7]
    assert entry["input"] == "strong defender"
    assert entry["patched"]["cases"] == 3


def test_momentum_equals_a_plain_loop():
    x = round_8bit(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    weights = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    draws = torch.randn(6, 2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    count = iter(range(6))

    def loss(clean):
        return FunctionLoss(lambda pixels, _: [(pixels * (weights + 2 * draws[next(count)])).sum()])

    result = pgd(
        x, loss, AttackSettings(levels=9, steps=6), step_levels=2, decay=False, precondition=Momentum(0.8),
        together=True, rounded=False,
    )  # fmt: skip
    values, velocity = x * 255, torch.zeros_like(x)
    for step in range(6):
        gradient = weights + 2 * draws[step]
        velocity = 0.8 * velocity + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        values = (values + 2 * velocity.sign()).clamp(x * 255 - 9, x * 255 + 9).clamp(0, 255)
    assert (result * 255 - values).abs().max() < 1e-3


def test_the_strong_defender_breaks_both_networks_further(generator, faces):
    """Further than Disrupting with the same budget, against the original and the patched network, through JPEG too."""
    networks = [generator, patched_copy(generator, made_patch(generator, 0.3))]
    strong = strong_disrupt(networks, faces, "Male", steps=20)
    assert (strong - faces).abs().max() * 255 <= STRONG_LEVELS
    assert torch.equal(strong, round_8bit(strong))
    plain = disrupt(generator, faces, ["Male"], AttackSettings(STRONG_LEVELS, 10), together=True)
    noise = faces + (torch.rand(faces.shape, generator=random_stream(1)) * 2 - 1) * STRONG_LEVELS / 255
    for network in networks:

        def moved(other, network=network):
            with torch.no_grad():
                both = network.edit(torch.cat([faces, other.clamp(0, 1)]) * 2 - 1, "Male").chunk(2)
            return float((both[1] - both[0]).square().mean())

        assert moved(strong) > 3 * moved(noise)
        if network is not generator:
            assert moved(strong) > moved(plain)
    assert STRONG_LEVELS == 2 * LEVELS == pytest.approx(0.1 * 127.5)
    with pytest.raises(AntiPureError, match="needs a network"):
        strong_disrupt([], faces, "Male")
    with pytest.raises(AntiPureError, match="no edit 'Bald'"):
        strong_disrupt(networks, faces, "Bald")


def test_painting_over_pastes_the_picture_where_the_warning_stands():
    warning = text_warning(SIDE, SIDE)
    output, picture = torch.rand(2, 3, SIDE, SIDE), torch.rand(2, 3, SIDE, SIDE)
    painted = painted_over(output, picture, warning)
    ink = (warning != 0).any(1)[0]
    assert torch.equal(painted[..., ink], picture[..., ink])
    far = nn.functional.max_pool2d(ink[None, None].float(), 3, 1, 1)[0, 0] == 0
    assert far.any()
    assert torch.equal(painted[..., far], output[..., far])
