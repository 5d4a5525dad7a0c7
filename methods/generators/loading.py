"""Loading generators: StarGAN, AttGAN and HiSD checkpoints as their authors publish them, and the bundled toy.

The architecture and its dimensions are read from names and shapes. Files are safetensors, or torch checkpoints read
with `weights_only`; exported programs (.pt2) can carry code and are refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..architecture import COUNTERS, fill
from ..errors import AntiPureError
from ..files import BUNDLED_FOLDER, read_weights, reason, unwrap
from .attgan import AttGAN, AttGANNetwork
from .generator import Generator
from .hisd import HiSD, HiSDNetwork
from .stargan import StarGAN, StarGANNetwork, default_labels

BUNDLED = BUNDLED_FOLDER / "toy_stargan.safetensors"
OWN_FORMAT = "antipure-stargan"
SMALLEST_SIZE, LARGEST_SIZE = 8, 1024
WANTED = "a StarGAN, AttGAN or HiSD generator checkpoint"
# Bookkeeping of normalisation layers; batch normalisation needs its means and variances, StarGAN's must not use them.
STATISTICS = ("running_mean", "running_var", *COUNTERS)
# Where one file holds several networks side by side: the generator's names begin so. Averaged weights first.
PREFIXES = ("gen_test.", "nets_ema.generator.", "G_ema.", "generator_ema.", "gen.", "G.", "netG.", "generator.")
Network = TypeVar("Network", bound=nn.Module)


def load_generator(
    path: str | Path | None = None, *, device: torch.device | str = "cpu", size: int | None = None
) -> Generator:
    """Load a face-editing generator from a file (None: the bundled toy), float32, frozen.

    size: side it was trained at, 8 to 1024; weights do not tell, so published models are taken to be of 256 (StarGAN's
        and AttGAN's come in 128 too).
    Raises `AntiPureError` naming the path when it is no such generator, is incomplete, or holds code.
    """
    path = Path(path) if path is not None else BUNDLED
    if not path.is_file():
        raise AntiPureError(f"There is no generator at {path}; give {WANTED}.")
    if path.suffix == ".pt2":
        raise AntiPureError(f"{path} is an exported program, which can run code when it is read; give {WANTED}.")
    with torch.inference_mode(False), torch.no_grad():
        try:
            generator = _load(path, size)
            side = generator.size
            if not isinstance(side, int) or isinstance(side, bool) or not SMALLEST_SIZE <= side <= LARGEST_SIZE:
                raise AntiPureError(
                    f"Its size is {side!r}; give a whole number of pixels from {SMALLEST_SIZE} to {LARGEST_SIZE}."
                )
        except AntiPureError as error:
            if str(error).startswith((f"{path} ", f"{path}{os.sep}")):
                raise
            raise AntiPureError(f"{path} cannot be used. {error}") from error
        except Exception as error:  # whatever malformed names, shapes or settings make Python or torch raise
            raise AntiPureError(f"{path} cannot be read as a generator: {reason(error)}") from error
        return generator.to(device)


def _load(path: Path, size: int | None) -> Generator:
    state, metadata = read_weights(path, WANTED)
    if metadata.get("format") != OWN_FORMAT:
        return generator_from_state(state, size=size)
    config = json.loads(metadata["config"])
    labels = {edit: tuple(values) for edit, values in config["labels"].items()}
    return StarGAN(_stargan(state), labels, size=size or config["size"])


def generator_from_state(checkpoint: object, *, size: int | None = None) -> Generator:
    """The generator a checkpoint's names describe, with the default edits of its architecture.

    checkpoint: a state dict, or a dictionary that holds one under a name in `files.NESTS`, or one of several networks
        whose generator's names begin with one of `PREFIXES`; the others are left out.
    Raises `AntiPureError` for other networks, and naming the first key that is missing, misshapen, or has no place.
    """
    state = unwrap(checkpoint)
    if state is None:
        raise AntiPureError(f"It holds no generator's weights; give {WANTED}.")
    size = size or 256
    for prefix in ("", *PREFIXES):
        part = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if generator := _recognised(part, size):
            return generator
    raise AntiPureError(f"Its weights are those of another network; give {WANTED}.")


def _recognised(state: dict[str, Tensor], size: int) -> Generator | None:
    """The generator whose names these are, None where they are another network's."""
    if "main.0.weight" in state and "main.3.weight" in state and state["main.0.weight"].ndim == 4:
        network = _stargan(state)
        return StarGAN(network, default_labels(network.n_labels), size=size)
    if "enc_layers.0.layers.0.weight" in state and "dec_layers.0.layers.0.weight" in state:
        return AttGAN(_attgan(state), size=size)
    if "encoder.0.weight" in state and "mappers.0.pre_model.0.weight" in state:
        return HiSD(_hisd(state), size=size)
    return None


def _stargan(state: dict[str, Tensor]) -> StarGANNetwork:
    first = _shape(state, "main.0.weight")
    blocks = _count(state, "main.", ".main.0.weight")
    with torch.device("meta"):
        network = StarGANNetwork(first[0], first[1] - 3, blocks)
    return _fill(network, state, ignored=STATISTICS)


def _attgan(state: dict[str, Tensor]) -> AttGANNetwork:
    encoder = [_shape(state, f"enc_layers.{i}.layers.0.weight")[0] for i in range(_count(state, "enc_layers."))]
    shapes = [_shape(state, f"dec_layers.{i}.layers.0.weight") for i in range(_count(state, "dec_layers."))]
    attributes = shapes[0][0] - encoder[-1]
    shortcuts = injections = 0
    for i, (previous, current) in enumerate(zip(shapes, shapes[1:], strict=False)):
        extra, code = current[0] - previous[1], encoder[-2 - i] if i + 2 <= len(encoder) else 0
        shortcuts += extra in (code, code + attributes) and code > 0
        injections += extra in (attributes, code + attributes) and attributes > 0
    with torch.device("meta"):
        network = AttGANNetwork(
            tuple(encoder),
            tuple(shape[1] for shape in shapes[:-1]),
            attributes,
            shortcuts,
            injections,
            norms=(_attgan_norm(state, "enc_layers."), _attgan_norm(state, "dec_layers.")),
        )
    return _fill(network, state, ignored=COUNTERS)


def _attgan_norm(state: dict[str, Tensor], part: str) -> str:
    """Which normalisation the encoder's or the decoder's layers have. Raises `AntiPureError` for an unknown one."""
    found = {key.rpartition(".")[2] for key in state if key.startswith(part) and ".layers.1." in key}
    if found & {"mean_weight", "var_weight"}:
        raise AntiPureError(
            "This AttGAN has switchable normalisation, which this pack does not know; give one with batch or instance "
            "normalisation, or without."
        )
    return "batch" if "running_mean" in found else "instance" if found else "none"


def _hisd(state: dict[str, Tensor]) -> HiSDNetwork:
    def widths(prefix: str, layer: str, first: int) -> tuple[int, ...]:
        """Outputs of the layer `first`, then of the residual blocks after it."""
        count = _count(state, prefix, layer)
        start = (_shape(state, f"{prefix}{first}.weight")[0],) if first >= 0 else ()
        return start + tuple(_shape(state, f"{prefix}{first + 1 + i}{layer}")[0] for i in range(count))

    mappers = range(_count(state, "mappers."))
    post = "mappers.0.post_models.0."
    post_count = _count(state, post, ".linear.weight")
    style, inner = _shape(state, f"{post}{post_count}.weight")
    with torch.device("meta"):
        network = HiSDNetwork(
            attributes=tuple(_count(state, f"mappers.{i}.post_models.") for i in mappers),
            encoder=widths("encoder.", ".conv2.weight", 0),
            translators=widths("translators.0.model.", ".conv2.weight", 0),
            extractors=widths("extractors.model.", ".conv2.weight", 0),
            pre=widths("mappers.0.pre_model.", ".linear.weight", 0),
            post=(
                _shape(state, f"{post}0.linear.weight")[1] if post_count else inner,
                *widths(post, ".linear.weight", -1),
            ),
            style=style,
            noise=_shape(state, "mappers.0.pre_model.0.weight")[1],
        )
    return _fill(network, state)


def _count(state: dict[str, Tensor], prefix: str, suffix: str = "") -> int:
    """How many different indices stand between the prefix and the suffix, or between it and a dot."""
    tails = (key.removeprefix(prefix) for key in state if key.startswith(prefix) and key.endswith(suffix))
    return len({tail.split(".")[0] for tail in tails if not suffix or tail == tail.split(".")[0] + suffix})


def _shape(state: dict[str, Tensor], key: str) -> torch.Size:
    if key not in state:
        raise AntiPureError(f"It is incomplete: it has no '{key}'.")
    return state[key].shape


def _fill(network: Network, state: dict[str, Tensor], ignored: tuple[str, ...] = ()) -> Network:
    """A network built without memory, given the state's weights as float32; `ignored`: last parts of names."""
    fill(network, {key: value for key, value in state.items() if key.rpartition(".")[2] not in ignored})
    return network
