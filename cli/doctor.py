"""`antipure doctor`: versions, devices, models and what is missing for which node. It changes nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from ..methods import requirements
from ..methods.files import BUNDLED_FOLDER
from ..nodes.model_folders import KINDS, list_models, models_folder
from .model_registry import MODELS

_BUNDLED = ("denoiser", "held_out_denoiser", "judge_denoiser", "lpips_alexnet", "toy_stargan")
_MOST = 5  # models of a kind that are named


class Optional(NamedTuple):
    """What a node can do with more than comes along: packages by their import's name, downloads of `MODELS`, of which
    one is enough where `any_of` says so.
    """

    node: str
    packages: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    any_of: bool = False


OPTIONAL = (
    Optional("VAE Targets, VAE Metrics", models=("taesd", "taesdxl", "taesd3", "taef1"), any_of=True),
    Optional("Load Pixel Denoiser: the papers' purifier", models=("adm256",)),
    Optional("Set Metrics: LPIPS", models=("alexnet",)),
    Optional("Set Metrics: FID, KID", models=("inception",)),
    Optional("Train LoRA Patch: feature alignment", models=("resnet50",)),
    Optional("Face Metrics", packages=("onnxruntime",), models=("buffalo_l",)),
    Optional("Quality Metrics: BRISQUE", packages=("brisque",)),
    Optional("--server: live progress", packages=("websocket",)),
    Optional("kernels in Triton, on GPUs", packages=("triton",)),
)
_PACKAGES = {"websocket": "websocket-client"}


def run_doctor() -> tuple[str, bool]:
    """The screen, and whether all that the pack cannot do without is there."""
    lost = [
        f"bundled/{name}.safetensors" for name in _BUNDLED if not (BUNDLED_FOLDER / f"{name}.safetensors").is_file()
    ]
    missing = requirements.missing()
    lines = [*_versions(), *_devices(), *_models(), "", "also possible"]
    lines += [f"  {'yes' if not want else 'no ':3}  {item.node}{want}" for item, want in _wants()]
    lines += [""]
    if missing:
        lines.append(requirements.sentence(missing))
    if lost:
        lines.append(f"This installation lacks {', '.join(lost)}: install the pack again.")
    if not missing and not lost:
        lines.append("All that the nodes need is here.")
    return "\n".join(lines), not missing and not lost


def _versions() -> Iterator[str]:
    system = f"{platform.system()} {platform.machine()}"
    yield f"antipure {_version('antipure')}, Python {platform.python_version()}, {system}"
    yield f"  pack     {Path(__file__).resolve().parent.parent}"
    yield f"  torch    {torch.__version__}"
    found = [f"{name} {_version(name)}" for name in requirements.REQUIREMENTS if name not in requirements.missing()]
    yield f"  with     {', '.join(found[:4])},"
    yield f"           {', '.join(found[4:])}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a folder in custom_nodes is no installed package
        return "(not installed as a package)" if package == "antipure" else "?"


def _devices() -> Iterator[str]:
    yield f"  CPU      {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    for i, gpu in enumerate(gpus):
        yield f"  GPU {i}    {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    if not gpus:
        others = [name for name in ("xpu", "mps") if getattr(torch, name, None) and getattr(torch, name).is_available()]
        yield f"  GPU      {', '.join(others) or 'none that torch can use: everything runs on the CPU'}"


def _models() -> Iterator[str]:
    yield f"  models   {models_folder().resolve()}"
    for kind, described in KINDS.items():
        names = list_models(kind)
        shown = ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
        yield f"    {described.folder:20} {shown or 'none'}"


def _wants() -> Iterator[tuple[Optional, str]]:
    """Each of `OPTIONAL`, with what is still to be done for it: "" where nothing is."""
    for item in OPTIONAL:
        packages = [_PACKAGES.get(name, name) for name in item.packages if find_spec(name) is None]
        absent = [
            name for name in item.models if not all(path.is_file() for path in MODELS[name].files(models_folder()))
        ]
        if item.any_of and len(absent) < len(item.models):
            absent = []
        todo = [f"pip install {' '.join(packages)}"] * bool(packages)
        todo += [f"antipure fetch-models {' '.join(absent[:1] if item.any_of else absent)}"] * bool(absent)
        yield item, f": {'; '.join(todo)}" if todo else ""
