"""Running out of memory: what counts as that, and the sentence about it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from antipure.cli import main as shell
from antipure.methods.errors import AntiPureError
from antipure.methods.memory import enough_memory, is_out_of_memory
from antipure.nodes.purify import DiffusionPurify


class Code(RuntimeError):
    def __init__(self, code):
        super().__init__("CUDA error")
        self.error_code = code


def test_every_way_of_running_out_is_recognised(no_room):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        no_room()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        AntiPureError("There is not enough memory."),
        ValueError("out of memory"),
        Code(700),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_pass_through_as_they_are(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, enough_memory("this", "do that"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "said",
    [
        "Triton Error [CUDA]: out of memory",
        "HIP error: out of memory",
        "Could not allocate tensor with 8589934592 bytes. There is not enough GPU video memory available!",
    ],
)
def test_what_other_devices_and_triton_say_counts_too(said):
    assert is_out_of_memory(RuntimeError(said))


def test_nobody_tells_by_other_means():
    """No file catches an error of its own choice where memory may have run out; the kernels know no room above them."""
    root = Path(__file__).resolve().parent.parent
    told = re.compile(r"OutOfMemoryError|AcceleratorError|error_code|out of memory[\"'] in ")
    found = {
        str(path.relative_to(root))
        for folder in ("cli", "kernels", "methods", "nodes", "benchmarks", "tools")
        for path in (root / folder).rglob("*.py")
        if told.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"kernels/dispatch.py", "methods/memory.py"}


def test_the_sentence_says_whose_memory(no_room):
    whose = "The GPU has" if no_room.gpu else "There is"
    with (
        pytest.raises(AntiPureError, match=f"^{whose} not enough memory for this; do that.$"),
        enough_memory("this", "do that"),
    ):
        no_room()


@pytest.mark.parametrize("method", ["gridpure", "diffpure"])
def test_purifying_without_room_is_one_sentence(make_tiny, monkeypatch, no_room, method):
    denoiser = make_tiny()
    monkeypatch.setattr(denoiser, "predict", no_room)
    with pytest.raises(AntiPureError, match="not enough memory for this picture at once; use 'gridpure'"):
        DiffusionPurify().purify(torch.rand(1, 16, 16, 3), denoiser, method, 3, 1, 0.1, 0)


def test_the_shell_ends_with_a_sentence(no_room, monkeypatch, capsys):
    monkeypatch.setattr(shell, "_measure", no_room)
    assert shell.main(["measure", "a.png", "b.png"]) == 2
    error = capsys.readouterr().err
    assert "not enough memory for this; take a smaller picture or model." in error
    assert error.count("\n") == 1
