"""Loading pixel denoisers: our own file, a diffusers folder, or an ADM checkpoint. Nothing is ever executed.

* The files `bundled/*denoiser.safetensors` and others like them: fp16 weights, configuration in the metadata.
* A diffusers folder (`unet/` + `scheduler/`, or `config.json` + `scheduler_config.json` side by side), its weights
  whole or in shards, of full precision or of a variant, its attention under today's names or the older ones.
* OpenAI's ADM layout (`256x256_diffusion_uncond.pt` and fine-tunes), read with `weights_only`.
* FFDNet for colour pictures, a plain stack of convolutions (`ffdnet.py`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture import check_finite, check_state, fill
from ..errors import AntiPureError
from ..files import BUNDLED_FOLDER, find_weights, read_json, read_weights, reason
from ..gradients.compilation import MODES, OFF
from .ffdnet import PATCH, TILE, is_ffdnet_state_dict, load_ffdnet, trained_betas
from .pixel import PixelDenoiser

Loaded = tuple[nn.Module, Tensor, int | None, int]  # the network, its betas, the side it was trained at, its patch
BUNDLED = BUNDLED_FOLDER / "denoiser.safetensors"
# Another architecture, trained apart: a purifier that nothing here is made against.
BUNDLED_HELD_OUT = BUNDLED.with_name("held_out_denoiser.safetensors")
# Another family of networks and other pictures: no sibling of the two.
BUNDLED_JUDGE = BUNDLED.with_name("judge_denoiser.safetensors")
OWN_FORMAT = "antipure-pixel-denoiser"
WANTED = "an ADM (guided-diffusion) checkpoint or a diffusers folder"
# Schedulers that all mean the same noise, x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps with abar from betas. Others
# (EDM, score SDE, flow matching, consistency) train networks for another x_t, another t or another output.
SCHEDULERS = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("PNDMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler"),
    *("DEISMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    *("HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
    "RePaintScheduler",
)
MOST_TIMESTEPS = 100_000
LARGEST_TILE, LARGEST_PATCH = 8192, 64
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
            if str(error).startswith((f"{path} ", f"{path}{os.sep}")):
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


def _load(path: Path) -> Loaded:
    loaded = _load_folder(path) if path.is_dir() else _load_file(path)
    network, _, tile, patch = loaded
    if not _is_whole(patch, LARGEST_PATCH):
        raise AntiPureError(f"Its patch is {patch!r}, which is no whole number from 1 to {LARGEST_PATCH}.")
    if tile is not None and not _is_whole(tile, LARGEST_TILE):
        raise AntiPureError(f"Its size is {tile!r}, which is no number of pixels from 1 to {LARGEST_TILE}.")
    config: Any = network.config  # diffusers' own kind of dictionary
    channels, out = 3 * patch**2, getattr(config, "out_channels", config.in_channels)
    if config.in_channels != channels or out not in (channels, 2 * channels):
        raise AntiPureError(
            f"It maps {config.in_channels} channels to {out}; a denoiser of RGB in {patch}×{patch} patches maps "
            f"{channels} to as many, or to {2 * channels} with a learned variance."
        )
    return loaded


def _is_whole(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def beta_schedule(config: dict) -> Tensor:
    """The betas of a diffusers scheduler configuration (linear, scaled_linear, cosine or given), T float64 in (0, 1).

    Raises `AntiPureError` for a scheduler of another family, for what does not predict the noise, and for betas that
    are no noise schedule.
    """
    check_family(config)
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise AntiPureError(f"The model predicts '{config['prediction_type']}'; only epsilon models can be used.")
    if config.get("rescale_betas_zero_snr"):
        raise AntiPureError(
            "Its noise schedule is rescaled to end in pure noise (rescale_betas_zero_snr), from which no epsilon model "
            "can tell the picture; give a model without that."
        )
    betas = _betas(config)
    if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):  # NaN is neither
        raise AntiPureError("The betas of its noise schedule do not all lie between 0 and 1.")
    if not float((1 - betas).prod()) > torch.finfo(torch.float32).tiny:
        raise AntiPureError("The betas of its noise schedule are so large that nothing of the picture is left.")
    return betas


def check_family(config: dict) -> None:
    """Raise `AntiPureError` for a diffusers scheduler configuration whose noise is not that of DDPM."""
    name = config.get("_class_name", SCHEDULERS[0])
    if name not in SCHEDULERS:
        raise AntiPureError(
            f"Its scheduler is a {name}, whose noise is not that of DDPM; only DDPM models can be used."
        )
    if config.get("use_flow_sigmas"):
        raise AntiPureError("Its scheduler is set to flow matching (use_flow_sigmas); only DDPM models can be used.")


def _betas(config: dict) -> Tensor:
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    kind, steps = config.get("beta_schedule", "linear"), config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if not _is_whole(steps, MOST_TIMESTEPS):
        raise AntiPureError(
            f"Its noise schedule has {steps!r} timesteps; whole numbers up to {MOST_TIMESTEPS} make sense."
        )
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
        # Layers cost memory even without weights. Every one has some, so there cannot be more of them than weights.
        if len(known.get("block_out_channels", ())) * max(known.get("layers_per_block", 2), 1) > len(state):
            raise AntiPureError(f"It asks for more layers than the file's {len(state)} weights.")
        with torch.device("meta"):  # memory is taken only for what the file turns out to hold
            unet = UNet2DModel(**known)
        rename_old_attention(unet, state)
        fill(unet, state)
    except Exception as error:  # diffusers checks little: odd settings raise nearly anything
        raise AntiPureError(
            f"{where} does not hold the UNet2DModel its configuration describes: {reason(error)}"
        ) from error
    native: Any = unet.config  # diffusers' own kind of dictionary
    if native.class_embed_type is not None or native.num_class_embeds is not None:
        raise AntiPureError(f"{where} is a class-conditional model; give an unconditional one.")
    return unet.eval()


def rename_old_attention(unet: Any, state: dict[str, Any]) -> None:
    """query, key, value and proj_attn, which diffusers wrote in its first year, to today's names, in place."""
    rename = getattr(unet, "_fix_state_dict_keys_on_load", None)
    rename = rename or unet._convert_deprecated_attention_blocks  # its name in diffusers 0.30
    rename(state)


def _load_file(path: Path) -> Loaded:
    state, metadata = read_weights(path, WANTED)
    if metadata.get("format") != OWN_FORMAT:
        return _load_ffdnet(state) if is_ffdnet_state_dict(state) else _load_adm(path, state)
    config = json.loads(metadata["config"])
    betas = beta_schedule(config["scheduler"])
    if config.get("network") == "strided":
        unet: nn.Module = _build_strided(config["unet"], state, betas)
    else:
        unet = _build_unet(config["unet"], state, path)
    return unet, betas, config["tile"], config["patch"]


def _build_strided(config: dict, state: dict[str, Tensor], betas: Tensor) -> nn.Module:
    from .strided import StridedUNet

    abar = torch.cumprod(1 - betas, 0)
    log_snr = (abar / (1 - abar)).log()
    if max(len(config["encoder"]), *config["encoder"], *config["decoder"]) > len(state):
        raise AntiPureError(f"It asks for more layers than the file's {len(state)} weights.")
    with torch.device("meta"):
        check_state(StridedUNet(**config, log_snr=log_snr), state)
    unet = StridedUNet(**config, log_snr=log_snr)  # with buffers that follow from its settings
    unet.load_state_dict(state, strict=True)
    return unet


def _load_ffdnet(state: dict[str, Tensor]) -> Loaded:
    betas = trained_betas(beta_schedule({}))
    return load_ffdnet(state, betas), betas, TILE, PATCH


def _load_adm(path: Path, state: dict[str, Tensor]) -> Loaded:
    from .adm import is_adm_state_dict, load_adm_unet

    if not is_adm_state_dict(state):
        raise AntiPureError(
            f"{path} holds no ADM (guided-diffusion) UNet; give such a checkpoint or a diffusers folder."
        )
    unet = load_adm_unet(state)
    check_finite(unet)
    return unet, beta_schedule({}), unet.config.sample_size, 1


def _load_folder(folder: Path) -> Loaded:
    if any((folder / name).is_dir() for name in ("vae", "vqvae")):
        raise AntiPureError(f"{folder} holds a latent diffusion model; give one that works on pixels.")
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _settings(inner / "config.json", "network")
    scheduler_folder = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    betas = beta_schedule(_settings(scheduler_folder / "scheduler_config.json", "noise schedule"))
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise AntiPureError(f"{inner} holds a {config['_class_name']}; pixel denoisers are UNet2DModel folders.")
    if config.get("in_channels", 3) != 3:
        raise AntiPureError(f"{inner} takes {config['in_channels']} channels; pixel denoisers take 3 (RGB).")
    files, _ = find_weights(inner, "diffusion_pytorch_model")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_weights(file, "the weights of a UNet2DModel")[0])
    unet = _build_unet(config, state, inner)
    native: Any = unet.config
    size = native.sample_size
    return unet, betas, None if isinstance(size, (list, tuple)) else size, 1


def _settings(path: Path, purpose: str) -> dict:
    if not path.is_file():
        raise AntiPureError(f"{path.parent} has no {path.name}; a diffusers folder needs it for the {purpose}.")
    return read_json(path)
