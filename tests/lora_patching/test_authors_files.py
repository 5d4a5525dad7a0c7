"""Patches in the layout of the paper's code, in the hands of a network written down here from its description."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from antipure.methods.errors import AntiPureError
from antipure.methods.generators.attgan import AttGANNetwork
from antipure.methods.generators.hisd import HiSDNetwork
from antipure.methods.generators.loading import generator_from_state
from antipure.methods.generators.stargan import StarGANNetwork
from antipure.methods.lora_patching.patch import merge_patch, patched
from antipure.methods.lora_patching.save_and_load import load_patch, save_patch
from safetensors.torch import save_file
from torch import nn

KINDS = {
    "StarGAN": lambda: StarGANNetwork(4, 5, 1),
    "AttGAN": lambda: AttGANNetwork((4, 8), (8,), 13),
    "HiSD": lambda: HiSDNetwork((2, 2, 3), (4, 8, 8), (4, 4), (4, 4), (4, 4), (4, 4), 4, 2),
}
RANK, ALPHA = 3, 2.0
GATES = ("none", "scalar", "input", "channel")
PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Theirs(nn.Module):
    """y = W x + g s B A x with the names of their files. early: A and B exchanged."""

    def __init__(self, layer, gate, early=False):
        super().__init__()
        self.linear, self.gate_kind, self.early = isinstance(layer, nn.Linear), gate, early
        setattr(self, "orig_linear" if self.linear else "orig_conv", layer)
        outputs, taps = (layer.out_features, ()) if self.linear else (layer.out_channels, layer.kernel_size)
        inputs = layer.in_features if self.linear else layer.in_channels
        first = (inputs, RANK, *taps) if isinstance(layer, nn.ConvTranspose2d) else (RANK, inputs, *taps)
        down, up = nn.Parameter(torch.randn(first) / 3), nn.Parameter(torch.randn(outputs, RANK) / 3)
        self.lora_A, self.lora_B = (up, down) if early else (down, up)
        self.scale = ALPHA if self.linear else ALPHA / math.sqrt(RANK)
        if gate == "scalar":
            self.gate = nn.Parameter(torch.randn(()))
        elif gate != "none":
            n = 1 if gate == "input" else outputs
            setattr(self, *(("gate_fc", nn.Linear(n, n)) if self.linear else ("gate_conv", nn.Conv2d(n, n, 1))))

    def forward(self, x):
        down, up = (self.lora_B, self.lora_A) if self.early else (self.lora_A, self.lora_B)
        if self.linear:
            y, update = self.orig_linear(x), x @ down.T @ up.T
        else:
            conv = self.orig_conv
            function = F.conv_transpose2d if isinstance(conv, nn.ConvTranspose2d) else F.conv2d
            y, update = conv(x), function(x, down, stride=conv.stride, padding=conv.padding)
            update = torch.einsum("brhw,or->bohw", update, up)
        gate = 1.0
        if self.gate_kind == "scalar":
            gate = torch.sigmoid(self.gate)
        elif self.gate_kind == "input":
            mean = update.flatten(1).mean(1, keepdim=True)
            gate = torch.sigmoid(self.gate_fc(mean) if self.linear else self.gate_conv(mean[..., None, None]))
        elif self.gate_kind == "channel":
            gate = torch.sigmoid(self.gate_fc(update) if self.linear else self.gate_conv(update))
        return y + gate * self.scale * update


def wrap(module, gate, early=False, linear=True):
    for name, child in list(module.named_children()):
        if isinstance(child, (nn.Conv2d, nn.ConvTranspose2d)) or (linear and isinstance(child, nn.Linear)):
            setattr(module, name, Theirs(child, gate, early))
        else:
            wrap(child, gate, early, linear)


def made(kind, gate, **changes):
    """A generator, and the state dict of their patched one around the same weights with its outputs."""
    torch.manual_seed(0)
    network = KINDS[kind]().eval()
    theirs = generator_from_state(network.state_dict(), size=16)
    wrap(theirs.network, gate, **changes)
    theirs.network.eval()
    with torch.no_grad():
        outputs = {edit: theirs.edit(PIXELS, edit) for edit in theirs.edits[:2]}
    state = {key: value.clone() for key, value in theirs.network.state_dict().items()}
    return generator_from_state(network.state_dict(), size=16), state, outputs


def check(generator, patch, outputs):
    with torch.no_grad():
        plain = {edit: generator.edit(PIXELS, edit) for edit in outputs}
        with patched(generator, patch):
            for edit, expected in outputs.items():
                torch.testing.assert_close(generator.edit(PIXELS, edit), expected, atol=2e-5, rtol=1e-4)
                assert (expected - plain[edit]).abs().max() > 0.01
        if patch.config.mergeable:
            merged = merge_patch(generator, patch)
            for edit, expected in outputs.items():
                torch.testing.assert_close(generator.edit(PIXELS, edit), expected, atol=2e-4, rtol=1e-3)
            merged.remove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", GATES)
def test_their_checkpoint_gives_their_outputs(kind, gate, tmp_path):
    generator, state, outputs = made(kind, gate)
    torch.save(state, tmp_path / "lora_patch4x.pth")
    patch = load_patch(tmp_path / "lora_patch4x.pth")
    assert (patch.config.rank, patch.config.alpha, patch.config.gate) == (RANK, ALPHA, gate)
    assert patch.metadata["generator"] == generator.name == kind
    check(generator, patch, outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_early_files_have_the_letters_exchanged_and_no_linear_layers(kind, tmp_path):
    generator, state, outputs = made(kind, "scalar", early=True, linear=False)
    torch.save({"module." + key: value for key, value in state.items()}, tmp_path / "a.pt")
    check(generator, load_patch(tmp_path / "a.pt"), outputs)


def test_the_mode_is_in_the_name_and_the_patch_can_be_saved_as_ours(tmp_path):
    generator, state, outputs = made("HiSD", "scalar")
    save_file(state, tmp_path / "lora_patch4HiSD_warning.safetensors")
    patch = load_patch(tmp_path / "lora_patch4HiSD_warning.safetensors")
    assert patch.metadata["mode"] == "defensive"
    again = load_patch(save_patch(patch, tmp_path / "ours.safetensors"))
    check(generator, again, outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("main.0.lora_B"), "has no 'main.0.lora_B'"),
        (lambda s: s.update({"main.0.lora_B": torch.zeros(4, 5)}), "do not fit its 8 inputs and 4 outputs"),
        (lambda s: s.update({"other.lora_A": torch.zeros(3, 5)}), "other.lora_A"),
        (lambda s: s.pop("main.0.orig_conv.weight"), "another network"),
        (lambda s: s.update({"main.0.lora_A": s["main.0.lora_A"] * math.nan}), "not finite"),
    ],
)
def test_files_that_contradict_themselves(change, message, tmp_path):
    _, state, _ = made("StarGAN", "scalar")
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(AntiPureError, match=message) as caught:
        load_patch(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_pickles_are_not_read(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"main.0.lora_A": 1}))
    torch.save({"main.0.weight": torch.zeros(2, 2)}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(AntiPureError, match="pickle, which could run code"):
            load_patch(tmp_path / name)


def test_the_generator_itself_is_not_changed_by_reading():
    generator, state, _ = made("StarGAN", "scalar")
    from pathlib import Path

    from antipure.methods.lora_patching.authors_files import authors_patch

    before = copy.deepcopy(state)
    patch = authors_patch(state, Path("x.pth"))
    assert all(torch.equal(value, before[key]) for key, value in state.items())
    assert patch.architecture == generator.fingerprint
