"""OpenAI guided-diffusion (ADM) unconditional checkpoints as diffusers `UNet2DModel`.

ADM: Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021; the layout is the one of
`256x256_diffusion_uncond.pt`, of the LSUN models and of models trained with that code. Everything `UNet2DModel` asks
for is read from names and shapes, except what a state dict does not hold:

* heads: 64 channels per head, as in every released unconditional model. A model with an attention level that 64 does
  not divide cannot have been built so: it is taken to have one head everywhere, the default of ADM's own UNet.
* the order of rows in `qkv`: per head (q, k, v), "legacy", as in every released unconditional model.
* dropout: none, the networks are used for inference only.

Networks that change the size by plain convolutions have the same names, and are refused. improved-diffusion (Nichol &
Dhariwal 2021) knows no others: one to four heads, cosine schedules and 4000 steps leave no trace in the weights, and
with wrong ones the network computes something else, silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import AntiPureError, sizes

if TYPE_CHECKING:
    from diffusers import UNet2DModel

HEAD_CHANNELS = 64
GROUPS = 32
SIDES = {(1, 2, 3, 4): 64, (1, 1, 2, 3, 4): 128, (1, 1, 2, 2, 4, 4): 256, (0.5, 1, 1, 2, 2, 4, 4): 512}
SIGNATURE = (
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "middle_block.0.in_layers.0.weight",
    "middle_block.1.qkv.weight",
    "out.2.weight",
)

# diffusers' layer: ADM's layer, inside a residual or an attention block.
LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj_out",
}
OUTER_LAYERS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def is_adm_state_dict(state: Mapping[str, Tensor]) -> bool:
    """Whether `state` has the names of an ADM UNet, class-conditional ones included."""
    return all(key in state for key in SIGNATURE)


def adm_config(state: Mapping[str, Tensor]) -> dict:
    """Keyword arguments of the `UNet2DModel` that computes what the ADM UNet with these weights computes.

    state: the checkpoint's tensors by name; only names and shapes are read (meta tensors serve).
    `sample_size` is the native side where the channel multipliers are those of ADM's 64, 128, 256 or 512 pixel models
    (ADM's `create_model`), else None: the side leaves no trace in the weights. `time_embedding_dim` is given only
    where it is not `UNet2DModel`'s default (diffusers knows it since 0.32).
    Raises AntiPureError for another layout, a class-conditional model, or a UNet that `UNet2DModel` cannot express.
    """
    if not is_adm_state_dict(state):
        missing = next(key for key in SIGNATURE if key not in state)
        raise AntiPureError(f"This is no ADM (guided-diffusion) checkpoint: it has no '{missing}'.")
    if "label_emb.weight" in state:
        raise AntiPureError(
            "This ADM checkpoint is class-conditional (it has 'label_emb.weight'); load an unconditional one instead."
        )
    if any(key.startswith("input_blocks.") and ".0.op." in key for key in state):
        raise AntiPureError(
            "It changes sizes by plain convolutions, as improved-diffusion's networks do: their heads and noise "
            "schedule cannot be read from weights; convert it to a diffusers folder, or give an ADM model "
            "(resblock_updown)."
        )
    parts = {".".join(key.split(".")[:4]) for key in state}  # such as input_blocks.1.0.in_layers
    levels, layers = _depth(parts)
    firsts = [f"input_blocks.{1 + level * (layers + 1)}" for level in range(levels)]  # first res block of each level
    channels = [_shape(state, f"{name}.0.out_layers.3.weight")[0] for name in firsts]
    attention = [f"{name}.1.qkv" in parts for name in firsts]
    width = _shape(state, "time_embed.0.weight")[1]
    scale_shift = _shape(state, f"{firsts[0]}.0.emb_layers.1.weight")[0] == 2 * channels[0]
    attended = [c for c, has in zip(channels, attention, strict=True) if has] + channels[-1:]  # the middle: always

    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    config = {
        "sample_size": SIDES.get(tuple(c / width for c in channels)),
        "in_channels": _shape(state, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(state, "out.2.weight")[0],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if has else plain[0] for has in attention),
        "up_block_types": tuple("AttnUpBlock2D" if has else plain[1] for has in reversed(attention)),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        # None: as many channels per head as the level has.
        "attention_head_dim": None if any(c % HEAD_CHANNELS for c in attended) else HEAD_CHANNELS,
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,  # else the middle's attention has no norm under scale_shift
        "norm_eps": 1e-5,
    }
    if width != channels[0]:
        config["time_embedding_dim"] = _shape(state, "time_embed.0.weight")[0]
    return config


def convert_adm_state_dict(state: Mapping[str, Tensor], config: dict) -> dict[str, Tensor]:
    """ADM weights under `UNet2DModel`'s names, float32.

    state: the checkpoint's tensors by name, any float dtype, any device (meta included).
    config: from `adm_config`.
    Tensors that need no change are shared with `state`, not copied.
    Raises AntiPureError naming the first key that is missing, has a wrong shape, or has no place in the model.
    """
    with torch.device("meta"):
        targets = _build(config).state_dict()
    layers = _layer_names(config)
    converted = {}
    used = set()
    for key, target in targets.items():
        layer, _, kind = key.rpartition(".")
        source = f"{layers[layer]}.{kind}"
        shape = _shape(state, source)
        value = state[source].float()
        name = layer.rpartition(".")[2]
        if name in ("to_q", "to_k", "to_v") and value.shape[0] == 3 * target.shape[0]:
            head = config["attention_head_dim"] or target.shape[0]
            value = _qkv_part(value, ("to_q", "to_k", "to_v").index(name), head)
        if value.ndim == 3:  # a conv over positions with kernel 1: a linear layer
            value = value.squeeze(-1)
        if value.shape != target.shape:
            raise AntiPureError(
                f"'{source}' of this ADM checkpoint has shape {sizes(shape)}, which does not fit"
                f" '{key}' with shape {sizes(target.shape)}."
            )
        converted[key] = value
        used.add(source)
    extra = next((key for key in state if key not in used), None)
    if extra is not None:
        raise AntiPureError(
            f"This ADM checkpoint has '{extra}', which has no place in the model its other keys describe."
        )
    return converted


def load_adm_unet(state: Mapping[str, Tensor]) -> UNet2DModel:
    """The `UNet2DModel` of an ADM checkpoint, float32, in eval mode, on the device of `state`.

    Its output has C or 2C channels: predicted noise, then the learned variance fraction (Nichol & Dhariwal 2021,
    eq. 15) where the checkpoint has one. Timesteps are 0-based indices into ADM's 1000 steps.
    Weights may share memory with `state`. Raises AntiPureError as `adm_config` and `convert_adm_state_dict` do.
    """
    config = adm_config(state)
    weights = convert_adm_state_dict(state, config)
    with torch.device("meta"):
        unet = _build(config)
    unet.load_state_dict(weights, strict=True, assign=True)
    return unet.eval()


def _build(config: dict) -> UNet2DModel:
    """`UNet2DModel(**config)`, its sinusoidal embedding as wide as ADM's.

    ADM's embedding has the base width (a quarter of `time_embedding_dim`); that of `UNet2DModel` has the first
    level's. They differ where the first multiplier is not 1, as in the 512 pixel models: there the layer is replaced.
    `UNet2DModel.from_pretrained` would not read such a model back, its config cannot say so.
    """
    from diffusers import UNet2DModel
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    embedding = config.get("time_embedding_dim")
    if embedding and "time_embedding_dim" not in signature(UNet2DModel.__init__).parameters:
        raise AntiPureError("This ADM checkpoint needs diffusers 0.32 or newer: its first channel multiplier is not 1.")
    unet = UNet2DModel(**config)
    if embedding:
        unet.time_proj = Timesteps(embedding // 4, config["flip_sin_to_cos"], config["freq_shift"])
        unet.time_embedding = TimestepEmbedding(embedding // 4, embedding)
    return unet


def _depth(parts: set[str]) -> tuple[int, int]:
    """Number of levels, and of residual blocks per level on the way down.

    A residual block that halves the picture looks like any other; one that doubles it stands as a second residual
    block in its output block. So levels are counted on the way up, where each has one block more than on the way down.
    """
    inputs, outputs = (
        len({part.split(".")[1] for part in parts if part.startswith(prefix)})
        for prefix in ("input_blocks.", "output_blocks.")
    )
    ups = [i for i in range(outputs) if any(f"output_blocks.{i}.{j}.in_layers" in parts for j in (1, 2))]
    levels = len(ups) + 1
    period = outputs // levels
    even = inputs == outputs == levels * period and ups == list(range(period - 1, outputs - 1, period))
    if period < 2 or not even:
        raise AntiPureError(
            f"The {inputs} input and {outputs} output blocks of this ADM checkpoint do not form levels of equal depth"
            " with learned up- and downsampling; only such UNets can be loaded."
        )
    return levels, period - 1


def _layer_names(config: dict) -> dict[str, str]:
    """The ADM layer for every layer of the `UNet2DModel`, and for some it may lack, such as shortcuts."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    names = dict(OUTER_LAYERS)
    blocks = {
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        first = level * (layers + 1)
        for i in range(layers):
            blocks[f"{down}.resnets.{i}"] = f"input_blocks.{first + i + 1}.0"
            blocks[f"{down}.attentions.{i}"] = f"input_blocks.{first + i + 1}.1"
        blocks[f"{down}.downsamplers.0"] = f"input_blocks.{first + layers + 1}.0"
        for i in range(layers + 1):
            blocks[f"{up}.resnets.{i}"] = f"output_blocks.{first + i}.0"
            blocks[f"{up}.attentions.{i}"] = f"output_blocks.{first + i}.1"
        last = 2 if config["up_block_types"][level] == "AttnUpBlock2D" else 1
        blocks[f"{up}.upsamplers.0"] = f"output_blocks.{first + layers}.{last}"
    names.update((f"{ours}.{a}", f"{theirs}.{b}") for ours, theirs in blocks.items() for a, b in LAYERS.items())
    return names


def _qkv_part(qkv: Tensor, part: int, head_channels: int) -> Tensor:
    """Rows of queries (part 0), keys (1) or values (2), head after head.

    qkv: 3C×... with the rows (head, part, channel), ADM's "legacy" order. Returns C×..., a copy.
    """
    return qkv.unflatten(0, (-1, 3, head_channels))[:, part].flatten(0, 1).clone()


def _shape(state: Mapping[str, Tensor], key: str) -> torch.Size:
    if key not in state:
        raise AntiPureError(f"This ADM checkpoint is incomplete: it has no '{key}'.")
    return state[key].shape
