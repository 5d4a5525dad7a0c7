"""Visual encoders from the user's own local files, for MMFA and set metrics. Nothing is downloaded or executed.

* A transformers folder (BLIP, CLIP, SigLIP, DINOv2, ...): `config.json` and `model.safetensors`, or its
  shards, or a variant such as `model.fp16.safetensors`.
* A ResNet-50 state dict (torchvision's names): safetensors, or a .pth file read with `weights_only`.
* The InceptionV3 of FID (`pt_inception-2015-12-05`, pytorch-fid's names) and torchvision's AlexNet: the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import check_finite, check_layers, check_size
from ..errors import AntiPureError
from ..files import find_weights, read_json, read_weights, reason
from .inception import SIGNATURE, FidInception
from .lpips import AlexNet

RESNET_FEATURE_SIZE = 224
LARGEST_PICTURE = 8192
Channels = tuple[float, float, float]  # one number for each of red, green and blue


def transformers_encoder(folder: str | Path) -> Encoder:
    """The image encoder in a local transformers folder; pooled or projected image embedding, B×D.

    Size and normalisation come from its `preprocessor_config.json`, or the model's own image size and ImageNet's.
    Raises `AntiPureError` when transformers, the folder or its safetensors weights are missing, or it sees no images.
    """
    folder = Path(folder)
    model = load_transformers(folder)
    vision, config = _vision_part(model, folder)
    size, mean, std = preprocessing(folder, config)

    features = getattr(model, "get_image_features", vision)

    def embed(pictures: Tensor) -> Tensor:
        found = features(pixel_values=pictures)
        return found if isinstance(found, Tensor) else pooled(found)

    return Encoder(folder.name, embed, size, mean, std, model)


def load_transformers(folder: Path) -> nn.Module:
    """The whole model in a local transformers folder, from safetensors and without any code of its own.

    Raises `AntiPureError` when transformers, the folder or its weights are missing or cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise AntiPureError(f"There is no encoder in {folder}; give a transformers folder with config.json in it.")
    check_layers(read_json(folder / "config.json"), folder)
    if not any(folder.glob("*.safetensors")):
        raise AntiPureError(f"{folder} has no safetensors weights; convert the model, other formats are not read.")
    files, variant = find_weights(folder, "model", (".safetensors",))
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise AntiPureError("A transformers encoder needs the package 'transformers'; install it.") from error
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with torch.inference_mode(False):
        try:
            with torch.device("meta"):  # memory is taken only for what the files can hold
                described = AutoModel.from_config(AutoConfig.from_pretrained(folder, **local))
            check_size(described, files)
            model, info = AutoModel.from_pretrained(
                folder, use_safetensors=True, variant=variant, output_loading_info=True, **local
            )
            _check_loaded(model, sorted(info["missing_keys"]))
            check_finite(model)
        except Exception as error:  # a malformed folder makes transformers raise nearly anything
            raise AntiPureError(f"{folder} cannot be read as a transformers model: {reason(error)}") from error
    return model


def _check_loaded(model: Any, missing: list[str]) -> None:
    """Raise `AntiPureError` for weights that no file held, which transformers would make up at random.

    A pooler is no loss: classifiers are saved without one, and their CLS token serves (`pooled`).
    """
    if missing and all(key.startswith(("pooler.", f"{model.base_model_prefix}.pooler.")) for key in missing):
        model.pooler = None
    elif missing:
        raise AntiPureError(f"its files lack '{missing[0]}'")


def _vision_part(model: nn.Module, folder: Path) -> tuple[nn.Module, object]:
    vision = getattr(model, "vision_model", model)
    config = getattr(model.config, "vision_config", model.config)
    if getattr(model, "main_input_name", None) != "pixel_values" and vision is model:
        raise AntiPureError(f"{folder} holds a {type(model).__name__}, which takes no pictures; give a vision encoder.")
    return vision, config


def pooled(output: Any) -> Tensor:
    """The one vector per picture or text in a transformers output."""
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)  # without a pooler: the CLS token


def preprocessing(folder: Path, config: object) -> tuple[int | None, Channels, Channels]:
    """Side in pixels, mean and deviation that a transformers folder asks for."""
    size, mean, std = getattr(config, "image_size", None), IMAGENET_MEAN, IMAGENET_STD
    path = folder / "preprocessor_config.json"
    if path.is_file():
        settings = read_json(path)
        try:
            means = [float(v) for v in settings.get("image_mean", mean)]
            deviations = [float(v) for v in settings.get("image_std", std)]
        except (ValueError, TypeError) as error:
            raise AntiPureError(f"{path} is damaged; download or copy the folder again.") from error
        usable = all(map(math.isfinite, means + deviations)) and len(means) == len(deviations) == 3
        if not usable or min(deviations) <= 0:
            raise AntiPureError(f"{path} holds no usable normalisation; download or copy the folder again.")
        mean, std = (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])
    if isinstance(size, int) and not 1 <= size <= LARGEST_PICTURE:
        raise AntiPureError(f"{folder} asks for pictures of {size} pixels; sides up to {LARGEST_PICTURE} make sense.")
    return size if isinstance(size, int) else None, mean, std


def resnet50_encoder(path: str | Path) -> Encoder:
    """torchvision's ResNet-50 up to its global pooling (2048 features), from a local state dict.

    Raises `AntiPureError` when torchvision or the file is missing, or the file holds something else.
    """
    state = _state_dict(path)
    try:
        from torchvision.models import resnet50
    except ImportError as error:
        raise AntiPureError("A ResNet-50 encoder needs the package 'torchvision'; install it.") from error
    with torch.inference_mode(False):
        network = resnet50(weights=None)
        network.fc = nn.Identity()
        _load_state(network, {k: v for k, v in state.items() if not k.startswith("fc.")}, path, "ResNet-50")
    return Encoder(f"resnet50 ({Path(path).name})", network, RESNET_FEATURE_SIZE, module=network)


def file_encoder(path: str | Path) -> Encoder:
    """The encoder whose state dict a file holds: FID's InceptionV3 (2048 features), AlexNet (256) or ResNet-50 (2048).

    Told apart by the names in it. Raises `AntiPureError` when the file is missing or holds something else.
    """
    state = _state_dict(path)
    if SIGNATURE in state:
        with torch.inference_mode(False):
            inception = FidInception()
            known = {k: v for k, v in state.items() if not k.startswith("fc.")}
            _load_state(inception, known, path, "FID's InceptionV3")
        half = (0.5, 0.5, 0.5)
        return Encoder(f"InceptionV3 ({Path(path).name})", inception, None, half, half, inception)
    if "features.0.weight" in state and tuple(state["features.0.weight"].shape) == (64, 3, 11, 11):
        with torch.inference_mode(False):
            alexnet = AlexNet()
            known = {k: v for k, v in state.items() if k.startswith("features.")}
            _load_state(alexnet, known, path, "AlexNet")
        return Encoder(f"AlexNet ({Path(path).name})", alexnet, RESNET_FEATURE_SIZE, module=alexnet)
    return resnet50_encoder(path)


def _state_dict(path: str | Path) -> dict[str, Tensor]:
    path = Path(path)
    if not path.is_file():
        raise AntiPureError(
            f"There is no encoder at {path}; give a state dict as .safetensors or .pth ('antipure fetch-models' "
            "downloads some)."
        )
    return read_weights(path, "the network's state_dict(), as safetensors or .pth")[0]


def _load_state(network: nn.Module, state: dict[str, Tensor], path: str | Path, name: str) -> None:
    try:
        network.load_state_dict(state, strict=True)
        check_finite(network)
    except AntiPureError as error:
        raise AntiPureError(f"{path} cannot be used. {error}") from error
    except RuntimeError as error:
        raise AntiPureError(f"{path} does not hold the weights of a {name}; give that network's state dict.") from error


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Encoder:
    """Pictures to vectors, differentiable: pixels B×3×H×W in [-1, 1] to B×D.

    name: for reports. embed: from normalised pictures B×3×size×size to B×D. size: the side it works at, None for
    any. mean, std: its own normalisation of the 0..1 range. module: if given, is frozen here and moved by `to`.
    Any object with a `name` that maps pixels B×3×H×W in [-1, 1] to B×D can stand in for one.
    """

    name: str
    embed: Callable[[Tensor], Tensor]
    size: int | None = None
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    module: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.module is not None:
            self.module.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Encoder:
        """Move the module."""
        if self.module is not None:
            self.module.to(device)
        return self

    def __call__(self, pixels: Tensor) -> Tensor:
        # Not clamped: that would have no gradient where an output leaves the range.
        picture = (pixels.float() + 1) / 2
        if self.size is not None and picture.shape[-2:] != (self.size, self.size):
            picture = F.interpolate(picture, (self.size, self.size), mode="bicubic", antialias=True)
        mean, std = (picture.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return self.embed((picture - mean) / std)
