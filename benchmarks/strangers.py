"""Weights and pictures of strangers, which nobody here trained and nothing here carries: for measuring only.

They lie in the folder that the environment variable ANTIPURE_DATA names, or in `shared/data` beside the repository:
`vae/taesd_{sd15,sdxl,sd3,flux1}.safetensors` and `vae/taef2_{encoder,decoder}.pth` (distilled VAEs, MIT),
`denoiser/ffdnet_color.safetensors` (FFDNet; its licence is unclear), `pictures/kodim*.png` (Kodak). Tests and
benchmarks use what is there and say what is not.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from antipure.methods.diffusion.autoencoder import Autoencoder, load_autoencoder

VARIABLE = "ANTIPURE_DATA"
ATTACKED_VAES = ("sd15", "sdxl", "sd3", "flux1")
UNSEEN_VAE = "flux2"  # nothing here is ever made against this one


def data_folder() -> Path:
    """Where strangers' files lie; the folder need not exist."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


def vae_files() -> dict[str, tuple[Path, ...]]:
    """The VAEs that are there, by name: one file with encoder and decoder, or two."""
    folder = data_folder() / "vae"
    files = {name: (folder / f"taesd_{name}.safetensors",) for name in ATTACKED_VAES}
    files[UNSEEN_VAE] = (folder / "taef2_encoder.pth", folder / "taef2_decoder.pth")
    return {name: paths for name, paths in files.items() if all(path.is_file() for path in paths)}


@cache
def load_vaes() -> dict[str, Autoencoder]:
    """The VAEs that are there, by name, on the CPU: read once, and the same ones for whoever asks again."""
    return {name: load_autoencoder(paths, name=name) for name, paths in vae_files().items()}


def ffdnet_file() -> Path | None:
    """FFDNet for colour photographs, where it is there."""
    path = data_folder() / "denoiser" / "ffdnet_color.safetensors"
    return path if path.is_file() else None


def pictures() -> dict[str, Path]:
    """Photographs by name."""
    return {path.stem: path for path in sorted((data_folder() / "pictures").glob("*.png"))}


def missing() -> str:
    """What is not there, as a sentence for a table or a skipped test; "" where all is."""
    absent = [name for name in (*ATTACKED_VAES, UNSEEN_VAE) if name not in vae_files()]
    gone = [*(f"the VAE {name}" for name in absent), *([] if ffdnet_file() else ["FFDNet"])]
    gone += [] if pictures() else ["Kodak's photographs"]
    return f"Not there, and so not measured: {', '.join(gone)} (folder {VARIABLE})." if gone else ""
