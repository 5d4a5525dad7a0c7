"""The state of an unfinished patch training, in one torch checkpoint: parameters, Adam's moments, the losses so far.

There is no random state to keep: every step's random stream follows from the seed and the step's number.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import AntiPureError
from ..files import read_pickle, write_checkpoint
from .patch import WEIGHTS

FORMAT = "antipure-training-2"  # the first one was a safetensors file
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def digest(pictures: Tensor) -> str:
    """Hex digest of a tensor's values and shape, to recognise a training set."""
    values = pictures.detach().cpu().contiguous()
    return hashlib.sha256(str(tuple(values.shape)).encode() + values.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """A training between two steps: copies, which no later step changes. adam: moments by the parameter's number."""

    parameters: list[Tensor]
    adam: dict[int, dict[str, Tensor]]
    steps: int


def snapshot(parameters: list[nn.Parameter], optimizer: torch.optim.Adam, steps: int) -> Snapshot:
    """What is there after `steps` whole steps."""
    moments = optimizer.state_dict()["state"]
    copies = {i: {name: moment.clone() for name, moment in found.items()} for i, found in moments.items()}
    return Snapshot([parameter.detach().clone() for parameter in parameters], copies, steps)


def save_state(path: Path, identity: dict[str, object], taken: Snapshot, history: list[dict[str, float]]) -> None:
    """Write the state; the file appears complete or not at all.

    identity: plain values, no other objects. history: the losses, of which those after the snapshot are left out.
    """
    state = {
        "format": FORMAT,
        "identity": identity,
        "history": history[: taken.steps],
        "parameters": taken.parameters,
        "adam": taken.adam,
    }
    write_checkpoint(path, state)


def load_state(
    path: Path, identity: dict[str, object], parameters: list[nn.Parameter], optimizer: torch.optim.Adam
) -> list[dict[str, float]]:
    """Take over a saved state; returns the losses of the steps that were done.

    Raises `AntiPureError`, with nothing taken over, for a damaged file, one of another training, and one of another
    version of this package.
    """
    with torch.inference_mode(False):
        saved = read_pickle(path, "a training state of this version, or delete it to start anew")
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise AntiPureError(f"{path} holds no state of a patch training; give another file or delete it.")
    theirs = {WEIGHTS: identity.get(WEIGHTS), **saved["identity"]}  # states from before it was kept go on
    different = [key for key in {**identity, **theirs} if identity.get(key) != theirs.get(key)]
    if different:
        raise AntiPureError(
            f"{path} is the state of another training (different: {', '.join(sorted(different))}); give another file, "
            "or delete it to start anew."
        )
    shapes = [parameter.shape for parameter in parameters]
    expected = [dict(zip(MOMENTS, (torch.Size(), shape, shape), strict=True)) for shape in shapes]
    found = [{name: moment.shape for name, moment in saved["adam"].get(i, {}).items()} for i in range(len(shapes))]
    if [value.shape for value in saved["parameters"]] != shapes or found != expected:
        raise AntiPureError(f"{path} is incomplete; delete it to start anew.")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["adam"]})
    with torch.no_grad():
        for parameter, value in zip(parameters, saved["parameters"], strict=True):
            parameter.copy_(value)
    return saved["history"]
