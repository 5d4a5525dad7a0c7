"""Nodes over ComfyUI's own classes on a pretended device, with dynamic VRAM where it is known (pretended_checks.py)."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def checks(run_in_checkout, random_checkpoint, pretended) -> dict:
    output = run_in_checkout("pretended_checks.py", str(random_checkpoint("sd15-small")))
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def dynamic(checks) -> dict:
    if checks["dynamic"] is None:
        pytest.skip("this version has no dynamic VRAM")
    assert checks["dynamic"]["dynamic"]
    return checks["dynamic"]


def test_gradients_reach_the_picture_through_weights_on_the_device(checks):
    assert checks["plain"] == {"device": "pretended:0", "finite": True, "sampling": True}


def test_nodes_work_on_the_device(checks):
    found = checks["nodes"]
    assert found.pop("device") == "pretended:0"
    assert found.pop("budget") < 8.001
    assert all(found.values()), found


def test_a_step_waits_for_the_gpu_once(checks):
    ((place, count),) = checks["waits"].items()
    assert place.startswith("looked at, methods/gradients/differentiation.py")
    assert count == 1


def test_paged_weights_give_the_gradient_of_plain_ones_however_they_are_paged_out(dynamic):
    assert dynamic["paged gradients fail"], "the pages here are no pages"
    assert dynamic["error"] < 1e-6


def test_a_lora_acts_on_paged_weights_as_on_plain_ones(dynamic):
    assert dynamic["LoRA acts"] > 0.01
    assert dynamic["LoRA"] < 1e-6


def test_there_is_no_second_copy_of_paged_weights(dynamic):
    assert dynamic["device over weights"] < 1.02
    assert dynamic["host over weights"] < 0.01
    assert dynamic["left on the device"] < 1e6


def test_the_hosts_weights_return_however_it_ends(dynamic):
    for name in ("originals", "cancel", "failure", "nested", "sampling"):
        assert dynamic[name], name


def test_one_network_cannot_be_two_at_once(dynamic):
    assert "different LoRAs" in dynamic["two versions"]
