"""Blocks that run again, and the choice of what to hold, over networks of our own and diffusers' UNet."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from antipure.methods.gradients.checkpointing import blocks, bytes_of_blocks, checkpointed
from antipure.methods.gradients.differentiation import saved_bytes, storages
from antipure.methods.gradients.malloc import _glibc, freed_memory_kept, return_free_memory
from antipure.methods.gradients.memory_plan import CheckpointPolicy, LinearInArea, SavedBytes, measure, peak, plan
from torch import nn


class Block(nn.Module):
    """A residual block that is told its number, as ComfyUI's transformer blocks are."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.runs = []

    def forward(self, x, options):
        self.runs.append(options["number"])
        options["seen"] = True
        return x + options["number"] * self.layers(x)


class Net(nn.Module):
    def __init__(self, width: int = 8, depth: int = 4):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.body = nn.ModuleList(nn.ModuleList([Block(width)]) for _ in range(depth))

    def forward(self, x):
        x, options = self.first(x), {}
        for number, (block,) in enumerate(self.body, start=1):
            options["number"] = number
            x = block(x, options)
        return x


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def gradient(net, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(net(x).square().sum(), x)[0]


def test_blocks_are_what_has_children_below_the_trunks(net):
    assert blocks(net) == [block for (block,) in net.body]
    assert blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []


def test_blocks_of_a_real_unet():
    from diffusers import UNet2DModel

    unet = UNet2DModel(32, block_out_channels=(32, 64), layers_per_block=1, down_block_types=("DownBlock2D",) * 2,
                       up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    kinds = {type(block).__name__ for block in blocks(unet)}
    assert {"ResnetBlock2D", "Downsample2D", "Upsample2D"} <= kinds
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([3])
    expected = gradient(lambda x: unet(x, t).sample, x)
    with checkpointed(blocks(unet), lambda: True):
        assert torch.allclose(gradient(lambda x: unet(x, t).sample, x), expected, atol=1e-5)


def test_same_gradient_and_every_block_runs_twice_with_its_own_number(net):
    x = torch.randn(5, 3, dtype=torch.float64)
    expected, parts = gradient(net, x), blocks(net)
    calls = []
    for block in parts:
        block.runs.clear()
    with checkpointed(parts, lambda: True, lambda: calls.append(1)):
        found = gradient(net, x)
    assert torch.equal(found, expected)
    assert [block.runs for block in parts] == [[n, n] for n in (1, 2, 3, 4)]
    assert len(calls) == 8


def test_only_when_enabled_and_only_for_gradients(net):
    parts = blocks(net)
    x = torch.randn(5, 3, dtype=torch.float64)
    with checkpointed(parts, lambda: False):
        gradient(net, x)
    with checkpointed(parts, lambda: True), torch.no_grad():
        net(x)
    assert [len(block.runs) for block in parts] == [2] * 4


def test_forwards_return_however_it_ends(net):
    parts = blocks(net)
    parts[0].forward = own = parts[0].forward  # another pack's
    for problem in (None, RuntimeError, KeyboardInterrupt):
        try:
            with checkpointed(parts, lambda: True):
                assert all("forward" in vars(block) for block in parts)
                if problem:
                    raise problem
        except (RuntimeError, KeyboardInterrupt):
            pass
        assert vars(parts[0])["forward"] is own
        assert not any("forward" in vars(block) for block in parts[1:])


def test_costs_are_what_autograd_saves(net):
    small, large = (torch.randn(n, 3, dtype=torch.float64) for n in (10, 30))
    cost = measure(net, net, (small, large), (10, 30))
    for n in (10, 20, 50):
        x = torch.randn(n, 3, dtype=torch.float64)
        assert cost.held(n) == pytest.approx(saved_bytes(net, x, net))
        assert cost.inputs(n) == pytest.approx(8 * n * (3 + 4 * 8))
    with torch.enable_grad(), bytes_of_blocks(blocks(net), storages(net)) as found:
        net(large.requires_grad_())
    assert cost.block(30) == max(found)
    assert len(found) == 4


COSTS = {
    "encode": SavedBytes(LinearInArea(10, 0), LinearInArea(3, 0), LinearInArea(2, 0)),
    "predict": SavedBytes(LinearInArea(5, 40), LinearInArea(1, 0), LinearInArea(1, 40)),
    "decode": SavedBytes(LinearInArea(20, 0), LinearInArea(5, 0), LinearInArea(4, 0)),
}


def simulated(policies: dict[str, CheckpointPolicy], calls: dict[str, int], area: int, at_once: int) -> float:
    """What is held, event by event, on the way there and back."""
    now, most, freed = 0.0, 0.0, []
    for name, cost in COSTS.items():
        held, inputs, block = (line(area) for line in (cost.held, cost.inputs, cost.block))
        policy = policies[name]
        kept = (inputs if policy.in_blocks else held) if policy.keep else 0.0
        passing = {
            CheckpointPolicy.STORE: 0.0,
            CheckpointPolicy.BLOCKS: block,
            CheckpointPolicy.SEGMENT: held,
            CheckpointPolicy.SEGMENT_AND_BLOCKS: inputs + block,
        }[policy]
        together = min(at_once, calls[name])
        for _ in range(calls[name] // together):
            now += together * kept
            freed.append((together * kept, together * passing))
    for kept, passing in reversed(freed):
        most = max(most, now + passing)
        now -= kept
    return max(most, 0.0)


@pytest.mark.parametrize(("predicts", "at_once"), [(4, 1), (2, 2)])
def test_peak_is_that_of_a_simulation(predicts, at_once):
    calls = {"encode": 1, "predict": predicts, "decode": 1}
    for policies in product(CheckpointPolicy, repeat=3):
        chosen = dict(zip(COSTS, policies, strict=True))
        assert peak(COSTS, calls, chosen, lambda line: line(7), at_once) == simulated(chosen, calls, 7, at_once)


@pytest.mark.parametrize("limit", [0, 150, 200, 260, 300, 400, 10**6])
def test_the_plan_is_the_quickest_that_fits_else_the_leanest(limit):
    calls, area = {"encode": 1, "predict": 4, "decode": 1}, 7
    options = [dict(zip(COSTS, policies, strict=True)) for policies in product(CheckpointPolicy, repeat=3)]
    needs = [simulated(policies, calls, area, 1) for policies in options]
    times = [sum(calls[n] * policies[n].extra_forwards * COSTS[n].held(area) for n in COSTS) for policies in options]
    chosen = plan(COSTS, calls, area, limit)
    found = options.index(chosen.policies)
    fitting = [time for time, need in zip(times, needs, strict=True) if need <= limit]
    if fitting:
        assert needs[found] <= limit
        assert times[found] == min(fitting)
        assert chosen.fixed + chosen.count(limit) * chosen.each <= limit
    else:
        assert needs[found] == min(needs)
        assert chosen.count(limit) == 1
    assert chosen.leaner == (needs[found] > min(needs))
    assert chosen.fixed + chosen.each == pytest.approx(needs[found])


def test_keeping_freed_memory_nests_and_passes_errors_on():
    cpu = torch.device("cpu")
    with pytest.raises(KeyError), freed_memory_kept(cpu), freed_memory_kept(cpu):
        raise KeyError
    with freed_memory_kept(torch.device("cuda")):  # a GPU has its own memory: nothing to do, and none needed
        assert float(torch.ones(2**20).sum()) == 2**20


class MallocInfo(ctypes.Structure):
    """The C library's `struct mallinfo` (mallinfo(3))."""

    _fields_ = [
        (name, ctypes.c_int) for name in ("arena", "ordblks", "smblks", "hblks", *"hufu", "fordblks", "keepcost")
    ]


@pytest.mark.skipif(_glibc() is None, reason="glibc only")
def test_kept_memory_is_used_again():
    """In a new process: only glibc's main arena takes more than 64 MB from a heap, and a thread leaves it for good when
    an allocation fails there, as those of other tests do."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", f"import {Path(__file__).stem} as tests; tests.use_kept_memory_again()"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def use_kept_memory_again() -> None:
    """The allocator's own books: usually a large block is mapped anew; kept, it comes from the heap each time."""
    library = _glibc()
    library.mallinfo.restype = MallocInfo
    return_free_memory()
    size = library.mallinfo().fordblks % 2**32 + 40 * 2**20  # no gap in the heap holds it

    def mappings() -> int:
        before = library.mallinfo().hblks
        block = torch.ones(size // 4)
        after = library.mallinfo().hblks
        assert block.numel() == size // 4
        return after - before

    assert mappings() == 1
    with freed_memory_kept(torch.device("cpu")):
        before = library.mallinfo().arena
        assert [mappings() for _ in range(20)] == [0] * 20
        grown = (library.mallinfo().arena - before) % 2**32
    assert size <= grown < 10 * size  # half of 20: until freed blocks lie together, an alignment may take a new one
