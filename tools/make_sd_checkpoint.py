"""Write a Stable Diffusion checkpoint with random weights: real names, real shapes, noise instead of pictures.

For tests of a real server without a download. Keep it outside the repository.
    python tools/make_sd_checkpoint.py FILE.safetensors                      # all of SD 1.5, 2.1 GB; sdxl: 6.9 GB
    python tools/make_sd_checkpoint.py FILE.safetensors --kind sdxl-small

The small kinds are the least that ComfyUI still takes for the family. It recognises a family by its 320 channels,
the width of its text and, for SDXL, the transformer depths, but not by widths, numbers of blocks and what the upper
half holds. VAE and text encoders have fixed sizes; the text encoders' layers are zeros there, which pass their input
on, and zeros take no room on the disk: 0.6 GB (sd15-small), 0.9 GB (sdxl-small).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
CLIP_L, CLIP_G = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
EMBEDDING = 1280


@dataclass(frozen=True)
class Unet:
    """levels: channels at each resolution. depths: transformer blocks, per level on the way down, then up."""

    levels: tuple[int, ...]
    blocks: int
    depths: tuple[int, ...]
    depths_up: tuple[int, ...]
    middle: int
    context: int
    linear: bool = False  # projections of the transformers: 1x1 convolutions, or linear
    vector: int = 0  # width of SDXL's pooled text and sizes


KINDS = {
    "sd15": Unet((320, 640, 1280, 1280), 2, (1, 1, 1, 0), (1, 1, 1, 0), middle=1, context=768),
    "sdxl": Unet((320, 640, 1280), 2, (0, 2, 10), (0, 2, 10), middle=10, context=2048, linear=True, vector=2816),
    "sd15-small": Unet((320, 320), 1, (1, 1), (1, 1), middle=1, context=768),
    "sdxl-small": Unet((320, 320, 320), 2, (0, 2, 10), (0, 1, 1), middle=1, context=2048, linear=True, vector=2816),
}


def conv(shapes: Shapes, name: str, inputs: int, outputs: int, kernel: int = 3) -> None:
    shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
    shapes[f"{name}.bias"] = (outputs,)


def linear(shapes: Shapes, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = (outputs, inputs)
    if bias:
        shapes[f"{name}.bias"] = (outputs,)


def norm(shapes: Shapes, name: str, channels: int) -> None:
    shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)


def residual(shapes: Shapes, name: str, inputs: int, outputs: int) -> None:
    norm(shapes, f"{name}.in_layers.0", inputs)
    conv(shapes, f"{name}.in_layers.2", inputs, outputs)
    linear(shapes, f"{name}.emb_layers.1", EMBEDDING, outputs)
    norm(shapes, f"{name}.out_layers.0", outputs)
    conv(shapes, f"{name}.out_layers.3", outputs, outputs)
    if inputs != outputs:
        conv(shapes, f"{name}.skip_connection", inputs, outputs, 1)


def transformer(shapes: Shapes, name: str, channels: int, depth: int, unet: Unet) -> None:
    norm(shapes, f"{name}.norm", channels)
    for part in ("proj_in", "proj_out"):
        if unet.linear:
            linear(shapes, f"{name}.{part}", channels, channels)
        else:
            conv(shapes, f"{name}.{part}", channels, channels, 1)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, context in (("attn1", channels), ("attn2", unet.context)):
            linear(shapes, f"{block}.{attention}.to_q", channels, channels, bias=False)
            linear(shapes, f"{block}.{attention}.to_k", context, channels, bias=False)
            linear(shapes, f"{block}.{attention}.to_v", context, channels, bias=False)
            linear(shapes, f"{block}.{attention}.to_out.0", channels, channels)
        linear(shapes, f"{block}.ff.net.0.proj", channels, 8 * channels)
        linear(shapes, f"{block}.ff.net.2", 4 * channels, channels)
        for k in (1, 2, 3):
            norm(shapes, f"{block}.norm{k}", channels)


def unet_shapes(unet: Unet) -> Shapes:
    shapes: Shapes = {}
    last, channels = len(unet.levels) - 1, unet.levels[0]
    for name, width in {"time_embed": channels, "label_emb.0": unet.vector}.items():
        if width:
            linear(shapes, f"{name}.0", width, EMBEDDING)
            linear(shapes, f"{name}.2", EMBEDDING, EMBEDDING)
    conv(shapes, "input_blocks.0.0", 4, channels)
    skips, index = [channels], 1
    for level, width in enumerate(unet.levels):
        for _ in range(unet.blocks):
            residual(shapes, f"input_blocks.{index}.0", channels, width)
            if unet.depths[level]:
                transformer(shapes, f"input_blocks.{index}.1", width, unet.depths[level], unet)
            channels, index = width, index + 1
            skips.append(channels)
        if level < last:
            conv(shapes, f"input_blocks.{index}.0.op", channels, channels)
            index += 1
            skips.append(channels)
    residual(shapes, "middle_block.0", channels, channels)
    transformer(shapes, "middle_block.1", channels, unet.middle, unet)
    residual(shapes, "middle_block.2", channels, channels)
    index = 0
    for level, width in reversed(list(enumerate(unet.levels))):
        for i in range(unet.blocks + 1):
            residual(shapes, f"output_blocks.{index}.0", channels + skips.pop(), width)
            if unet.depths_up[level]:
                transformer(shapes, f"output_blocks.{index}.1", width, unet.depths_up[level], unet)
            if level and i == unet.blocks:
                conv(shapes, f"output_blocks.{index}.{2 if unet.depths_up[level] else 1}.conv", width, width)
            channels, index = width, index + 1
    norm(shapes, "out.0", channels)
    conv(shapes, "out.2", channels, 4)
    return shapes


def vae_shapes() -> Shapes:
    shapes: Shapes = {}

    def block(name: str, inputs: int, outputs: int) -> None:
        norm(shapes, f"{name}.norm1", inputs)
        conv(shapes, f"{name}.conv1", inputs, outputs)
        norm(shapes, f"{name}.norm2", outputs)
        conv(shapes, f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            conv(shapes, f"{name}.nin_shortcut", inputs, outputs, 1)

    def middle(name: str) -> None:
        block(f"{name}.mid.block_1", 512, 512)
        norm(shapes, f"{name}.mid.attn_1.norm", 512)
        for part in ("q", "k", "v", "proj_out"):
            conv(shapes, f"{name}.mid.attn_1.{part}", 512, 512, 1)
        block(f"{name}.mid.block_2", 512, 512)

    levels = (128, 256, 512, 512)
    conv(shapes, "encoder.conv_in", 3, 128)
    channels = 128
    for level, width in enumerate(levels):
        for i in range(2):
            block(f"encoder.down.{level}.block.{i}", channels, width)
            channels = width
        if level < 3:
            conv(shapes, f"encoder.down.{level}.downsample.conv", channels, channels)
    middle("encoder")
    norm(shapes, "encoder.norm_out", 512)
    conv(shapes, "encoder.conv_out", 512, 8)
    conv(shapes, "decoder.conv_in", 4, 512)
    middle("decoder")
    for level, width in reversed(list(enumerate(levels))):
        for i in range(3):
            block(f"decoder.up.{level}.block.{i}", channels, width)
            channels = width
        if level:
            conv(shapes, f"decoder.up.{level}.upsample.conv", channels, channels)
    norm(shapes, "decoder.norm_out", 128)
    conv(shapes, "decoder.conv_out", 128, 3)
    conv(shapes, "quant_conv", 8, 8, 1)
    conv(shapes, "post_quant_conv", 4, 4, 1)
    return shapes


def clip_shapes() -> Shapes:
    width = 768
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
    }
    for i in range(12):
        layer = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(shapes, f"{layer}.self_attn.{part}", width, width)
        linear(shapes, f"{layer}.mlp.fc1", width, 4 * width)
        linear(shapes, f"{layer}.mlp.fc2", 4 * width, width)
        norm(shapes, f"{layer}.layer_norm1", width)
        norm(shapes, f"{layer}.layer_norm2", width)
    norm(shapes, "final_layer_norm", width)
    return shapes


def clip_g_shapes() -> Shapes:
    width = 1280
    shapes: Shapes = {
        "token_embedding.weight": (49408, width),
        "positional_embedding": (77, width),
        "text_projection": (width, width),
    }
    for i in range(32):
        layer = f"transformer.resblocks.{i}"
        shapes[f"{layer}.attn.in_proj_weight"], shapes[f"{layer}.attn.in_proj_bias"] = (3 * width, width), (3 * width,)
        linear(shapes, f"{layer}.attn.out_proj", width, width)
        linear(shapes, f"{layer}.mlp.c_fc", width, 4 * width)
        linear(shapes, f"{layer}.mlp.c_proj", 4 * width, width)
        norm(shapes, f"{layer}.ln_1", width)
        norm(shapes, f"{layer}.ln_2", width)
    norm(shapes, "ln_final", width)
    return shapes


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights of variance 1 / inputs, norms near the identity, small biases: activations stay of order 1."""
    value = torch.randn(shape, generator=generator, device=generator.device)
    if len(shape) > 1:
        return (value / value[0].numel() ** 0.5).half().cpu()
    return (0.02 * value + name.endswith("weight")).half().cpu()


def checkpoint(kind: str = "sd15", seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """Name -> tensor. Layers of small kinds' text encoders are expanded zeros. device: where the numbers are drawn."""
    generator = torch.Generator(device).manual_seed(seed)
    texts = {CLIP_L: clip_shapes(), CLIP_G: clip_g_shapes()} if kind.startswith("sdxl") else {CLIP: clip_shapes()}
    tensors = {}
    for prefix, shapes in {UNET: unet_shapes(KINDS[kind]), VAE: vae_shapes(), **texts}.items():
        for name, shape in shapes.items():
            if prefix in texts and kind.endswith("small") and (".layers." in name or ".resblocks." in name):
                tensors[prefix + name] = torch.zeros((), dtype=torch.float16).expand(shape)
            else:
                tensors[prefix + name] = random_tensor(name, shape, generator)
    tensors[f"{next(iter(texts))}embeddings.position_ids"] = torch.arange(77)[None]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    tensors["alphas_cumprod"] = torch.cumprod(1 - betas, 0).float()
    return tensors


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """The file as safetensors' own `save_file` writes it, but with holes where all is zero."""
    types = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": types[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, tensor in tensors.items():
            if not all(stride == 0 for stride in tensor.stride()):
                file.seek(start + header[name]["data_offsets"][0])
                file.write(tensor.contiguous().numpy().tobytes())
        file.truncate(start + end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="sd15")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="draws the numbers: cuda is faster and draws others")
    args = parser.parse_args()
    write(checkpoint(args.kind, args.seed, args.device), args.file)
    size = args.file.stat()
    print(f"{args.file}: {size.st_size / 1e9:.2f} GB, {512 * size.st_blocks / 1e9:.2f} GB on the disk")


if __name__ == "__main__":
    main()
