"""How a patch starts: as the identity, or with both factors Kaiming-uniform as torch itself would draw them."""

from __future__ import annotations

import math

import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.generators.loading import generator_from_state
from antipure.methods.generators.stargan import StarGANNetwork
from antipure.methods.lora_patching.low_rank import PatchConfig
from antipure.methods.lora_patching.patch import new_patch
from antipure.methods.lora_patching.training import TrainingConfig, train_patch
from antipure.methods.lora_patching.training_state import load_state
from torch import nn


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return generator_from_state(StarGANNetwork(4, 5, 1).state_dict(), size=16)


def tensors(network, initialisation, seed=0):
    applied = new_patch(network, PatchConfig(8), seed, initialisation=initialisation)
    found = applied.tensors()
    applied.remove()
    return found


def test_kaiming_has_torchs_bounds_in_both_factors():
    """torch's own kaiming_uniform_ with a = sqrt(5), of the flattened matrices of the paper's code."""
    network = nn.Sequential(
        nn.Conv2d(20, 30, 4, 2, 1), nn.ConvTranspose2d(30, 40, 4, 2, 1), nn.Flatten(), nn.Linear(50, 60)
    )
    found = tensors(network, "kaiming")
    for name, inputs in (("0", 20 * 16), ("1", 30 * 16), ("3", 50)):
        for factor, columns in (("A", inputs), ("B", 8)):
            values, reference = found[f"{name}.lora_{factor}.weight"], torch.empty(4000, columns)
            nn.init.kaiming_uniform_(reference, a=math.sqrt(5))
            assert float(values.abs().max()) <= float(reference.abs().max()) * 1.001
            # Uniform: the deviation follows from the bound. 240 values are the fewest here.
            assert float(values.std()) == pytest.approx(float(reference.std()), rel=0.15)
            assert abs(float(values.mean())) < 0.2 * float(reference.std())


def test_a_seed_is_a_patch(generator):
    for initialisation in ("identity", "kaiming"):
        first, second = tensors(generator, initialisation), tensors(generator, initialisation)
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        other = tensors(generator, initialisation, seed=1)
        assert not torch.equal(first["main.0.lora_A.weight"], other["main.0.lora_A.weight"])


def test_identity_changes_nothing_at_first_and_kaiming_does(generator):
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        plain = generator.edit(pixels, "Male")
        for initialisation, same in (("identity", True), ("kaiming", False)):
            applied = new_patch(generator, PatchConfig(8), initialisation=initialisation)
            assert torch.equal(generator.edit(pixels, "Male"), plain) == same
            applied.remove()
            assert torch.equal(generator.edit(pixels, "Male"), plain)


def test_it_is_trained_from_and_said(generator, tmp_path):
    faces = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    settings = {"mode": "evaluation", "batch": 2, "inner_steps": 1, "rank": 2}
    patches = {}
    for initialisation in ("identity", "kaiming"):
        config = TrainingConfig(**settings, initialisation=initialisation)
        patches[initialisation] = train_patch(generator, faces, config, edits=("Male",)).patch
        assert patches[initialisation].metadata["initialisation"] == initialisation
    b = {name: patch.tensors["main.0.lora_B.weight"] for name, patch in patches.items()}
    assert float(b["identity"].abs().max()) <= 0.00101  # one step of Adam from 0
    assert float(b["kaiming"].abs().max()) > 0.1
    for wrong in (lambda: TrainingConfig(initialisation="zero"), lambda: tensors(generator, "zero")):
        with pytest.raises(AntiPureError, match="no initialisation 'zero'; choose identity or kaiming"):
            wrong()


def test_states_from_before_there_was_a_choice_go_on(generator, tmp_path, monkeypatch):
    """What they say of themselves has no `initialisation`; one of the other kind is another training."""
    from antipure.methods.lora_patching import training

    faces = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    settings = {"mode": "evaluation", "batch": 2, "inner_steps": 1, "rank": 2}
    seen = []

    def noted(path, identity, *rest):
        seen.append(identity)
        return load_state(path, identity, *rest)

    monkeypatch.setattr(training, "load_state", noted)
    file = tmp_path / "a.state"
    train_patch(generator, faces, TrainingConfig(**settings), edits=("Male",), state_file=file)
    train_patch(generator, faces, TrainingConfig(**settings, epochs=2), edits=("Male",), state_file=file)
    assert "initialisation" not in seen[0]
    with pytest.raises(AntiPureError, match="another training .different: initialisation"):
        train_patch(
            generator, faces, TrainingConfig(**settings, initialisation="kaiming"), edits=("Male",), state_file=file
        )
