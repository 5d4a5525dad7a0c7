"""Loading pixel denoisers: our own file, a diffusers folder, or an ADM checkpoint. Nothing is ever executed.

* The files `bundled/*denoiser.safetensors` and others like them: fp16 weights, configuration in the metadata.
* A diffusers folder (`unet/` + `scheduler/`, or `config.json` + `scheduler_config.json` side by side).
* OpenAI's ADM layout (`256x256_diffusion_uncond.pt` and fine-tunes), read with `weights_only`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AntiPureError
from ..files import BUNDLED_FOLDER, read_pickle, read_safetensors, reason
from ..gradients.compilation import MODES, OFF
from .pixel import PixelDenoiser

BUNDLED = BUNDLED_FOLDER / "denoiser.safetensors"
# Another architecture, trained apart: a purifier that nothing here is made against.
BUNDLED_HELD_OUT = BUNDLED.with_name("held_out_denoiser.safetensors")
# Another family of networks and other pictures: no sibling of the two.
BUNDLED_JUDGE = BUNDLED.with_name("judge_denoiser.safetensors")
OWN_FORMAT = "antipure-pixel-denoiser"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_denoiser(
    path: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    compile: str = OFF,
) -> PixelDenoiser:
    """Load a pixel denoiser from a file or folder (None: the bundled one).

    precision: "fp32", or "bf16"/"fp16" for autocast inside the network. Weights stay as loaded, in fp32.
    compile: one of `compilation.MODES`; run the network through torch.compile, where that works. The first pass then
        takes longer, up to minutes.
    Raises `AntiPureError` naming the path when it is not a denoiser, is truncated, or holds code.
    """
    if precision not in DTYPES:
        raise AntiPureError(f"The precision '{precision}' is unknown; choose one of {', '.join(DTYPES)}.")
    if compile not in MODES:
        raise AntiPureError(f"The way to compile '{compile}' is unknown; choose one of {', '.join(MODES)}.")
    path = Path(path) if path is not None else BUNDLED
    names = {BUNDLED: "bundled", BUNDLED_HELD_OUT: "bundled_held_out", BUNDLED_JUDGE: "bundled_judge"}
    if not path.exists() and path in names:
        raise AntiPureError(f"This installation lacks its own file bundled/{path.name}; install the pack again.")
    if not path.exists():
        raise AntiPureError(f"There is no denoiser at {path}; give a checkpoint file or a diffusers folder.")
    # Outside inference mode, so that the weights are ordinary tensors and gradients can pass through.
    with torch.inference_mode(False), torch.no_grad():
        try:
            unet, betas, tile, patch = _load(path)
        except AntiPureError as error:
            if str(path) in str(error):
                raise
            raise AntiPureError(f"{path} cannot be used. {error}") from error
        except Exception as error:  # whatever a malformed file or configuration makes torch or diffusers raise
            raise AntiPureError(f"{path} cannot be read as a denoiser: {reason(error)}") from error
        unet = unet.float().to(device)
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub has no such overload
        abar = torch.cumprod(1 - betas.double(), 0).float()
        denoiser = PixelDenoiser(unet, abar, tile=tile, patch=patch, dtype=DTYPES[precision], compile=compile)
        denoiser.name = names.get(path, path.name)
        return denoiser


def _load(path: Path) -> tuple[nn.Module, Tensor, int | None, int]:
    if path.is_dir():
        return _load_folder(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    return _load_adm(path, read_pickle(path))


def beta_schedule(config: dict) -> Tensor:
    """The betas of a diffusers scheduler configuration (linear, scaled_linear, cosine or given), float64."""
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise AntiPureError(f"The model predicts '{config['prediction_type']}'; only epsilon models can be used.")
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    kind, steps = config.get("beta_schedule", "linear"), config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if kind == "squaredcos_cap_v2":
        edges = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        bar = torch.cos((edges + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    raise AntiPureError(
        f"The beta schedule '{kind}' is unknown; linear, scaled_linear or squaredcos_cap_v2 can be used."
    )


def _build_unet(config: dict, state: dict[str, Tensor], where: Path) -> nn.Module:
    from diffusers import UNet2DModel

    known = {k: v for k, v in config.items() if not k.startswith("_")}
    try:
        unet = UNet2DModel(**known)
        unet.load_state_dict(state, strict=True)
    except Exception as error:  # diffusers checks little: odd settings raise nearly anything
        raise AntiPureError(
            f"{where} does not hold the UNet2DModel its configuration describes: {reason(error)}"
        ) from error
    if unet.config.class_embed_type is not None or unet.config.num_class_embeds is not None:
        raise AntiPureError(f"{where} is a class-conditional model; give an unconditional one.")
    return unet


def _load_safetensors(path: Path) -> tuple[nn.Module, Tensor, int | None, int]:
    state, metadata = read_safetensors(path)
    if metadata.get("format") != OWN_FORMAT:
        return _load_adm(path, state)
    config = json.loads(metadata["config"])
    state = {k: v.float() for k, v in state.items()}
    betas = beta_schedule(config["scheduler"])
    if config.get("network") == "strided":
        from .strided import StridedUNet

        abar = torch.cumprod(1 - betas, 0)
        unet: nn.Module = StridedUNet(**config["unet"], log_snr=(abar / (1 - abar)).log())
        unet.load_state_dict(state, strict=True)
    else:
        unet = _build_unet(config["unet"], state, path)
    return unet, betas, config["tile"], config["patch"]


def _load_adm(path: Path, state: object) -> tuple[nn.Module, Tensor, int | None, int]:
    from .adm import is_adm_state_dict, load_adm_unet

    if not isinstance(state, dict) or not is_adm_state_dict(state):
        raise AntiPureError(
            f"{path} holds no ADM (guided-diffusion) UNet; give such a checkpoint or a diffusers folder."
        )
    unet = load_adm_unet(state)
    return unet, beta_schedule({}), unet.config.sample_size, 1


def _read_json(path: Path, purpose: str) -> dict:
    if not path.is_file():
        raise AntiPureError(f"{path.parent} has no {path.name}; a diffusers folder needs it for the {purpose}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AntiPureError(f"{path} is not valid JSON; download or copy the folder again.") from error
    if not isinstance(config, dict):
        raise AntiPureError(f"{path} holds no settings; download or copy the folder again.")
    return config


def _load_folder(folder: Path) -> tuple[nn.Module, Tensor, int | None, int]:
    if any((folder / name).is_dir() for name in ("vae", "vqvae")):
        raise AntiPureError(f"{folder} holds a latent diffusion model; give one that works on pixels.")
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _read_json(inner / "config.json", "network")
    scheduler_folder = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    scheduler = _read_json(scheduler_folder / "scheduler_config.json", "noise schedule")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise AntiPureError(f"{inner} holds a {config['_class_name']}; pixel denoisers are UNet2DModel folders.")
    if config.get("in_channels", 3) != 3:
        raise AntiPureError(f"{inner} takes {config['in_channels']} channels; pixel denoisers take 3 (RGB).")
    weights = inner / "diffusion_pytorch_model.safetensors"
    if weights.is_file():
        state, _ = read_safetensors(weights)
    elif (inner / "diffusion_pytorch_model.bin").is_file():
        state = read_pickle(inner / "diffusion_pytorch_model.bin")
    else:
        raise AntiPureError(f"{inner} has no diffusion_pytorch_model.safetensors; download or copy the folder again.")
    unet = _build_unet(config, state, inner)
    native: Any = unet.config  # diffusers' own kind of dictionary
    size = native.sample_size
    return unet, beta_schedule(scheduler), size if isinstance(size, int) else None, 1
