"""The weights `antipure fetch-models` can download: what they are for, whose they are, and where the loaders look."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

PRESENT, ABSENT, DAMAGED = "present", "absent", "damaged"
_TORCHVISION = "https://download.pytorch.org/models/"
_RELEASES = "https://github.com/"


@dataclass(frozen=True)
class Model:
    """One download.

    url: the file, or a zip archive whose `members` are kept. sha256, size: of what is downloaded, in bytes. folder:
    below ComfyUI's models folder. restricted: the licence has to be accepted by name.
    """

    url: str
    sha256: str
    size: int
    folder: str
    licence: str
    purpose: str
    members: tuple[str, ...] = ()
    restricted: bool = False

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def files(self, models: Path) -> list[Path]:
        """What lies in a models folder once it is there."""
        return [models / self.folder / name for name in self.members or (self.file_name,)]

    def state(self, models: Path) -> str:
        """ "present", "absent" or "damaged" (another size or sha256): the whole file is read.

        Of an archive's members no sha256 is known; they have to be there and not empty.
        """
        files = self.files(models)
        if not all(path.is_file() for path in files):
            return ABSENT
        if self.members:
            return PRESENT if all(path.stat().st_size for path in files) else DAMAGED
        return PRESENT if files[0].stat().st_size == self.size and sha256(files[0]) == self.sha256 else DAMAGED


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


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
}
