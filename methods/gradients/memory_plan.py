"""What a chain of segments holds for its backward pass: as much as the memory allows, so as little twice as it can."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import product

import torch
from torch import Tensor, nn

from .checkpointing import blocks, bytes_of_blocks, checkpointed
from .differentiation import saved_bytes, storages


class CheckpointPolicy(Enum):
    """What of a segment is checkpointed (Chen et al., 2016). (held until the backward pass?, block by block?)

    STORE: nothing, it holds all its activations. BLOCKS: each of its blocks, of which it holds the inputs and which run
    again one by one. SEGMENT: the segment, which holds its own input and runs again as a whole. SEGMENT_AND_BLOCKS:
    both; its blocks run three times.
    """

    STORE = (True, False)
    BLOCKS = (True, True)
    SEGMENT = (False, False)
    SEGMENT_AND_BLOCKS = (False, True)

    @property
    def keep(self) -> bool:
        return self.value[0]

    @property
    def in_blocks(self) -> bool:
        return self.value[1]

    @property
    def extra_forwards(self) -> int:
        return (not self.keep) + self.in_blocks


@dataclass(frozen=True)
class LinearInArea:
    """Bytes as a function of the picture's area: casts of weights are the constant."""

    slope: float
    constant: float

    def __call__(self, area: float) -> float:
        return self.slope * area + self.constant


@dataclass(frozen=True)
class SavedBytes:
    """What a segment saves for one picture. held: everything; inputs: of its blocks; block: its hungriest block."""

    held: LinearInArea
    inputs: LinearInArea
    block: LinearInArea


def measure(
    function: Callable[[Tensor], Tensor], network: nn.Module, inputs: tuple[Tensor, Tensor], pixels: tuple
) -> SavedBytes:
    """The cost of a segment from two calls, with a small and a larger input.

    network: what the function runs. pixels: areas of the two pictures the inputs stand for.
    """
    weights, parts = storages(network), blocks(network)

    def line(count: Callable[[Tensor], float]) -> LinearInArea:
        small, large = map(count, inputs)
        slope = (large - small) / (pixels[1] - pixels[0])
        return LinearInArea(slope, max(small - slope * pixels[0], 0))

    def of_inputs(x: Tensor) -> float:
        with checkpointed(parts, lambda: True):
            return saved_bytes(function, x, network)

    def of_block(x: Tensor) -> float:
        with torch.inference_mode(False), torch.enable_grad(), bytes_of_blocks(parts, weights) as found:
            function(x.detach().requires_grad_())
        return max(found, default=0)

    return SavedBytes(line(lambda x: saved_bytes(function, x, network)), line(of_inputs), line(of_block))


@dataclass(frozen=True)
class CheckpointPlan:
    """Ways for the segments; bytes they take for n pictures: fixed + n * each; whether there are leaner ones."""

    policies: dict[str, CheckpointPolicy]
    fixed: float
    each: float
    leaner: bool

    def count(self, limit: float) -> int:
        """How many pictures fit: at least 1, whether it does or not."""
        return max(1, int((limit - self.fixed) / max(self.each, 1)))


def plan(
    costs: dict[str, SavedBytes], calls: dict[str, int], area: int, limit: float, at_once: int = 1
) -> CheckpointPlan:
    """The quickest policies in which one picture fits `limit` bytes; the leanest where none does.

    costs: of each segment, in the order in which they run; calls: how often each runs in a row. area: of a picture
    in pixels. at_once: how many of the calls of a segment are really one, of so many timesteps of a picture.
    """
    options = [dict(zip(costs, policies, strict=True)) for policies in product(CheckpointPolicy, repeat=len(costs))]

    def need(policies: dict[str, CheckpointPolicy], names: Iterable[str] = costs) -> float:
        return peak({name: costs[name] for name in names}, calls, policies, lambda line: line(area), at_once)

    def slowness(policies: dict[str, CheckpointPolicy]) -> float:
        # What a network saves for its backward stands for its time.
        return sum(calls[name] * policy.extra_forwards * costs[name].held(area) for name, policy in policies.items())

    def spread(policies: dict[str, CheckpointPolicy]) -> float:
        # Among equal peaks the one with the lower hills: what a segment saves leaves gaps behind it.
        return sum(need(policies, [name]) for name in costs)

    leanest = min(map(need, options))
    fitting = [policies for policies in options if need(policies) <= limit]
    if fitting:
        best = min(fitting, key=lambda policies: (slowness(policies), need(policies)))
    else:
        best = min(options, key=lambda policies: (need(policies), spread(policies), slowness(policies)))
    fixed = peak(costs, calls, best, lambda line: line.constant, at_once)
    return CheckpointPlan(best, fixed, need(best) - fixed, need(best) > leanest)


def peak(
    costs: dict[str, SavedBytes],
    calls: dict[str, int],
    policies: dict[str, CheckpointPolicy],
    at: Callable[[LinearInArea], float],
    at_once: int,
) -> float:
    """The most that is held at once: the backward pass frees the last segment first."""
    before, most = 0.0, 0.0
    for name, cost in costs.items():
        whole, inputs, block = at(cost.held), at(cost.inputs), at(cost.block)
        saved = inputs if policies[name].in_blocks else whole
        held = saved if policies[name].keep else 0.0
        transient = (block if policies[name].in_blocks else 0.0) + (0.0 if policies[name].keep else saved)
        most = max(most, before + calls[name] * held + min(calls[name], at_once) * transient)
        before += calls[name] * held
    return most
