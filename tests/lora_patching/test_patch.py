"""Gated patches: every layer against a composed dense weight, gradients, files, merging, and the way back."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from antipure.methods.architecture import fingerprint
from antipure.methods.errors import AntiPureError
from antipure.methods.lora_patching.low_rank import GATES, PatchConfig
from antipure.methods.lora_patching.patch import (
    LoraPatch,
    apply_patch,
    is_patched,
    merge_patch,
    new_patch,
    parameter_overhead,
    patched,
)
from antipure.methods.lora_patching.save_and_load import load_patch, save_patch
from antipure.methods.lora_patching.standard_lora import standard_lora
from safetensors.torch import load_file, save_file
from torch import nn

LAYERS = {
    "linear": lambda: nn.Linear(6, 5),
    "linear without bias": lambda: nn.Linear(6, 5, bias=False),
    "conv 1x1": lambda: nn.Conv2d(6, 4, 1),
    "conv": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "conv stride": lambda: nn.Conv2d(6, 4, 4, stride=2, padding=1, bias=False),
    "conv asymmetric": lambda: nn.Conv2d(6, 4, (3, 5), stride=(2, 1), padding=(0, 2)),
    "conv same": lambda: nn.Conv2d(6, 4, (4, 3), padding="same"),
    "conv valid": lambda: nn.Conv2d(6, 4, 3, padding="valid"),
    "conv dilated": lambda: nn.Conv2d(6, 4, 3, padding=2, dilation=2),
    "conv reflect": lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="reflect"),
    "conv circular same": lambda: nn.Conv2d(6, 4, 3, padding="same", padding_mode="circular", dilation=2),
    "conv replicate": lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="replicate"),
    "conv groups": lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "conv depthwise": lambda: nn.Conv2d(6, 12, 3, padding=1, groups=6),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1, bias=False),
    "transposed output padding": lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
    "transposed groups": lambda: nn.ConvTranspose2d(6, 4, (3, 2), stride=2, groups=2),
    "transposed dilated": lambda: nn.ConvTranspose2d(6, 4, 3, dilation=(2, 3), padding=1),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)
each_gate = pytest.mark.parametrize("gate", GATES)


def network(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer)


def input_for(layer: nn.Module) -> torch.Tensor:
    shape = (3, 6) if isinstance(layer, nn.Linear) else (2, 6, 9, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def randomise(applied, seed: int = 0) -> None:
    """Small random values everywhere, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in applied.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


class Net(nn.Module):
    """A bit of everything, one layer used twice under two names."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.InstanceNorm2d(width, affine=True)
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=2), nn.ReLU())
        self.shared = self.inner[0]
        self.up = nn.ConvTranspose2d(width, 4, 4, 2, 1)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.shared(self.inner(self.norm(self.first(x))))
        return self.last(self.up(x).movedim(1, -1)).movedim(-1, 1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def trained(target, gate="scalar", rank=4, **metadata) -> LoraPatch:
    """A patch with random values, made on the target and taken off again."""
    architecture = fingerprint(target)
    applied = new_patch(target, PatchConfig(rank, 2.0, gate), seed=3)
    randomise(applied)
    tensors = applied.tensors()
    applied.remove()
    return LoraPatch(PatchConfig(rank, 2.0, gate), tensors, architecture, metadata)


def snapshot(module: nn.Module) -> dict:
    """Everything that must be the same after a patch is gone."""
    return {
        "modules": {name: id(m) for name, m in module.named_modules(remove_duplicate=False)},
        "parameters": {n: (id(p), p.requires_grad, p.detach().clone()) for n, p in module.named_parameters()},
        "attributes": set(vars(module)),
        "training": [m.training for m in module.modules()],
    }


def assert_same(module: nn.Module, before: dict) -> None:
    now = snapshot(module)
    for name in ("modules", "attributes", "training"):
        assert now[name] == before[name]
    assert now["parameters"].keys() == before["parameters"].keys()
    for name, (identity, trainable, values) in before["parameters"].items():
        assert now["parameters"][name][:2] == (identity, trainable)
        assert torch.equal(now["parameters"][name][2], values)


def dense_update(layer: nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The weight of B(A x), summed entry by entry over inputs, outputs and rank."""
    delta = torch.zeros_like(layer.weight)
    if isinstance(layer, nn.Linear):
        for r in range(len(a)):
            delta += torch.outer(b[:, r], a[r])
        return delta
    groups = layer.groups
    ins, outs = layer.in_channels // groups, layer.out_channels // groups
    rank = b.shape[1]
    for group in range(groups):
        for i in range(ins):
            for o in range(outs):
                for r in range(rank):
                    factor = b[group * outs + o, r, 0, 0]
                    if isinstance(layer, nn.ConvTranspose2d):
                        delta[group * ins + i, o] += factor * a[group * ins + i, r]
                    else:
                        delta[group * outs + o, i] += factor * a[group * rank + r, i]
    return delta


def run_with_weight(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The layer's own arithmetic with another weight, through torch.nn.functional."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    if isinstance(layer, nn.ConvTranspose2d):
        geometry = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        return F.conv_transpose2d(x, weight, layer.bias, *geometry)
    (kh, kw), (dh, dw) = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        h, w = dh * (kh - 1), dw * (kw - 1)
        sides = (w // 2, w - w // 2, h // 2, h - h // 2)
    elif layer.padding == "valid":
        sides = (0, 0, 0, 0)
    else:
        sides = (layer.padding[1],) * 2 + (layer.padding[0],) * 2
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.conv2d(F.pad(x, sides, mode=mode), weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


@each_layer
@pytest.mark.parametrize("gate", ["none", "scalar"])
def test_a_patched_layer_is_the_layer_with_the_composed_weight(kind, gate):
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    applied = new_patch(network(layer), PatchConfig(3, 2.0, gate))
    randomise(applied)
    x = input_for(layer).double()
    a, b = applied.tensors()["0.lora_A.weight"], applied.tensors()["0.lora_B.weight"]
    g = 1 / (1 + math.exp(-float(applied.tensors()["0.lora_gate.logit"]))) if gate == "scalar" else 1
    update = 0.7 * g * 2 / math.sqrt(3) * dense_update(layer, a, b)
    expected = run_with_weight(layer, layer.weight + update, x)
    applied.strength = 0.7
    torch.testing.assert_close(applied.network(x), expected, rtol=1e-10, atol=1e-10)
    applied.merge()
    torch.testing.assert_close(layer.weight - update, applied._trainable[0][0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(applied.network(x), expected, rtol=1e-10, atol=1e-10)


@each_layer
@pytest.mark.parametrize("gate", ["input", "channel"])
def test_adaptive_gates_look_at_the_update(kind, gate):
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    applied = new_patch(network(layer), PatchConfig(3, 2.0, gate))
    randomise(applied)
    x = input_for(layer).double()
    t = applied.tensors()
    # Without the bias, B(A x) is the layer run with the composed weight alone.
    bias, layer.bias = layer.bias, None
    update = run_with_weight(layer, dense_update(layer, t["0.lora_A.weight"], t["0.lora_B.weight"]), x)
    layer.bias = bias
    weight, shift = t["0.lora_gate.mix.weight"].flatten(1), t["0.lora_gate.mix.bias"]
    if gate == "input":
        mean = update.mean((-2, -1)) if update.ndim == 4 else update
        g = torch.sigmoid(mean @ weight.T + shift)
        g = g[..., None, None] if update.ndim == 4 else g
    elif update.ndim == 4:
        g = torch.sigmoid(torch.einsum("oc,bchw->bohw", weight, update) + shift[:, None, None])
    else:
        g = torch.sigmoid(update @ weight.T + shift)
    expected = run_with_weight(layer, layer.weight, x) + 2 / math.sqrt(3) * g * update
    torch.testing.assert_close(applied.network(x), expected, rtol=1e-10, atol=1e-10)


def test_tokens_share_one_input_gate():
    applied = new_patch(network(nn.Linear(6, 5)), PatchConfig(2, gate="input"))
    randomise(applied)
    layer = applied.layers["0"]
    update = torch.randn(2, 7, 5)
    gate = layer.gate(update)
    assert gate.shape == (2, 1, 1)
    torch.testing.assert_close(gate[:, 0], torch.sigmoid(layer.gate.mix(update.mean(1))))


@each_gate
@pytest.mark.parametrize("kind", ["linear", "conv groups", "conv reflect", "transposed output padding"])
def test_gradients(kind, gate):
    torch.manual_seed(0)
    applied = new_patch(network(LAYERS[kind]().double()), PatchConfig(2, 2.0, gate))
    randomise(applied)
    layer = applied.layers["0"]
    x = (input_for(layer.base_layer)[:1, ..., :4]).double()
    x = input_for(layer.base_layer)[:1].double() if kind == "linear" else x[..., :4, :]
    x.requires_grad_()
    names = [n for n, p in layer.named_parameters() if p.requires_grad]
    assert len(names) == {"none": 2, "scalar": 3, "input": 4, "channel": 4}[gate]

    def run(pixels, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (pixels,))

    values = [p.detach().clone().requires_grad_() for p in layer.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(run, (x, *values))


@each_layer
@each_gate
def test_a_new_patch_changes_nothing(kind, gate):
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    x = input_for(layer)
    expected = layer(x)
    state = torch.get_rng_state()
    applied = new_patch(network(layer), PatchConfig(4, 2.0, gate), seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(applied.network(x), expected)
    a, b = applied.layers["0"].factors
    assert a.weight.std() > 0
    assert not b.weight.any()
    # B receives gradient at once, so the patch leaves 0.
    applied.network(x).square().sum().backward()
    assert b.weight.grad.abs().max() > 0
    assert layer.weight.grad is None
    update = torch.randn(expected.shape)
    if gate != "none":
        assert torch.allclose(applied.layers["0"].gate(update), torch.sigmoid(torch.tensor(-1.0)))


def test_the_seed_decides_the_first_values(net):
    def first(seed):
        applied = new_patch(net, PatchConfig(), seed)
        tensors = applied.tensors()
        applied.remove()
        return tensors

    one, same, other = first(1), first(1), first(2)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["first.lora_A.weight"], other["first.lora_A.weight"])
    bound = 1 / math.sqrt(3 * 9)
    assert bound * 0.8 < one["first.lora_A.weight"].abs().max() <= bound


@each_gate
def test_strength_and_removal(net, x, gate):
    before, y = snapshot(net), net(x)
    patch = trained(net, gate)
    assert_same(net, before)
    with patched(net, patch):
        full = net(x)
        assert not any(p.requires_grad for p in net.parameters())
    with patched(net, patch, 0.0):
        torch.testing.assert_close(net(x), y, rtol=0, atol=1e-6)
    applied = apply_patch(net, patch, 0.5)
    half = net(x)
    applied.strength = 1
    assert torch.equal(net(x), full)
    with applied.bypassed():
        torch.testing.assert_close(net(x), y, rtol=0, atol=1e-6)
    assert torch.equal(net(x), full)
    assert (full - y).norm() > (half - y).norm() > 0
    applied.remove()
    applied.remove()
    assert_same(net, before)
    assert torch.equal(net(x), y)


def test_some_layers_only(net):
    before = snapshot(net)
    applied = new_patch(net, PatchConfig(2, gate="none"), layers=["last", "first"])
    assert list(applied.layers) == ["last", "first"]
    assert {name for name, module in net.named_modules() if hasattr(module, "lora_A")} == {"first", "last"}
    assert {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad} == {"first", "last"}
    applied.remove()
    assert_same(net, before)


def test_evaluation_mode_ends_with_the_patch(net):
    net.train()
    net.norm.eval()
    before = snapshot(net)
    applied = new_patch(net, PatchConfig(2))
    applied.evaluate()
    assert not any(module.training for module in net.modules())
    applied.remove()
    assert_same(net, before)


def test_removing_again_leaves_a_later_patch_alone(net):
    first = new_patch(net, PatchConfig(2))
    first.remove()
    second = new_patch(net, PatchConfig(3))
    second.evaluate()
    carried = snapshot(net)
    first.remove()
    assert_same(net, carried)
    second.remove()


def test_any_adapter_of_pefts_counts_as_a_patch(net):
    from peft import LoHaConfig, inject_adapter_in_model

    inject_adapter_in_model(LoHaConfig(r=2, target_modules=["last"]), net)
    assert is_patched(net)
    with pytest.raises(AntiPureError, match="carries a patch already"):
        new_patch(net, PatchConfig(2))


@pytest.mark.parametrize("gate", ["none", "scalar"])
def test_merged_equals_unmerged(net, x, gate):
    before, patch = snapshot(net), trained(net, gate)
    with patched(net, patch, 0.8):
        expected = net(x)
    merged = merge_patch(net, patch, 0.8)
    assert not is_patched(net)
    assert {n: id(m) for n, m in net.named_modules(remove_duplicate=False)} == before["modules"]
    assert (net(x) - expected).abs().max() < 1e-5
    merged.remove()
    assert_same(net, before)
    applied = apply_patch(net, patch, 0.8)
    applied.merge()
    applied.merge()
    assert (net(x) - expected).abs().max() < 1e-5
    applied.strength = 0.4
    merged_half = net(x)
    applied.unmerge()
    assert (net(x) - merged_half).abs().max() < 1e-5
    with applied.folded():
        assert applied.merged
    assert not applied.merged
    applied.remove()
    assert_same(net, before)


@pytest.mark.parametrize("gate", ["input", "channel"])
def test_adaptive_gates_cannot_be_merged(net, x, gate):
    before, patch = snapshot(net), trained(net, gate)
    with pytest.raises(AntiPureError, match="depends on the picture and cannot be merged"):
        merge_patch(net, patch)
    assert_same(net, before)
    with pytest.raises(AntiPureError, match="cannot be merged"):
        standard_lora(net, patch)
    assert_same(net, before)
    applied = apply_patch(net, patch)
    with applied.folded():
        assert not applied.merged
    applied.remove()


def test_layers_with_computed_weights_are_patched_but_not_merged(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 3, 3))).eval()
    before, y, patch = snapshot(net), net(x), trained(net)
    with patched(net, patch):
        assert not torch.equal(net(x), y)
    with pytest.raises(AntiPureError, match="computes its weight anew"):
        merge_patch(net, patch)
    assert_same(net, before)
    assert torch.equal(net(x), y)


def test_half_precision_networks_keep_their_type(net, x):
    y = net(x)
    patch = trained(net)
    with patched(net, patch):
        expected = net(x)
    half = net.bfloat16()
    with patched(half, patch):
        assert all(p.dtype == torch.float32 for n, p in half.named_parameters() if "lora_" in n)
        result = half(x.bfloat16())
    assert result.dtype == torch.bfloat16
    assert (result - expected).abs().mean() < 0.1 * (expected - y).abs().mean()


def test_normalisation_layers_and_hidden_projections_are_left_alone(x):
    net = nn.ModuleList([nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.MultiheadAttention(8, 2), nn.Conv2d(3, 3, 1)])
    patch = trained(net)
    assert patch.layers == ["3"]


def test_the_target_may_be_a_generator_with_its_own_fingerprint(net, x):
    class Generator:
        network, fingerprint = net, "abc123"

    patch = trained(Generator())
    assert patch.architecture == "abc123"
    y = net(x)
    with patched(Generator(), patch) as same:
        assert not torch.equal(same.network(x), y)
    with patched(net, None):
        assert torch.equal(net(x), y)


def test_inference_mode(net, x):
    patch, before = trained(net), snapshot(net)
    with torch.inference_mode():
        with patched(net, patch):
            result = net(x)
        merged = merge_patch(net, patch)
        merged.remove()
    assert_same(net, before)
    with patched(net, patch):
        assert torch.equal(net(x), result)


def test_errors_inside_the_block_leave_the_network_as_it_was(net):
    before, patch = snapshot(net), trained(net)
    with pytest.raises(KeyboardInterrupt), patched(net, patch):
        raise KeyboardInterrupt
    assert_same(net, before)


@pytest.mark.parametrize(("rank", "gate"), [(1, "none"), (8, "scalar"), (3, "input"), (2, "channel")])
def test_overhead_counts_what_is_added(net, rank, gate):
    config = PatchConfig(rank, 2.0, gate)
    original = sum(p.numel() for p in net.parameters())
    share = parameter_overhead(net, config)
    applied = new_patch(net, config)
    assert share == sum(p.numel() for p in applied.parameters()) / original
    applied.remove()


@pytest.mark.parametrize("form", ["patch.safetensors", "folder"])
@each_gate
def test_files(net, x, tmp_path, form, gate):
    patch = trained(net, gate, mode="evaluation")
    patch = dataclasses.replace(patch, metadata={**patch.metadata, "epochs": 1})
    path = save_patch(patch, tmp_path / "deep" / form)
    loaded = load_patch(path)
    assert loaded.config == patch.config
    assert loaded.architecture == patch.architecture
    assert loaded.metadata == {"mode": "evaluation", "epochs": 1}
    assert set(loaded.tensors) == set(patch.tensors)
    assert all(torch.equal(loaded.tensors[k], v) for k, v in patch.tensors.items())
    assert not list(tmp_path.rglob("*.part"))
    with patched(net, patch):
        expected = net(x)
    with patched(net, loaded):
        assert torch.equal(net(x), expected)


def test_peft_reads_the_folder(net, x, tmp_path):
    import peft

    patch = trained(net, "scalar")
    with patched(net, patch):
        expected = net(x)
    folder = save_patch(patch, tmp_path / "adapter")
    config = peft.PeftConfig.from_pretrained(str(folder))
    assert (config.r, config.lora_alpha, config.use_rslora) == (4, 2.0, True)
    weights = peft.utils.save_and_load.load_peft_weights(str(folder), device="cpu")
    applied = new_patch(net, patch.config)
    stripped = {k.removeprefix("base_model.model."): v for k, v in weights.items()}
    result = peft.set_peft_model_state_dict(net, stripped)
    assert not result.unexpected_keys
    assert all(torch.equal(value, patch.tensors[name]) for name, value in applied.tensors().items())
    torch.testing.assert_close(net(x), expected)
    saved = peft.get_peft_model_state_dict(net)
    applied.remove()
    assert all(torch.equal(saved[name], value) for name, value in patch.tensors.items())


def test_standard_keys_give_the_same_weights(x):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten(), nn.Linear(144, 5, bias=False)
    )
    patch = trained(net)
    exported = standard_lora(net, patch, strength=0.6, prefix="diffusion_model.")
    assert len(exported) == 9
    original = {n: p.clone() for n, p in net.named_parameters()}
    merge_patch(net, patch, 0.6)
    for name in ("0", "1", "3"):
        up, down = (exported[f"diffusion_model.{name}.lora_{part}.weight"] for part in ("up", "down"))
        weight = net.get_submodule(name).weight
        scale = float(exported[f"diffusion_model.{name}.alpha"]) / down.shape[0]
        dense = (up.flatten(1) @ down.flatten(1)) * scale
        if name == "1":  # a standard loader's product is per input channel of one group
            assert up.shape == (4, 8, 1, 1)
        torch.testing.assert_close(original[f"{name}.weight"] + dense.reshape(weight.shape), weight)


def test_transposed_convolutions_have_no_standard_keys(net):
    before = snapshot(net)
    with pytest.raises(AntiPureError, match="transposed convolution"):
        standard_lora(net, trained(net))
    assert_same(net, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"rank": True}, "rank is True"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"gate": "soft"}, "no gate 'soft'"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(AntiPureError, match=message):
        PatchConfig(**arguments)


def test_patches_that_do_not_fit(net, x):
    before, patch, y = snapshot(net), trained(net, generator="toy"), net(x)
    cases = [
        (Net(8), patch, "was made for 'toy'"),
        (net, LoraPatch(PatchConfig(2), patch.tensors, patch.architecture), "does not fit a rank 2 patch"),
        (net, LoraPatch(patch.config, dict(list(patch.tensors.items())[1:]), patch.architecture), "missing"),
        (net, LoraPatch(patch.config, {**patch.tensors, "extra": y}, patch.architecture), "should be absent"),
        (nn.Sequential(nn.ReLU()), patch, "no inner linear or convolution"),
        (nn.Linear(2, 2), patch, "no inner linear or convolution"),
        ("generator", patch, "is no network"),
    ]
    for target, wrong, message in cases:
        with pytest.raises(AntiPureError, match=message):
            apply_patch(target, wrong)
        assert_same(net, before)
    for strength in (float("nan"), float("inf")):
        with pytest.raises(AntiPureError, match="strength is"):
            apply_patch(net, patch, strength)
    with patched(net, patch):
        inside = net(x)
        with pytest.raises(AntiPureError, match="carries a patch already"):
            apply_patch(net, patch)
        assert torch.equal(net(x), inside)
    assert_same(net, before)


def rewritten(path, *, tensors=None, **changes):
    """A saved patch with parts of its description or its tensors changed."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["antipure_patch"]) | changes
    content = load_file(path) | (tensors or {})
    save_file({k: v for k, v in content.items() if v is not None}, path, {"antipure_patch": json.dumps(description)})


def test_files_that_are_no_patches(net, tmp_path):
    patch = trained(net)
    good = save_patch(patch, tmp_path / "good.safetensors")
    key = "base_model.model.first.lora_B.weight"

    def copy(name):
        (tmp_path / name).write_bytes(good.read_bytes())
        return tmp_path / name

    def refuse(path, message):
        with pytest.raises(AntiPureError, match=message) as caught:
            load_patch(path)
        assert str(path.name) in str(caught.value)
        assert "\n" not in str(caught.value)

    refuse(tmp_path / "missing.safetensors", "There is no patch")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": 1}))
    refuse(tmp_path / "evil.pt", "pickle, which could run code")
    (tmp_path / "old").mkdir()
    refuse(tmp_path / "old", "There is no patch")
    (tmp_path / "old" / "adapter_model.bin").write_bytes(pickle.dumps({}))
    refuse(tmp_path / "old", "pickle")
    (tmp_path / "disguised.safetensors").write_bytes(pickle.dumps({"a": 1}))
    refuse(tmp_path / "disguised.safetensors", "not a complete safetensors")
    cut = copy("cut.safetensors")
    cut.write_bytes(cut.read_bytes()[:-7])
    refuse(cut, "not a complete safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, foreign)
    refuse(foreign, "no LoRA patch of this pack")
    for text in ("{", "[" * 10**5, '{"a":' * 10**5):
        save_file({"a": torch.zeros(2)}, foreign, {"antipure_patch": text})
        refuse(foreign, "damaged description")
    for changes, message in [
        ({"rank": 5}, "says rank 5, but layer"),
        ({"rank": "many"}, "The rank is many"),
        ({"gate": "new"}, "no gate 'new'"),
        ({"version": 99}, "newer version"),
        ({"metadata": 3}, "damaged description"),
        ({"tensors": {key: None}}, "lacks a part of layer first"),
        ({"tensors": {key: torch.full((6, 4, 1, 1), float("nan"))}}, "not finite"),
        ({"tensors": {key: torch.zeros(6, 4, 1, 1, dtype=torch.int32)}}, "not finite"),
    ]:
        path = copy("changed.safetensors")
        rewritten(path, **changes)
        refuse(path, message)
    assert load_patch(good).config == patch.config


def test_places_that_cannot_be_written(net, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(AntiPureError, match="cannot be written"):
        save_patch(trained(net), tmp_path / "file" / "patch.safetensors")
    assert (tmp_path / "file").read_text() == "x"
