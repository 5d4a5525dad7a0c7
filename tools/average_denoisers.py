"""Average the weights of two denoisers, the second fine-tuned from the first (Wortsman et al., WiSE-FT, CVPR 2022).

    python -m tools.average_denoisers first.safetensors second.safetensors --out bundled/denoiser.safetensors

The bundled denoiser is such a mean of its two training runs: the first leaves some random noise behind as detail, the
second takes a little too much detail out of noisy pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors import safe_open

from tools.train_denoiser import save


def read(path: Path) -> tuple[dict, dict]:
    """Weights in float32, and what the file says of its training."""
    with safe_open(path, framework="pt") as file:
        weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        return weights, json.loads(file.metadata()["config"])["training"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bundled/denoiser.safetensors"))
    parser.add_argument("--share", type=float, default=0.6, help="share of the second one")
    args = parser.parse_args()
    (first, of_first), (second, of_second) = read(args.first), read(args.second)
    mean = {key: (1 - args.share) * first[key] + args.share * second[key] for key in first}
    save(args.out, mean, {"mean_of": [of_first, of_second], "share_of_second": args.share})


if __name__ == "__main__":
    main()
