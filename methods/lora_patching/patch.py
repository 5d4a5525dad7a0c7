"""LoRA Patching (arXiv 2510.03747, IEEE SPL 2026): small gated updates that change what a frozen network does.

    patch = load_patch("patch.safetensors")            # save_and_load
    with patched(generator, patch, strength=1.0):      # the generator's layers are wrapped
        out = generator.edit(pixels, "blond")
    merge_patch(generator, patch)                      # or folded into its weights, at no cost per picture

The target is a generator (anything with a `network`) or a network itself. Whatever happens, `remove()` and the end
of `patched` leave the very same modules, parameters and trainability behind that were there before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..architecture import fingerprint, network_of, weights_digest
from ..errors import AntiPureError
from ..pictures import random_stream
from .low_rank import (
    INITIALISATIONS,
    PATCHABLE,
    Patchable,
    PatchConfig,
    added_parameters,
    kaiming,
    make_factors,
    make_gate,
)

if TYPE_CHECKING:
    from .layer import PatchLayer

WEIGHTS = "weights"  # in a patch's metadata: `weights_digest` of the network it was trained on


@dataclass(frozen=True)
class LoraPatch:
    """A patch away from its network.

    tensors: "{layer}.lora_A.weight", "{layer}.lora_B.weight" and the gate's "{layer}.lora_gate.*", on the CPU.
    architecture: fingerprint of the architecture it was made for. metadata: how it was made (mode, epochs, ...).
    """

    config: PatchConfig
    tensors: Mapping[str, Tensor]
    architecture: str
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """Names of the patched layers."""
        return [key.removesuffix(".lora_A.weight") for key in self.tensors if key.endswith(".lora_A.weight")]


def patchable_layers(network: nn.Module) -> dict[str, Patchable]:
    """The layers that a patch changes, by name: every Linear, Conv2d and ConvTranspose2d.

    The projections inside `nn.MultiheadAttention` are left out: torch reads their weights past their `forward`.
    Raises `AntiPureError` for a network that has none, or carries a patch already.
    """
    if is_patched(network):
        raise AntiPureError("The network carries a patch already; remove it before another one is applied.")
    hidden = {id(m.out_proj) for m in network.modules() if isinstance(m, nn.MultiheadAttention)}
    found = {n: m for n, m in network.named_modules() if isinstance(m, PATCHABLE) and id(m) not in hidden and n}
    if not found:
        raise AntiPureError("The network has no inner linear or convolution layer that could be patched.")
    return found


def is_patched(target: object) -> bool:
    """Whether the network carries a patch (of this pack, or another of peft's adapters)."""
    return any(hasattr(module, "adapter_layer_names") for module in network_of(target).modules())


def parameter_overhead(target: object, config: PatchConfig) -> float:
    """Parameters of the patch over parameters of the network (the paper's overhead, as a fraction)."""
    network = network_of(target)
    added = sum(added_parameters(layer, config) for layer in patchable_layers(network).values())
    return added / sum(p.numel() for p in network.parameters())


class AppliedPatch:
    """A patch on its network: strength, merging, and the way back. Made by `apply_patch`, `merge_patch`, `new_patch`.

    layers: the wrapping modules by name. strength: multiplies every update; can be set at any time.
    """

    def __init__(self, network: nn.Module, config: PatchConfig, layers: Sequence[str] | None = None):
        from .layer import inject

        targets = patchable_layers(network)
        if layers is not None:
            targets = {name: targets[name] for name in layers}
        self.network, self.config = network, config
        self._strength = 1.0
        self._trainable = [(p, p.requires_grad) for p in network.parameters()]
        self._modes: list[tuple[nn.Module, bool]] = []
        self._attributes = set(vars(network))
        wrapped = {id(layer) for layer in targets.values()}
        # Every place a layer stands in: peft replaces the first only, and a layer may be shared.
        self._slots = [
            (parent, name, child)
            for parent in network.modules()
            for name, child in parent._modules.items()
            if id(child) in wrapped
        ]
        try:
            with torch.inference_mode(False):  # so that the factors are ordinary tensors and can be trained
                self.layers: dict[str, PatchLayer] = inject(network, list(targets), config)
            replacement = {id(layer.base_layer): layer for layer in self.layers.values()}
            for parent, name, child in self._slots:
                parent._modules[name] = replacement[id(child)]
        except BaseException:
            self.layers = {}
            self.remove()
            raise

    @property
    def strength(self) -> float:
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        value = _checked_strength(value)
        merged = self.merged
        if merged:
            self.unmerge()
        self._strength = value
        for layer in self.layers.values():
            layer.strength = value
        if merged:
            self.merge()

    def parameters(self) -> list[nn.Parameter]:
        """A, B and gate of every layer, in the order of `tensors`."""
        return list(self._named_parameters().values())

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the patch's tensors on the CPU, as in `LoraPatch.tensors`."""
        return {name: p.detach().cpu().clone() for name, p in self._named_parameters().items()}

    def snapshot(self) -> dict[str, Tensor]:
        """`tensors` where they are: for a way back that waits for no GPU."""
        return {name: p.detach().clone() for name, p in self._named_parameters().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over values; names and shapes must be those of `tensors()`, the device may be any."""
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in self._named_parameters().items():
                parameter.copy_(tensors[name])

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = {}
        for name, layer in self.layers.items():
            a, b = layer.factors
            found |= {f"{name}.lora_A.weight": cast(nn.Parameter, a.weight)}
            found |= {f"{name}.lora_B.weight": cast(nn.Parameter, b.weight)}
            if layer.gate is not None:
                found |= {f"{name}.lora_gate.{key}": p for key, p in layer.gate.named_parameters()}
        return found

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """The untouched network for a while; what was merged comes back."""
        self._set_bypass(True)
        merged = self.merged
        if merged:
            self.unmerge()
        try:
            yield
        finally:
            self._set_bypass(False)
            if merged:
                self.merge()

    def _set_bypass(self, bypass: bool) -> None:
        for layer in self.layers.values():
            layer.bypass = bypass

    @property
    def merged(self) -> bool:
        return any(layer.merged for layer in self.layers.values())

    def merge(self) -> None:
        """Fold the patch into the weights; all layers or, on an error, none.

        Raises `AntiPureError` for gates that look at the picture and for layers without a weight of their own.
        """
        try:
            for layer in self.layers.values():
                layer.merge()
        except BaseException:
            self.unmerge()
            raise

    def unmerge(self) -> None:
        """The original parameters again: the same objects, bit for bit."""
        for layer in self.layers.values():
            layer.unmerge()

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Merged for a while where that is possible: the same outputs for less work. Else nothing happens."""
        possible = self.config.mergeable and not self.merged
        if possible and all("weight" in layer.base_layer._parameters for layer in self.layers.values()):
            self.merge()
            try:
                yield
            finally:
                self.unmerge()
        else:
            yield

    def evaluate(self) -> None:
        """Evaluation mode until the patch is removed: no dropout, and batch normalisation neither learns nor mixes."""
        self._modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()

    def unwrap(self) -> None:
        """Put the original modules back into the network, with the weights they have now (merged or not)."""
        if not self._slots:  # done before; by now the network may carry another patch
            return
        for parent, name, child in self._slots:
            parent._modules[name] = child
        for name in set(vars(self.network)) - self._attributes:
            delattr(self.network, name)
        for module, training in self._modes:
            module.training = training
        with torch.inference_mode(False):
            for parameter, trainable in self._trainable:
                if parameter.requires_grad != trainable:
                    parameter.requires_grad_(trainable)
        self._slots = []

    def remove(self) -> None:
        """The network as it was: its modules, parameters, trainability, modes. Calling it again does nothing."""
        self.unmerge()
        self.unwrap()


def new_patch(
    target: object,
    config: PatchConfig,
    seed: int = 0,
    layers: Sequence[str] | None = None,
    initialisation: str = "identity",
) -> AppliedPatch:
    """Put an untrained patch on a network.

    layers: names of some of `patchable_layers`; None: all of them. initialisation: "identity", A Kaiming-uniform from
    the seed and B = 0, so that nothing changes yet; or "kaiming", both factors at random as in the paper's code, which
    starts from another network than the one to be patched. Raises `AntiPureError` for another.
    """
    if initialisation not in INITIALISATIONS:
        raise AntiPureError(f"There is no initialisation '{initialisation}'; choose {' or '.join(INITIALISATIONS)}.")
    applied = AppliedPatch(network_of(target), config, layers)
    for i, layer in enumerate(applied.layers.values()):
        a, b = layer.factors
        if initialisation == "identity":
            kaiming(a, random_stream(seed, i))
        else:
            kaiming(a, random_stream(seed, 3, i, 0), thinned=False)
            kaiming(b, random_stream(seed, 3, i, 1))
    return applied


def check_patch(target: object, patch: LoraPatch) -> None:
    """Raise `AntiPureError` unless the patch was made for this architecture and is complete."""
    layers = patchable_layers(network_of(target))
    if patch.architecture != fingerprint(target):
        made_for = patch.metadata.get("generator")
        raise AntiPureError(
            f"The patch was made for {f'{made_for!r}' if made_for else 'another architecture'} "
            f"(fingerprint {patch.architecture[:12]}), not for this network ({fingerprint(target)[:12]}); "
            "load the generator it was trained on."
        )
    expected = _expected_shapes(layers, patch.config)
    found = {key: tuple(value.shape) for key, value in patch.tensors.items()}
    if found != expected:
        wrong = next(key for key in {**expected, **found} if expected.get(key) != found.get(key))
        raise AntiPureError(
            f"The patch does not fit a rank {patch.config.rank} patch of this network: {wrong} is "
            f"{found.get(wrong, 'missing')} and should be {expected.get(wrong, 'absent')}; train or load another one."
        )


def trained_on_others(target: object, patch: LoraPatch) -> str | None:
    """A sentence where the patch was trained on other weights than the (unpatched) network's; None where it fits.

    None, too, where its file does not say: patches from before it was kept, and other programs'.
    """
    known = patch.metadata.get(WEIGHTS)
    if not isinstance(known, str) or known == weights_digest(target):
        return None
    return (
        "The patch was trained on other weights than this network's, of the same architecture: what it does here is "
        "not what it was trained to do. Load the generator it was trained on, or train it again."
    )


def _expected_shapes(layers: Mapping[str, Patchable], config: PatchConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        for name, layer in layers.items():
            a, b = make_factors(layer, config.rank)
            shapes |= {f"{name}.lora_A.weight": tuple(a.weight.shape), f"{name}.lora_B.weight": tuple(b.weight.shape)}
            gate = make_gate(layer, config.gate)
            if gate is not None:
                shapes |= {f"{name}.lora_gate.{key}": tuple(p.shape) for key, p in gate.named_parameters()}
    return shapes


def apply_patch(target: object, patch: LoraPatch, strength: float = 1.0) -> AppliedPatch:
    """Wrap the network's layers with a patch, frozen. strength: multiplies every update; 0 is the original network.

    Raises `AntiPureError`, with the network untouched, for a patch of another architecture.
    """
    strength = _checked_strength(strength)
    check_patch(target, patch)
    applied = AppliedPatch(network_of(target), patch.config)
    try:
        applied.load(patch.tensors)
        applied.strength = strength
        for parameter in applied.parameters():
            parameter.requires_grad_(False)
    except BaseException:
        applied.remove()
        raise
    return applied


def merge_patch(target: object, patch: LoraPatch, strength: float = 1.0) -> AppliedPatch:
    """Fold a patch into the network's weights: its own modules, no cost per picture. `remove()` undoes it exactly.

    The original weights are kept beside the merged ones, which is what makes the way back bit for bit.
    Raises `AntiPureError`, with the network untouched, for "input" and "channel" gates.
    """
    applied = apply_patch(target, patch, strength)
    try:
        applied.merge()
        applied.unwrap()
    except BaseException:
        applied.remove()
        raise
    return applied


@contextmanager
def patched(target: object, patch: LoraPatch | None, strength: float = 1.0) -> Iterator[object]:
    """The target with the patch on it, for the length of a block; None leaves it alone."""
    if patch is None:
        yield target
        return
    applied = apply_patch(target, patch, strength)
    try:
        yield target
    finally:
        applied.remove()


def patched_copy(generator: object, patch: LoraPatch, strength: float = 1.0) -> object:
    """Another generator that carries the patch; the one given stays as it is, and both share their weights.

    A patch whose gates allow it is merged (its layers then have weights of their own), others run beside the layers.
    Raises `AntiPureError` as `apply_patch` does.
    """
    network = network_of(generator)
    check_patch(generator, patch)
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    other: Any = copy.copy(generator)
    other.network = copy.deepcopy(network, shared)
    (merge_patch if patch.config.mergeable else apply_patch)(other, patch, strength)
    return other


def _checked_strength(value: float) -> float:
    if not math.isfinite(value):
        raise AntiPureError(f"The strength is {value}; it must be a finite number, 1 for the patch as trained.")
    return float(value)
