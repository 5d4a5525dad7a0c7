"""Same bytes on a GPU, as far as it shows without one: torch's switches, plans and batches."""

from __future__ import annotations

import os
import types

import pytest
import torch
from antipure.methods.diffusion.batching import DEFAULT_MEMORY_BYTES, Batching, PlannedBatching
from antipure.methods.errors import AntiPureError
from antipure.methods.gradients.memory_plan import LinearInArea, SavedBytes
from antipure.methods.gradients.reproducible import is_reproducible, reproducible
from antipure.nodes import host


def switches() -> tuple:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("warn_only", [False, True])
def test_torchs_switches_are_set_inside_and_return(monkeypatch, warn_only):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(warn_only, warn_only=warn_only)
    before = switches()

    def cancelled() -> None:
        with reproducible():
            assert switches() == (True, False, False, False, os.environ["CUBLAS_WORKSPACE_CONFIG"])
            with reproducible(False):
                assert is_reproducible()
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            cancelled()
        assert switches() == before
        assert not is_reproducible()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_cublas_setting_of_the_users_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with reproducible():
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_an_operation_without_a_fixed_order_is_refused_in_one_sentence():
    with pytest.raises(AntiPureError, match="put_.*switch 'reproducible' off"), reproducible():
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="another"), reproducible():
        raise RuntimeError("another")


def test_batches_do_not_shrink_inside():
    line = LinearInArea(100.0, 0.0)
    cost = SavedBytes(held=line, inputs=LinearInArea(10.0, 0.0), block=LinearInArea(10.0, 0.0))
    costs = {"encode": cost, "predict": cost, "decode": cost}
    for batching in (Batching(lambda: 100.0, 1e6), PlannedBatching(lambda: costs, 1e6)):
        list(batching.batches(4, 8, 8))
        before = batching.memory_bytes, batching.limit
        with reproducible():
            assert not batching.shrink()
        assert (batching.memory_bytes, batching.limit) == before
        assert batching.shrink(), "otherwise they do"


def test_a_gpus_plan_follows_all_of_its_memory_and_not_what_is_free(monkeypatch):
    target = types.SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    plans, other = set(), set()
    for free in (20, 3, 70):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * 2**30, 80 * 2**30))
        other.add(host.memory_allowance(target))
        with reproducible():
            plans.add(host.memory_allowance(target))
    assert plans == {20 * 2**30}
    assert len(other) == 3
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**30))
    with reproducible():
        assert host.memory_allowance(target) == DEFAULT_MEMORY_BYTES
