"""Borrowed weights and chains of vector-Jacobian products, without ComfyUI."""

from __future__ import annotations

import weakref

import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.gradients.differentiation import plain_copy, plain_weights, saved_bytes, segment
from torch import nn


@torch.inference_mode()
def loaded() -> nn.Module:
    """A network as a loader node makes it: inference tensors, one weight tied, one tensor a plain attribute."""
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)).eval()
    net[2].weight = net[0].weight
    net.shift = torch.ones(6)
    return net


def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(x) * net.shift


def test_inference_weights_carry_gradients_over_the_same_storage_and_come_back():
    net = loaded()
    x = torch.randn(4, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        forward(net, x).sum().backward()
    before = [*net.parameters(), *net.buffers(), net.shift]
    with torch.inference_mode(), torch.inference_mode(False), plain_weights(net):
        inside = [*net.parameters(), *net.buffers(), net.shift]
        assert not any(t.is_inference() or t.requires_grad for t in inside)
        assert [t.data_ptr() for t in inside] == [t.data_ptr() for t in before]
        assert net[0].weight is net[2].weight
        forward(net, x).sum().backward()
    assert x.grad.abs().min() > 0
    after = [*net.parameters(), *net.buffers(), net.shift]
    assert all(a is b for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit])
def test_weights_come_back_however_the_block_is_left(problem):
    net = loaded()
    before = list(net.parameters())
    with pytest.raises(problem), plain_weights(net):
        raise problem
    assert all(a is b for a, b in zip(net.parameters(), before, strict=True))


def test_quantised_weights_are_refused_and_the_rest_is_back():
    class Quantised(torch.Tensor):
        pass

    net = loaded()
    with torch.inference_mode():
        net[2].register_buffer("packed", torch.zeros(2).as_subclass(Quantised))
    before = [*net.parameters(), *net.buffers()]
    with pytest.raises(AntiPureError, match="'packed' is quantised"), plain_weights(net):
        pass
    assert all(a is b for a, b in zip([*net.parameters(), *net.buffers()], before, strict=True))


def test_plain_copies_reach_into_nested_values():
    with torch.inference_mode():
        value = [[torch.ones(2), {"a": (torch.zeros(1), "text")}], None]
    copy = plain_copy(value)
    assert not copy[0][0].is_inference()
    assert not copy[0][1]["a"][0].is_inference()
    assert copy[0][1]["a"][1] == "text"


@pytest.mark.parametrize("keep", [True, False])
def test_a_chain_of_segments_has_the_chains_gradient(keep):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(5, 9), nn.SiLU(), nn.Linear(9, 5)).double() for _ in range(3)]
    x = torch.randn(2, 5, dtype=torch.float64)

    def gradient(link) -> torch.Tensor:
        leaf = y = x.clone().requires_grad_()
        for net in nets:
            y = y + link(net, y)
        (y.square().mean() * 1e-9).backward()
        return leaf.grad

    expected = gradient(lambda net, y: net(y))
    for net in nets:
        net.zero_grad()
    assert torch.allclose(gradient(lambda net, y: segment(net, y, keep=keep)), expected, rtol=1e-12, atol=0)
    assert all(p.grad is None for net in nets for p in net.parameters())


def test_recomputed_segments_hold_no_activations():
    net = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64)).requires_grad_(False)
    x = torch.randn(32, 64)
    kept = saved_bytes(lambda y: segment(net, y, keep=True), x, net)
    recomputed = saved_bytes(lambda y: segment(net, y, keep=False), x, net)
    assert recomputed == x.nbytes
    assert kept >= 2 * recomputed


def test_counting_saved_bytes_leaves_nothing_behind():
    """exp, softmax and attention save their own output, which once kept the whole graph alive."""
    alive = []

    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.exp(2 * x)
        alive.append(weakref.ref(y))
        return y + 1

    assert saved_bytes(function, torch.randn(4, 8)) > 0
    assert alive[0]() is None


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("tiny", [1e-12, 1e-3, 1e3])
def test_half_precision_segments_neither_vanish_nor_overflow(keep, tiny):
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))

    def half(x: torch.Tensor) -> torch.Tensor:
        return (x.half() @ (300 * weight).half()).float() / 300 * torch.tensor(1e4)

    x = torch.randn(3, 16, requires_grad=True)
    (segment(half, x, keep=keep).sum() * tiny).backward()
    expected = (torch.ones(3, 16) * tiny * 1e4) @ weight.T
    assert torch.allclose(x.grad / expected.abs().mean(), expected / expected.abs().mean(), atol=0.02)


def test_without_a_gradient_a_segment_is_its_function():
    seen = []
    with torch.no_grad():
        segment(lambda x: seen.append(x.requires_grad) or x, torch.ones(2, requires_grad=True), keep=False)
    segment(lambda x: seen.append(torch.is_grad_enabled()) or x, torch.ones(2), keep=False)
    assert seen == [True, True]
