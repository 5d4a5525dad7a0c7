"""Write a Stable Diffusion 1.5 checkpoint with random weights: real names, real shapes, about 2 GB in fp16.

For tests of a real server without a download: it makes noise, not pictures. Keep it outside the repository.
    python tools/make_sd_checkpoint.py FILE.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
EMBEDDING = 1280
CONTEXT = 768


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


def transformer(shapes: Shapes, name: str, channels: int) -> None:
    norm(shapes, f"{name}.norm", channels)
    conv(shapes, f"{name}.proj_in", channels, channels, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, context in (("attn1", channels), ("attn2", CONTEXT)):
        linear(shapes, f"{block}.{attention}.to_q", channels, channels, bias=False)
        linear(shapes, f"{block}.{attention}.to_k", context, channels, bias=False)
        linear(shapes, f"{block}.{attention}.to_v", context, channels, bias=False)
        linear(shapes, f"{block}.{attention}.to_out.0", channels, channels)
    linear(shapes, f"{block}.ff.net.0.proj", channels, 8 * channels)
    linear(shapes, f"{block}.ff.net.2", 4 * channels, channels)
    for i in (1, 2, 3):
        norm(shapes, f"{block}.norm{i}", channels)
    conv(shapes, f"{name}.proj_out", channels, channels, 1)


def unet_shapes() -> Shapes:
    shapes: Shapes = {}
    linear(shapes, "time_embed.0", 320, EMBEDDING)
    linear(shapes, "time_embed.2", EMBEDDING, EMBEDDING)
    conv(shapes, "input_blocks.0.0", 4, 320)
    levels = (320, 640, 1280, 1280)
    skips, channels, index = [320], 320, 1
    for level, width in enumerate(levels):
        for _ in range(2):
            residual(shapes, f"input_blocks.{index}.0", channels, width)
            if level < 3:
                transformer(shapes, f"input_blocks.{index}.1", width)
            channels, index = width, index + 1
            skips.append(channels)
        if level < 3:
            conv(shapes, f"input_blocks.{index}.0.op", channels, channels)
            index += 1
            skips.append(channels)
    residual(shapes, "middle_block.0", channels, channels)
    transformer(shapes, "middle_block.1", channels)
    residual(shapes, "middle_block.2", channels, channels)
    index = 0
    for level, width in reversed(list(enumerate(levels))):
        for i in range(3):
            residual(shapes, f"output_blocks.{index}.0", channels + skips.pop(), width)
            if level < 3:
                transformer(shapes, f"output_blocks.{index}.1", width)
            if level and i == 2:
                conv(shapes, f"output_blocks.{index}.{2 if level < 3 else 1}.conv", width, width)
            channels, index = width, index + 1
    norm(shapes, "out.0", 320)
    conv(shapes, "out.2", 320, 4)
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
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (49408, CONTEXT),
        "embeddings.position_embedding.weight": (77, CONTEXT),
    }
    for i in range(12):
        layer = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(shapes, f"{layer}.self_attn.{part}", CONTEXT, CONTEXT)
        linear(shapes, f"{layer}.mlp.fc1", CONTEXT, 4 * CONTEXT)
        linear(shapes, f"{layer}.mlp.fc2", 4 * CONTEXT, CONTEXT)
        norm(shapes, f"{layer}.layer_norm1", CONTEXT)
        norm(shapes, f"{layer}.layer_norm2", CONTEXT)
    norm(shapes, "final_layer_norm", CONTEXT)
    return shapes


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights of variance 1 / inputs, norms near the identity, small biases: activations stay of order 1."""
    value = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return (value / value[0].numel() ** 0.5).half()
    return (0.02 * value + name.endswith("weight")).half()


def checkpoint(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parts = ((UNET, unet_shapes()), (VAE, vae_shapes()), (CLIP, clip_shapes()))
    tensors = {
        prefix + name: random_tensor(name, shape, generator)
        for prefix, shapes in parts
        for name, shape in shapes.items()
    }
    tensors[f"{CLIP}embeddings.position_ids"] = torch.arange(77)[None]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    tensors["alphas_cumprod"] = torch.cumprod(1 - betas, 0).float()
    return tensors


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    save_file(checkpoint(args.seed), args.file)
    print(f"{args.file}: {args.file.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
