"""The state of an unfinished patch training, in one safetensors file: parameters, Adam's moments, the losses so far.

There is no random state to keep: every step's random stream follows from the seed and the step's number.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import AntiPureError
from ..files import read_safetensors, write_safetensors

METADATA_KEY = "antipure_training"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def digest(pictures: Tensor) -> str:
    """Hex digest of a tensor's values and shape, to recognise a training set."""
    values = pictures.detach().cpu().contiguous()
    return hashlib.sha256(str(tuple(values.shape)).encode() + values.numpy().tobytes()).hexdigest()


def save_state(
    path: Path,
    identity: dict[str, object],
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Adam,
    history: list[dict[str, float]],
) -> None:
    """Write the state; the file appears complete or not at all."""
    tensors = {f"parameter.{i}": parameter for i, parameter in enumerate(parameters)}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{name}": moments[name] for name in MOMENTS}
    # Parameters may share nothing, but safetensors insists on tensors of their own.
    tensors = {key: value.detach().cpu().clone() for key, value in tensors.items()}
    write_safetensors(path, tensors, {METADATA_KEY: json.dumps({"identity": identity, "history": history})})


def load_state(
    path: Path, identity: dict[str, object], parameters: list[nn.Parameter], optimizer: torch.optim.Adam
) -> list[dict[str, float]]:
    """Take over a saved state; returns the losses of the steps that were done.

    Raises `AntiPureError`, with nothing taken over, for a damaged file or one of another training.
    """
    with torch.inference_mode(False):
        tensors, metadata = read_safetensors(path)
    try:
        saved = json.loads(metadata[METADATA_KEY])
        theirs, history = saved["identity"], list(saved["history"])
    except (KeyError, ValueError, TypeError) as error:
        raise AntiPureError(f"{path} holds no state of a patch training; give another file or delete it.") from error
    ours = json.loads(json.dumps(identity))
    different = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if different:
        raise AntiPureError(
            f"{path} is the state of another training (different: {', '.join(sorted(different))}); give another file, "
            "or delete it to start anew."
        )
    expected = {f"parameter.{i}": parameter.shape for i, parameter in enumerate(parameters)}
    for i, parameter in enumerate(parameters):
        expected |= {f"adam.{i}.{name}": parameter.shape if name != "step" else torch.Size() for name in MOMENTS}
    if {key: value.shape for key, value in tensors.items()} != expected:
        raise AntiPureError(f"{path} is incomplete; delete it to start anew.")
    state = {i: {name: tensors[f"adam.{i}.{name}"] for name in MOMENTS} for i in range(len(parameters))}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(tensors[f"parameter.{i}"])
    return history
