"""The weights `antipure fetch-models` can download: what they are for, whose they are, and where the loaders look."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

PRESENT, ABSENT, DAMAGED = "present", "absent", "damaged"
_TORCHVISION = "https://download.pytorch.org/models/"
_RELEASES = "https://github.com/"
_TAESD = "https://raw.githubusercontent.com/madebyollin/taesd/5cccb12dc72074a4be35680c3b108548a7c69978/"
_TAESD_SIZE = 5_000_000  # of either half at most: 1.2 million float32 weights and their names


@dataclass(frozen=True)
class Model:
    """One download.

    url: the file, or a zip archive whose `members` are kept. sha256: of what is downloaded. size: its bytes, or a
    little more where only the sha256 is known; no more is taken. folder: below ComfyUI's models folder. restricted: the
    licence has to be accepted by name. others: downloads that belong to it, such as a decoder to its encoder.
    """

    url: str
    sha256: str
    size: int
    folder: str
    licence: str
    purpose: str
    members: tuple[str, ...] = ()
    restricted: bool = False
    others: tuple[Model, ...] = ()

    @property
    def downloads(self) -> tuple[Model, ...]:
        """Itself, and those that belong to it."""
        return (self, *self.others)

    @property
    def total_size(self) -> int:
        """Bytes of all downloads."""
        return sum(each.size for each in self.downloads)

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def files(self, models: Path) -> list[Path]:
        """What lies in a models folder once it is there."""
        own = [models / self.folder / name for name in self.members or (self.file_name,)]
        return own + [path for other in self.others for path in other.files(models)]

    def state(self, models: Path) -> str:
        """ "present", "absent" or "damaged" (another size or sha256): the whole file is read.

        Of an archive's members no sha256 is known; they have to be there and not empty. Of several downloads the worst
        state counts.
        """
        states = [self._own_state(models), *(other.state(models) for other in self.others)]
        return max(states, key=(PRESENT, ABSENT, DAMAGED).index)

    def _own_state(self, models: Path) -> str:
        files = replace(self, others=()).files(models)
        if not all(path.is_file() for path in files):
            return ABSENT
        if self.members:
            return PRESENT if all(path.stat().st_size for path in files) else DAMAGED
        return PRESENT if files[0].stat().st_size <= self.size and sha256(files[0]) == self.sha256 else DAMAGED


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _taesd(name: str, encoder: str, decoder: str, of: str) -> Model:
    """A TAESD's halves, by their sha256, where ComfyUI's Load VAE finds them."""
    halves = [
        Model(
            f"{_TAESD}{name}_{half}.pth",
            digest,
            _TAESD_SIZE,
            "vae_approx",
            "MIT (madebyollin)",
            f"the small VAE of {of} in VAE Metrics",
        )
        for half, digest in (("encoder", encoder), ("decoder", decoder))
    ]
    return replace(halves[0], others=(halves[1],))


MODELS = {
    "alexnet": Model(
        _TORCHVISION + "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        244_408_911,
        "antipure_encoders",
        "BSD-3-Clause (torchvision)",
        "LPIPS in Set Metrics",
    ),
    "inception": Model(
        _RELEASES + "mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        95_628_359,
        "antipure_encoders",
        "Apache-2.0 (TensorFlow, pytorch-fid)",
        "the FID and KID of papers in Set Metrics",
    ),
    "resnet50": Model(
        _TORCHVISION + "resnet50-0676ba61.pth",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        102_530_333,
        "antipure_encoders",
        "BSD-3-Clause (torchvision)",
        "feature alignment in Train LoRA Patch",
    ),
    "buffalo_l": Model(
        _RELEASES + "deepinsight/insightface/releases/download/v0.7/buffalo_l.zip",
        "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
        288_621_354,
        "insightface/models/buffalo_l",
        "non-commercial research only (insightface)",
        "Face Metrics",
        ("det_10g.onnx", "w600k_r50.onnx"),
        restricted=True,
    ),
    "taesd": _taesd(
        "taesd",
        "15bc6128f0ac51c673d3427216082ebfa62402ffc89763af74edfe259b32d49d",
        "02873377c3f4659cd9f9adb2f718dcb434ba4c7bba3af3ee7bb95cbdabe2d3cf",
        "SD 1.5",
    ),
    "taesdxl": _taesd(
        "taesdxl",
        "a5648de089aba6b641e505c0f132b2dc7ff70ab6070c31be5e624e807e711c5e",
        "a3956b8a7a763f251c7357aad6375dacdb6d971121c73e97a3069fc33a94fe1e",
        "SDXL",
    ),
    "taesd3": _taesd(
        "taesd3",
        "b8fefa64b92a867df673c7f22fb2cbc6ae144070e22e7a0b3af0f21de2f43f92",
        "178fbb90c8c3bab4fe5e30dcba3b85d8bd2c9a203f71239c3a3223720c310b58",
        "SD 3",
    ),
    "taef1": _taesd(
        "taef1",
        "1d1ad34546aea0edd99dc2db9411d870319f428ced5065c6464582c17c070536",
        "beae86f2eeaf0cea884dc8ffe639fb297dac8c984441bb53420f07d767785104",
        "FLUX.1",
    ),
    "adm256": Model(
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt",
        "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
        2_211_383_297,
        "antipure",
        "MIT (OpenAI, guided-diffusion)",
        "Load Pixel Denoiser: the purifier of the papers",
    ),
}
