"""Give the demo latent model's autoencoder a path for colour, where training has found none.

    python -m tools.latent_colour --from folder --drawn folder/pool --out other

An autoencoder that has learned to carry brightness alone is slow to find colour: its layers pass nothing on of which
more could be made. Here the way is laid by hand, as a starting point: the channels that matter least carry red against
green and yellow against blue from the pixels, averaged over 8×8, into the two latents that matter least, and from there
back. All other latents stay as they were, so that the transformer knows them; its inputs and outputs of the two are set
to zero. `tools.train_latent_model --from other` goes on from it. The weights stay ordinary ones: nothing is added.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.latent_networks import CHANNELS, Autoencoder, Conditions, MMDiT, Residual
from tools.latent_pool import SIZES, read_pool
from tools.latent_training import read_autoencoder, read_model
from tools.train_latent_model import write_files

# Rows: red - green and (red + green) / 2 - blue; BACK gives what both add to a grey of the same mean.
OPPONENTS = torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
BACK = torch.tensor([[0.5, 1 / 3], [-0.5, 1 / 3], [0.0, -2 / 3]])


def segments(stages: nn.Sequential) -> list[tuple[nn.Conv2d, list[Residual], nn.Conv2d]]:
    """What writes the trunk between two convolutions, the blocks that change it, what reads it."""
    convolutions = [i for i, stage in enumerate(stages) if isinstance(stage, nn.Conv2d)]
    return [
        (stages[i], [block for block in stages[i + 1 : j] if isinstance(block, Residual)], stages[j])
        for i, j in zip(convolutions[:-1], convolutions[1:], strict=True)
    ]


@torch.no_grad()
def spared(stages: nn.Sequential, x: Tensor, count: int) -> list[Tensor]:
    """By segment the `count` channels whose activity, times what reads it, is least."""
    inputs: list[Tensor] = []
    convolutions = [stage for stage in stages if isinstance(stage, nn.Conv2d)]
    hooks = [c.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for c in convolutions[1:]]
    stages(x)
    for hook in hooks:
        hook.remove()
    found = []
    for seen, reader in zip(inputs, convolutions[1:], strict=True):
        weight = reader.weight.square().sum((0, 2, 3)).sqrt()
        found.append((seen.std((0, 2, 3)) * weight).argsort()[:count])
    return found


@torch.no_grad()
def clear(writer: nn.Conv2d, blocks: list[Residual], reader: nn.Conv2d, channels: Tensor) -> None:
    """Nothing else reads or writes these channels of a trunk any more; blocks pass them on as they are."""
    for block in blocks:
        block.conv[0].weight[:, channels] = 0
        block.conv[-1].weight[channels] = 0
        block.conv[-1].bias[channels] = 0
    writer.weight[channels] = 0
    if writer.bias is not None:
        writer.bias[channels] = 0
    reader.weight[:, channels] = 0


@torch.no_grad()
def least_latents(network: Autoencoder, pictures: Tensor) -> Tensor:
    """The two latents without which pictures come back best."""
    latents = network.taesd_encoder(pictures)
    errors = []
    for i in range(CHANNELS):
        less = latents.clone()
        less[:, i] = latents[:, i].mean()
        errors.append((network.decode(less) - pictures).mean(1).square().mean())
    return torch.stack(errors).argsort()[:2]


@torch.no_grad()
def give_colour(network: Autoencoder, pictures: Tensor) -> Tensor:
    """Lay the path; returns the two latents that carry colour now."""
    network.eval()
    carriers = least_latents(network, pictures)
    latents = network.taesd_encoder(pictures)
    means = nn.functional.avg_pool2d(pictures, 8)
    colour = torch.einsum("oc,nchw->nohw", OPPONENTS, means) / 2 + 0.5  # 0..1: what the trunk can hold
    mean, spread = colour.mean((0, 2, 3)), colour.std((0, 2, 3))

    ways, parts = spared(network.taesd_encoder, pictures, 2), segments(network.taesd_encoder)
    for (writer, blocks, reader), channels in zip(parts, ways, strict=True):
        clear(writer, blocks, reader, channels)
    first = parts[0][0]
    for i, channel in enumerate(ways[0]):
        first.weight[channel, :, 1, 1] = OPPONENTS[i] / 2
        first.bias[channel] = 0.5
    for (_, _, reader), here, there in zip(parts[:-1], ways[:-1], ways[1:], strict=True):
        for source, target in zip(here, there, strict=True):
            reader.weight[target, source, 1:, 1:] = 0.25  # the mean of 2×2 pixels
    last = parts[-1][2]
    last.weight[carriers] = 0
    for i, channel in enumerate(ways[-1]):
        last.weight[carriers[i], channel, 1, 1] = 1 / spread[i]
        last.bias[carriers[i]] = -mean[i] / spread[i]

    ways, parts = spared(network.taesd_decoder, latents, 4), segments(network.taesd_decoder)
    for (writer, blocks, reader), channels in zip(parts, ways, strict=True):
        clear(writer, blocks, reader, channels)
    first, last = parts[0][0], parts[-1][2]
    first.weight[:, carriers] = 0
    smooth = torch.tensor([1.0, 2, 1])
    smooth = smooth[:, None] * smooth / 16
    for i in range(2):  # what is above the middle and what is below it in channels of their own: edges fade to grey
        for sign, way in ((1, i), (-1, i + 2)):
            first.weight[ways[0][way], carriers[i], 1, 1] = 2 * sign * spread[i]
            first.bias[ways[0][way]] = sign * (2 * mean[i] - 1)
            for (_, _, reader), here, there in zip(parts[:-1], ways[:-1], ways[1:], strict=True):
                reader.weight[there[way], here[way]] = smooth
            last.weight[:, ways[-1][way], 1, 1] = sign * BACK[:, i]
    others = torch.ones(last.weight.shape[1], dtype=torch.bool)
    others[ways[-1]] = False
    last.weight[:, others] = last.weight[:, others].mean(0, keepdim=True)
    last.bias[:] = last.bias.mean()
    return carriers


@torch.no_grad()
def forget(model: MMDiT, channels: Tensor) -> None:
    """The transformer neither sees nor predicts anything of these latents."""
    model.x_embedder.proj.weight[:, channels] = 0
    rows = torch.arange(model.patch**2 * CHANNELS).view(-1, CHANNELS)[:, channels].flatten()
    model.final_layer.linear.weight[rows] = 0
    model.final_layer.linear.bias[rows] = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="start", type=Path, required=True)
    parser.add_argument("--drawn", type=Path, required=True, help="folder of tools.draw_pool")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    both = nn.ModuleDict({"model": MMDiT(), "conditions": Conditions(SIZES)})
    network = Autoencoder().eval()
    read_autoencoder(args.start, network)
    if not read_model(args.start, both["model"], both["conditions"]):
        raise SystemExit(f"{args.start} holds no model-*.safetensors: give a folder of tools.train_latent_model.")
    pictures = read_pool(args.drawn)[0][::6][:32].float() / 255

    def quality() -> float:
        with torch.no_grad():
            back = network.decode(network.encode(pictures)).clamp(0, 1)
        return float(-10 * (back - pictures).square().mean().log10())

    before = quality()
    carriers = give_colour(network, pictures)
    forget(both["model"], carriers)
    print(f"latents {carriers.tolist()} carry colour: round trip {before:.2f} dB before, {quality():.2f} dB now")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(network.exported(), args.out / "autoencoder.safetensors")
    write_files(both, args.out)


if __name__ == "__main__":
    main()
