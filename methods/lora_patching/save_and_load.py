"""Patches on disk: safetensors in peft's adapter layout (for other programs: `standard_lora`).

A patch is one safetensors file whose keys are those of a peft adapter (`base_model.model.{layer}.lora_A.weight`, ...)
and whose metadata holds what peft has no place for: gate, architecture, how it was made. As a folder it is
`adapter_model.safetensors` with peft's `adapter_config.json` beside it. Only safetensors is read: nothing is executed.
peft alone can list and load such a folder, but knows no gates: load it with `load_patch`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import AntiPureError
from ..files import read_safetensors, read_weights, safetensors_bytes, unwrap, write_file
from .authors_files import authors_patch, is_authors_file
from .low_rank import PatchConfig
from .patch import LoraPatch

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # what peft's own files start every key with
METADATA_KEY = "antipure_patch"
FORMAT_VERSION = 1
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def save_patch(patch: LoraPatch, path: str | Path) -> Path:
    """Write a patch: one file if the path ends in .safetensors, else a folder in peft's layout. Returns the path.

    Each file appears complete or not at all. Raises `AntiPureError` when the place cannot be written to.
    """
    path, content = Path(path), patch_bytes(patch)
    if path.suffix == ".safetensors":
        write_file(path, content)
        return path
    # The fields every version of peft since 0.12 knows; peft refuses or warns of others.
    config = {
        "peft_type": "LORA",
        "r": patch.config.rank,
        "lora_alpha": patch.config.alpha,
        "use_rslora": True,
        "target_modules": _target_pattern(patch),
        "lora_dropout": 0.0,
        "bias": "none",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
    }
    write_file(path / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())
    write_file(path / WEIGHTS, content)
    return path


def patch_bytes(patch: LoraPatch) -> bytes:
    """What the safetensors file of a patch holds."""
    description = {
        "version": FORMAT_VERSION,
        "rank": patch.config.rank,
        "alpha": patch.config.alpha,
        "gate": patch.config.gate,
        "architecture": patch.architecture,
        "metadata": dict(patch.metadata),
    }
    tensors = {PREFIX + key: value for key, value in patch.tensors.items()}
    return safetensors_bytes(tensors, {"format": "pt", METADATA_KEY: json.dumps(description)})


def _target_pattern(patch: LoraPatch) -> str:
    from .layer import target_pattern

    return target_pattern(patch.layers)


def load_patch(path: str | Path) -> LoraPatch:
    """Read a patch from a file or folder that `save_patch` wrote, or from a file of the paper's code.

    The latter may be a torch checkpoint, which is read with `weights_only` (`authors_files`).
    Raises `AntiPureError` naming the path for what is missing, any other pickle, truncated, foreign, or contradicts
    itself.
    """
    path = Path(path)
    weights = path / WEIGHTS if path.is_dir() else path
    if path.suffix.lower() in PICKLES and path.is_file() and (theirs := _authors_checkpoint(path)) is not None:
        return theirs
    if path.suffix.lower() in PICKLES or (path.is_dir() and not weights.exists() and any(path.glob("*.bin"))):
        raise AntiPureError(f"{path} is a pickle, which could run code, so it was not read; patches are safetensors.")
    if not weights.is_file():
        raise AntiPureError(f"There is no patch at {weights}; give a .safetensors file or a folder with {WEIGHTS}.")
    with torch.inference_mode(False):
        raw, metadata = read_safetensors(weights)
    if METADATA_KEY not in metadata and (state := unwrap(raw)) and is_authors_file(state):
        return _authors(state, weights)
    if METADATA_KEY not in metadata:
        raise AntiPureError(f"{weights} is no LoRA patch of this pack; it says nothing about gates or architecture.")
    try:
        description = json.loads(metadata[METADATA_KEY])
        version = int(description["version"])
        rank, alpha, gate = description["rank"], description["alpha"], description["gate"]
        architecture, notes = str(description["architecture"]), dict(description["metadata"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AntiPureError(f"{weights} has a damaged description; save or download the patch again.") from error
    if version > FORMAT_VERSION:
        raise AntiPureError(f"{weights} was written by a newer version of this pack; update the pack to read it.")
    try:
        config = PatchConfig(rank, alpha, gate)
    except AntiPureError as error:
        raise AntiPureError(f"{weights} cannot be used. {error}") from error
    patch = LoraPatch(config, {k.removeprefix(PREFIX): v for k, v in raw.items()}, architecture, notes)
    _check_tensors(patch, weights)
    return patch


def _authors_checkpoint(path: Path) -> LoraPatch | None:
    """The patch in a torch checkpoint of the paper's code, None where it is something else, safe to read or not."""
    try:
        with torch.inference_mode(False):
            state, _ = read_weights(path, "a patch")
    except AntiPureError:
        return None  # said by whoever goes on
    return _authors(state, path) if is_authors_file(state) else None


def _authors(state: Mapping[str, Tensor], path: Path) -> LoraPatch:
    with torch.inference_mode(False):
        patch = authors_patch(state, path)
    _check_tensors(patch, path)
    return patch


def _check_tensors(patch: LoraPatch, path: Path) -> None:
    """What can be checked without the network: complete layers, the rank, finite numbers."""
    rank, layers = patch.config.rank, patch.layers
    if not layers:
        raise AntiPureError(f"{path} holds no layers; save or download the patch again.")
    for name in layers:
        if f"{name}.lora_B.weight" not in patch.tensors:
            raise AntiPureError(f"{path} lacks a part of layer {name}; save or download the patch again.")
        b = patch.tensors[f"{name}.lora_B.weight"]
        found = b.shape[1] if b.ndim > 1 else 0
        if found != rank:
            raise AntiPureError(f"{path} says rank {rank}, but layer {name} has rank {found}; it is not one patch.")
    for key, value in patch.tensors.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise AntiPureError(f"{path} holds values that are not finite numbers in {key}; train or load another.")
