"""methods/interruption.py: heard within a forward and a backward pass, and no trace afterwards."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.interruption import heeding
from torch import nn


class Cancel(BaseException):
    """As ComfyUI's own since 0.33: no Exception."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Sequential(nn.Conv2d(4, 4, 3), nn.SiLU()))


def gradient(net: nn.Module) -> torch.Tensor:
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    net(x).square().sum().backward()
    return x.grad


def test_heard_before_every_layer_and_when_the_backward_pass_reaches_it():
    heard = []
    with heeding([network()], heard.append):
        pass
    assert not heard
    net = network()
    with heeding([net, net[2]], heard.append), torch.no_grad():
        net(torch.zeros(1, 3, 12, 12))
    assert len(heard) == 4, "four layers, though one of the networks holds the other"
    heard.clear()
    with heeding([net], heard.append):
        gradient(net)
    assert heard == [False] * 4 + [True] * 4


@pytest.mark.parametrize("at", range(1, 9))
def test_what_is_raised_leaves_either_pass_and_the_network_is_as_it_was(at):
    net, heard = network(), []
    alone = gradient(net)
    weights = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()

    def cancel(backward: bool) -> None:
        heard.append(1)
        if len(heard) == at:
            raise Cancel

    with pytest.raises(Cancel), heeding([net], cancel):
        gradient(net)
    assert len(heard) == at
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
    net.zero_grad()
    assert torch.equal(gradient(net), alone)
    assert all(torch.equal(p.grad, w) for p, w in zip(net.parameters(), weights, strict=True))


def test_the_same_bits_with_and_without():
    net = network()
    alone = gradient(net)
    with heeding([net], lambda backward: None):
        assert torch.equal(gradient(net), alone)
