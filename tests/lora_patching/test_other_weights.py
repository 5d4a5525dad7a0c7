"""A patch knows the weights it was trained on: on others of the same shapes it says so, its state stops."""

from __future__ import annotations

import copy
import hashlib
import logging
from dataclasses import replace

import pytest
import torch
from antipure.methods.architecture import weights_digest
from antipure.methods.errors import AntiPureError
from antipure.methods.files import read_pickle, write_checkpoint
from antipure.methods.generators.procedural_faces import draw_faces
from antipure.methods.generators.stargan import StarGAN, StarGANNetwork
from antipure.methods.lora_patching.patch import patched, trained_on_others
from antipure.methods.lora_patching.save_and_load import load_patch, save_patch
from antipure.methods.lora_patching.training import TrainingConfig, train_patch
from antipure.nodes import NODE_CLASS_MAPPINGS

QUICK = TrainingConfig(epochs=1, rank=2, inner_steps=1, batch=2, mode="evaluation")


def generator(seed: int) -> StarGAN:
    torch.manual_seed(seed)
    network = StarGANNetwork(conv_dim=4, n_labels=2, blocks=1)
    return StarGAN(network, {"dark": (1.0, 0.0), "light": (0.0, 1.0)}, size=32)


@pytest.fixture(scope="module")
def faces():
    return draw_faces(range(2), side=32)


@pytest.fixture(scope="module")
def patch(faces):
    return train_patch(generator(0), faces, QUICK).patch


def test_the_digest_is_of_values_whatever_holds_them():
    network = generator(0).network
    found = weights_digest(network)
    expected = hashlib.sha256()
    for name in sorted(network.state_dict()):
        value = network.state_dict()[name]
        expected.update(f"{name} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    assert found == expected.hexdigest() == weights_digest(generator(0)) == weights_digest(copy.deepcopy(network))
    assert weights_digest(network.half()) == weights_digest(copy.deepcopy(network).float())  # fp16 values, held wider
    with torch.no_grad():
        next(network.parameters()).view(-1)[3] += 0.5
    assert weights_digest(network) != weights_digest(generator(0).network.half())


def test_a_patch_says_so_on_other_weights_and_nothing_on_its_own(patch, tmp_path):
    for known in (patch, load_patch(save_patch(patch, tmp_path / "patch.safetensors"))):
        assert trained_on_others(generator(0), known) is None
        assert "trained on other weights" in trained_on_others(generator(1), known)
    silent = replace(patch, metadata={k: v for k, v in patch.metadata.items() if k != "weights"})
    assert trained_on_others(generator(1), silent) is None  # a patch from before, or another program's


def test_training_leaves_the_digest_of_the_unpatched_network(patch):
    own = generator(0)
    with patched(own, patch):
        assert weights_digest(own) != patch.metadata["weights"]
    assert weights_digest(own) == patch.metadata["weights"]


def test_the_nodes_say_it(patch, faces, caplog):
    apply, report = (NODE_CLASS_MAPPINGS[f"AntiPure{name}"]() for name in ("LoraPatchApply", "DefenceReport"))
    pictures = faces.permute(0, 2, 3, 1)
    for seed, said in ((0, False), (1, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            apply.apply(patch, 1.0, generator=generator(seed))
        assert ("other weights" in caplog.text) is said
        given = ("all", "FAKE", 2.0, 75, 0)
        text = report.measure(generator(seed), pictures, *given, patch=patch, strong_defender=False)["result"][0]
        assert ("patch: The patch was trained on other weights" in text) is said
        text = report.measure(generator(seed), pictures, *given, other_patch=patch, strong_defender=False)["result"][0]
        assert ("other_patch: The patch was trained on other weights" in text) is said


def test_a_state_goes_on_with_its_own_weights_only(patch, faces, tmp_path):
    state = tmp_path / "training.state"
    train_patch(generator(0), faces, QUICK, state_file=state)
    with pytest.raises(AntiPureError, match=r"another training \(different: weights\)"):
        train_patch(generator(1), faces, QUICK, state_file=state)
    older = read_pickle(state, "a state")
    del older["identity"]["weights"]  # as it was saved before weights were kept
    write_checkpoint(state, older)
    again = train_patch(generator(0), faces, QUICK, state_file=state).patch
    assert all(torch.equal(again.tensors[key], value) for key, value in patch.tensors.items())
