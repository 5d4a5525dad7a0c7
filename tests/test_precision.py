"""The precision of networks: autocast where it is asked for, and nothing at all where it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from antipure.methods.diffusion.ffdnet import FFDNet
from antipure.methods.precision import autocast, full_precision


def test_full_precision_asks_nothing_of_the_device(monkeypatch):
    """DirectML's device ("privateuseone") refuses autocast even where it is to be off."""

    def refuse(*args, **kwargs):
        raise RuntimeError("Tried to use AMP with the `PrivateUse1` backend, but the backend has not been registered")

    monkeypatch.setattr(torch, "autocast", refuse)
    with autocast(torch.device("privateuseone"), torch.float32):
        pass
    with pytest.raises(RuntimeError, match="AMP"):
        autocast(torch.device("privateuseone"), torch.bfloat16)


def test_half_precision_reaches_the_layers():
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with autocast(x.device, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with autocast(x.device, torch.float32):
        assert layer(x).dtype == torch.float32


def test_full_precision_ends_an_autocast_that_is_on_and_asks_for_none_otherwise(monkeypatch):
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with autocast(x.device, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with full_precision(x.device):
            assert layer(x).dtype == torch.float32

    def refuse(*_, **__):
        raise AssertionError("autocast was asked for")

    monkeypatch.setattr(torch, "autocast", refuse)
    with full_precision(torch.device("privateuseone")):
        assert layer(x).dtype == torch.float32


def test_ffdnet_asks_no_autocast_of_a_device_that_has_none(monkeypatch):
    network = FFDNet([4, 4], torch.linspace(0.999, 0.01, 10))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: pytest.fail("autocast was asked for"))
    assert network(torch.zeros(1, 12, 4, 4), torch.tensor([3])).sample.dtype == torch.float32


def test_nothing_that_is_shipped_asks_torch_itself_for_autocast():
    root = Path(__file__).resolve().parent.parent
    found = {
        str(path.relative_to(root))
        for folder in ("cli", "kernels", "methods", "nodes")
        for path in (root / folder).rglob("*.py")
        if re.search(r"torch\.(amp\.)?autocast\(|cuda\.amp", path.read_text(encoding="utf-8"))
    }
    assert found == {"methods/precision.py"}
