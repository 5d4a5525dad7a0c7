"""Hypothesis against the three ways in: pictures with budgets and masks, checkpoint files, and workflow files.

`make test` tries a few hundred cases, the mark `nightly` thousands (`make nightly`); both are seeded: the same cases
every time. A case that fails is printed small.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from antipure.cli.checks import check_node, check_nodes, execution_order, needed
from antipure.cli.graph import read_workflow, set_inputs
from antipure.cli.terminal import controls
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.diffusion.checkpoints import OWN_FORMAT, load_denoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.lora_patching.low_rank import PatchConfig
from antipure.methods.lora_patching.patch import LoraPatch
from antipure.methods.lora_patching.save_and_load import load_patch, save_patch
from antipure.methods.pictures import round_8bit
from antipure.methods.protections import NAMES, NO_PROTECTION, apply_protection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file


def fuzzed(examples: int, *strategies):
    """A test of this many cases."""
    bounds = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: bounds(given(*strategies)(test))


def refusal(work: Callable[[], object]) -> str:
    """The sentence with which something was refused; nothing where it was not. Other errors pass through."""
    try:
        work()
    except AntiPureError as error:
        return str(error) or "no sentence"
    return ""


# Pictures, budgets, masks, presets ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One protection that is asked for."""

    preset: str
    height: int
    width: int
    batch: int
    content: str
    levels: float
    steps: int
    mask: str
    seed: int

    @functools.cached_property
    def picture(self) -> torch.Tensor:
        shape = (self.batch, 3, self.height, self.width)
        random = torch.rand(shape, generator=torch.Generator().manual_seed(self.seed % 2**31))
        return {
            "any values": random,
            "8-bit": round_8bit(random),
            "black": torch.zeros(shape),
            "white": torch.ones(shape),
            "only extremes": random.round(),
            "nearly grey": 0.5 + random * 1e-3,
        }[self.content]

    @functools.cached_property
    def allowed(self) -> torch.Tensor | None:
        shape = (self.batch, 1, self.height, self.width)
        random = torch.rand(shape, generator=torch.Generator().manual_seed(self.seed % 2**31 + 1))
        return {
            "none": None,
            "all": torch.ones(shape),
            "nothing": torch.zeros(shape),
            "binary": random.round(),
            "any values": random,
            "tiny values": random * 1e-6,
        }[self.mask]


# The rest act on the latent of a VAE; the tiny denoiser works on pixels.
PIXELS = [name for name in NAMES if name not in ("photoguard", "mist", "mist_textural", "pid")]
CASES = st.builds(
    Case,
    preset=st.sampled_from([name for name in PIXELS if name != "simac"]),  # it takes a second; see below
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    batch=st.integers(1, 2),
    content=st.sampled_from(["any values", "8-bit", "black", "white", "only extremes", "nearly grey"]),
    levels=st.one_of(st.floats(1e-3, 255, allow_nan=False), st.sampled_from([0.5, 1, 2, 8, 16, 255])),
    steps=st.integers(1, 2),
    mask=st.sampled_from(["none", "all", "nothing", "binary", "any values", "tiny values"]),
    seed=st.integers(0, 2**64 - 1),
)


def check_protection(denoiser, case: Case) -> None:
    """Within the budget at every pixel, 8-bit wherever it changed, of one picture whatever lies beside it."""
    before, weights = case.picture.clone(), [p.detach().clone() for p in denoiser.network.parameters()]
    seeds = [case.seed] * case.batch
    attack = AttackSettings(case.levels, case.steps, case.allowed, seeds)
    with denoiser.session():
        result = apply_protection(case.preset, case.picture, denoiser, attack)
    assert torch.equal(case.picture, before), "the picture that was given has changed"
    assert all(torch.equal(p, w) for p, w in zip(denoiser.network.parameters(), weights, strict=True))
    assert result.shape == case.picture.shape
    assert result.dtype == torch.float32
    assert bool(((result >= 0) & (result <= 1)).all())
    if case.preset == NO_PROTECTION:
        assert torch.equal(result, round_8bit(case.picture))
        return
    allowed = torch.ones(1) if case.allowed is None else case.allowed.double()
    change = (result.double() - case.picture.double()).abs() * 255
    # What lies within a thousandth of a level of an 8-bit value counts as that value.
    assert bool((change <= case.levels * allowed + 1.1e-3).all()), float((change - case.levels * allowed).max())
    moved = result != case.picture
    assert torch.equal(result[moved], round_8bit(result)[moved])
    if case.batch > 1:
        mask = None if case.allowed is None else case.allowed[1:]
        with denoiser.session():
            alone = apply_protection(
                case.preset, case.picture[1:], denoiser, AttackSettings(case.levels, case.steps, mask, case.seed)
            )
        assert torch.equal(alone, result[1:])


@fuzzed(200, CASES)
def test_every_protection_keeps_its_promises(tiny, case):
    check_protection(tiny, case)


@pytest.mark.nightly
@fuzzed(5000, CASES)
def test_every_protection_keeps_its_promises_nightly(tiny, case):
    check_protection(tiny, case)


SLOW_CASES = CASES.map(lambda case: replace(case, preset="simac", steps=1))


@fuzzed(2, SLOW_CASES)
def test_simac_keeps_its_promises(tiny, case):
    check_protection(tiny, case)


@pytest.mark.nightly
@fuzzed(100, SLOW_CASES)
def test_simac_keeps_its_promises_nightly(tiny, case):
    check_protection(tiny, case)


_odd = st.sampled_from([0.0, -1.0, 255.5, math.nan, math.inf, -math.inf])


@fuzzed(40, st.sampled_from([name for name in PIXELS if name != NO_PROTECTION]), _odd)
def test_a_budget_that_makes_no_sense_is_refused(tiny, preset, levels):
    with pytest.raises(AntiPureError, match="levels is"), tiny.session():
        apply_protection(preset, torch.rand(1, 3, 8, 8), tiny, AttackSettings(levels, 1))


# Checkpoint files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(make_tiny, tmp_path_factory) -> dict[str, tuple]:
    """Bytes of small files of every kind, and what reads them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    unet = make_tiny().unet
    state = {key: value.half().contiguous() for key, value in unet.state_dict().items()}
    config = {
        "unet": dict(unet.config),
        "scheduler": {"num_train_timesteps": 1000},
        "tile": 16,
        "patch": 1,
    }
    save_file(state, folder / "own.safetensors", {"format": OWN_FORMAT, "config": json.dumps(config)})
    torch.save({"input_blocks.0.0.weight": torch.zeros(8, 3, 3, 3), "out.2.bias": torch.zeros(3)}, folder / "adm.pt")
    tensors = {"body.0.lora_A.weight": torch.ones(2, 6, 3, 3), "body.0.lora_B.weight": torch.ones(8, 2, 1, 1)}
    tensors["body.0.lora_gate.logit"] = torch.zeros(1)
    save_patch(LoraPatch(PatchConfig(2), tensors, "0" * 8, {"mode": "evaluation"}), folder / "patch.safetensors")
    assert load_denoiser(folder / "own.safetensors").tile == 16
    assert load_patch(folder / "patch.safetensors").config.rank == 2
    readers = {"own.safetensors": load_denoiser, "adm.pt": load_denoiser, "patch.safetensors": load_patch}
    return {name: ((folder / name).read_bytes(), read) for name, read in readers.items()}


# Where a change goes: mostly into the header, which is what decides how the rest is read.
_place = st.one_of(st.integers(0, 16), st.integers(0, 4000), st.floats(0, 1, exclude_max=True))
_bytes = st.one_of(st.binary(max_size=9), st.sampled_from([b"9", b"-", b"null", b"[]", b'"', b"}", b"0" * 20, b"\0"]))
CHANGES = st.lists(
    st.tuples(st.sampled_from(["cut", "insert", "replace", "remove"]), _place, _bytes), min_size=1, max_size=4
)
# A number in a header, of another value and as long: what comes after stays where it was.
NUMBERS = st.lists(
    st.tuples(st.just("digit"), st.integers(0, 4000), st.sampled_from([b"0", b"1", b"9", b"-"])), max_size=3
)


def changed(content: bytes, changes: list[tuple[str, int | float, bytes]]) -> bytes:
    for kind, place, piece in changes:
        at = min(int(place * len(content)) if isinstance(place, float) else place, len(content))
        if kind == "cut":
            content = content[:at]
        elif kind == "digit":
            digits = [i for i, byte in enumerate(content[:20_000]) if chr(byte).isdigit() and i >= 8]
            at = digits[int(place) % len(digits)]
            content = content[:at] + piece + content[at + 1 :]
        else:
            end = at + (0 if kind == "insert" else max(len(piece), 1))
            content = content[:at] + (b"" if kind == "remove" else piece) + content[end:]
    return content


def check_checkpoint(checkpoints, folder: Path, name: str, changes) -> None:
    """It loads, or is refused in a sentence."""
    content, read = checkpoints[name]
    path = folder / name
    path.write_bytes(changed(content, changes))
    sentence = refusal(lambda: read(path))
    assert sentence == "" or str(path) in sentence
    assert "\n" not in sentence


_names = st.sampled_from(["own.safetensors", "adm.pt", "patch.safetensors"])


@fuzzed(150, _names, NUMBERS | CHANGES)
def test_a_damaged_checkpoint_loads_or_is_refused(checkpoints, tmp_path_factory, name, changes):
    check_checkpoint(checkpoints, tmp_path_factory.getbasetemp(), name, changes)


@pytest.mark.nightly
@fuzzed(5000, _names, NUMBERS | CHANGES)
def test_a_damaged_checkpoint_loads_or_is_refused_nightly(checkpoints, tmp_path_factory, name, changes):
    check_checkpoint(checkpoints, tmp_path_factory.getbasetemp(), name, changes)


# Workflow files -------------------------------------------------------------------------------------------------

_text = st.one_of(
    st.text(max_size=12), st.sampled_from(["1", "2", "3", "9", "true", "8", "a\0b", "\ud800", "x" * 5000])
)
_plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _text, st.integers(10**300, 10**310))
_link = st.tuples(_text, st.integers(-3, 3) | st.floats() | st.none()).map(list)
_flat = _plain | _link
_json = _flat | st.lists(_flat, max_size=3) | st.dictionaries(_text, _flat | st.lists(_flat, max_size=2), max_size=3)
_key = st.one_of(st.sampled_from(["image", "denoiser", "preset", "steps", "seed", "levels", "images", "mask"]), _text)
EDITS = st.lists(
    st.tuples(
        st.sampled_from([*["input"] * 6, "drop input", "node", "any node", "drop node", "class", "inputs", "meta"]),
        st.sampled_from(["1", "2", "3", "4", "5"]),
        _key,
        _json,
    ),
    max_size=5,
)


def edited(prompt: dict, edits: list[tuple]) -> dict:
    prompt = copy.deepcopy(prompt)
    for kind, node_id, key, value in edits:
        node = prompt.get(node_id)
        if kind == "any node":
            prompt[key] = value
        elif kind == "node":
            prompt[key] = {"class_type": "AntiPureTransform", "inputs": {"image": [node_id, 0], key: value}}
        elif kind == "drop node":
            prompt.pop(node_id, None)
        elif isinstance(node, dict):
            inputs = node.get("inputs")
            if kind == "class":
                node["class_type"] = value
            elif kind == "inputs":
                node["inputs"] = value
            elif kind == "meta":
                node["_meta"] = {"title": value}
            elif isinstance(inputs, dict) and kind == "input":
                inputs[key] = value
            elif isinstance(inputs, dict):
                inputs.pop(key, None)
    return prompt


def check_workflow(folder: Path, content: bytes, setting: str) -> None:
    """It can be run, with every input of its kind, or is refused in a short sentence."""
    path = folder / "w.json"
    path.write_bytes(content)

    def check() -> None:
        prompt = needed(set_inputs(read_workflow(path), [setting] if setting else []))
        check_nodes(prompt)
        order = execution_order(prompt)
        assert sorted(order) == sorted(prompt)
        for node_id in order:
            found = check_node(prompt, node_id)
            for key, kind in (("steps", int), ("seed", int), ("preset", str), ("filename_prefix", str)):
                assert type(found.get(key, kind())) in (kind, list)

    sentence = refusal(check)
    assert not any(map(controls, sentence))
    assert len(sentence) < 1000


_settings = st.one_of(
    st.just(""),
    st.just("3.steps=2.0"),
    st.builds("{}.{}={}".format, st.sampled_from(["3", "Protect", "LoadImage", "9"]), _key, _json.map(json.dumps)),
    _text,
)


def workflow(edits: list[tuple], changes: list[tuple]) -> bytes:
    return changed(json.dumps(edited(read_workflow("protect"), edits)).encode(), changes)


_few_changes = st.one_of(st.just([]), st.just([]), st.just([]), CHANGES)


@fuzzed(300, EDITS, _few_changes, _settings)
def test_a_workflow_can_be_run_or_is_refused(tmp_path_factory, edits, changes, setting):
    check_workflow(tmp_path_factory.getbasetemp(), workflow(edits, changes), setting)


@pytest.mark.nightly
@fuzzed(5000, EDITS, _few_changes, _settings)
def test_a_workflow_can_be_run_or_is_refused_nightly(tmp_path_factory, edits, changes, setting):
    check_workflow(tmp_path_factory.getbasetemp(), workflow(edits, changes), setting)
