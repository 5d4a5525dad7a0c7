"""The precision of networks: autocast where it is asked for, and nothing at all where it is not."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.precision import autocast


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
