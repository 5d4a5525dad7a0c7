"""Training pictures of the held-out judge (bundled/judge_denoiser.safetensors): free photographs and paintings.

They are wallpapers, stamps and game art that Debian ships under free licences, and none of the pictures the first two
denoisers were trained on. Nothing of them is kept in this repository. On Debian 12, in an empty folder:

    apt-get download mate-backgrounds gnome-backgrounds plasma-workspace-wallpapers ukui-wallpapers \
        lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 tuxpaint-stamps-default wesnoth-1.16-data
    for p in *.deb; do dpkg -x $p ${p%%_*}; done
    python -m tools.judge_data <that folder> judge_data.zip

writes one file of some 27 MB (JPEG 4:4:4 and PNG, with an index), which `TilesOnDevice` unpacks: it holds every picture
at several scales as one tensor of bytes and cuts, flips and recolours tiles on the device that trains.

One picture in six is never trained on, so that there are pictures of the same kinds to measure with: those whose
`reserved(key)` is true. `python -m tools.judge_data <that folder> --list` names them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Image.MAX_IMAGE_PIXELS = None
WALLPAPERS = {  # package -> the folder that is walked
    "mate-backgrounds": "usr/share/backgrounds",
    "gnome-backgrounds": "usr/share/backgrounds",
    "ukui-wallpapers": "usr/share/backgrounds",
    "lomiri-wallpapers-16.04": "usr/share/backgrounds",
    "lomiri-wallpapers-20.04": "usr/share/backgrounds",
    "plasma-workspace-wallpapers": "usr/share/wallpapers",
}
STAMPS = ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps")
WESNOTH = ("wesnoth-1.16-data", "usr/share/games/wesnoth/1.16/data")
# Wallpapers whose path holds one of these words are photographs, the others drawn or rendered.
PHOTOGRAPHS = (
    "lomiri-wallpapers-16.04",
    "nature/",
    "Kleiber",
    "Infinite-Sea",
    "BytheWater",
    "ColdRipple",
    "ColorfulCups",
)
PHOTOGRAPHS += ("DarkestHour", "EveningGlow", "FallenLeaf", "/Grey/", "/Kite/", "OneStandsOut", "/Path/", "summer_1am")
NOT_PHOTOGRAPHS = ("umang_by", "analogpattern")
# Other sizes of a picture that is there already, and a stencil.
SKIPPED = ("Elephants_", "screenshot", "Transparent", "Stripes-", "vnc-")


@dataclass(frozen=True)
class Kind:
    """How a kind of picture is stored and drawn.

    side: longest side in the file, in pixels. quality: of the JPEG, 0 for PNG. scales: sides at which it is trained
    on, relative to the file; all but the PNG below 1, where the JPEG's own noise is averaged away.
    share: of the tiles.
    """

    side: int
    quality: int
    scales: tuple[float, ...]
    share: float


KINDS = {
    "photo": Kind(1360, 88, (0.8, 0.6, 0.42, 0.28, 0.18), 0.46),
    "drawn": Kind(900, 87, (0.8, 0.5, 0.3), 0.13),
    "portrait": Kind(500, 91, (0.9, 0.7, 0.5), 0.16),
    "painting": Kind(900, 88, (0.9, 0.65, 0.4), 0.09),
    "stamp": Kind(420, 90, (0.9, 0.65), 0.07),
    "sprites": Kind(768, 0, (1.0,), 0.03),
}
PLAIN_SHARE = 0.06  # flat fills and smooth gradients: what skies and backdrops are


def reserved(key: str) -> bool:
    """Whether the picture is kept for measuring, with its variants (other light, pose or size).

    key: "<package>/<path below the folder that is walked>".
    """
    path = Path(key.split("/contents/")[0])
    name = re.split(r"[+_\d]", path.stem)[0].removesuffix("-l").removesuffix("-d").rstrip("-")
    return zlib.crc32(f"{path.parent}/{name}".encode()) % 6 == 0


def _files(folder: Path) -> list[Path]:
    found = [Path(base) / name for base, _, names in os.walk(folder) for name in names]
    return sorted(p for p in found if p.suffix in (".jpg", ".png", ".webp") and not p.is_symlink())


def sources(root: Path) -> Iterator[tuple[str, str, Path]]:
    """(kind, key, file) of every picture, reserved ones included. root: the folder with the unpacked packages."""
    for package, inner in WALLPAPERS.items():
        files = [p for p in _files(root / package / inner) if not any(word in str(p) for word in SKIPPED)]
        if package.startswith("plasma"):  # every wallpaper comes in several sizes
            widest = {}
            for path in files:
                width = Image.open(path).width
                widest[path.parent] = max(widest.get(path.parent, (0, path)), (width, path))
            files = [path for _, path in widest.values()]
        for path in files:
            key = f"{package}/{path.relative_to(root / package / inner)}"
            photo = any(word in key for word in PHOTOGRAPHS) and not any(word in key for word in NOT_PHOTOGRAPHS)
            yield ("photo" if photo else "drawn"), key, path
    folder = root / STAMPS[0] / STAMPS[1]
    for path in _files(folder):
        with Image.open(path) as picture:
            if min(picture.size) >= 150 and "cartoon" not in str(path) and "alphabets" not in str(path):
                yield "stamp", f"{STAMPS[0]}/{path.relative_to(folder)}", path
    folder = root / WESNOTH[0] / WESNOTH[1]
    for path in _files(folder):
        key = f"{WESNOTH[0]}/{path.relative_to(folder)}"
        if "l10n" in key:
            continue
        with Image.open(path) as picture:
            size = min(picture.size)
        if "portraits/" in key and size >= 200:
            yield "portrait", key, path
        elif any(word in key for word in ("/story/", "/maps/", "/map-specific/")) and size >= 300:
            yield "painting", key, path
        elif any(word in key for word in ("images/units/", "images/terrain/")) and 40 <= size <= 400:
            yield "sprites", key, path


def _backdrop(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A plain colour or a smooth gradient, RGBA. size: width, height in pixels."""
    corners = rng.integers(0, 256, (2, 2, 3)) if rng.random() < 0.5 else np.tile(rng.integers(0, 256, 3), (2, 2, 1))
    small = Image.fromarray(corners.astype(np.uint8), "RGB")
    return small.resize(size, Image.Resampling.BILINEAR).convert("RGBA")


def _read(path: Path, key: str, side: int) -> Image.Image:
    """RGB picture of at most `side` pixels; transparent parts over a backdrop that depends on the key alone."""
    picture = Image.open(path)
    if picture.mode in ("RGBA", "LA", "P"):
        picture = picture.convert("RGBA")
        backdrop = _backdrop(picture.size, np.random.default_rng(zlib.crc32(key.encode())))
        picture = Image.alpha_composite(backdrop, picture)
    picture = picture.convert("RGB")
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _sprite_sheet(files: list[Path], side: int, rng: np.random.Generator) -> Image.Image:
    """Game pieces strewn over a backdrop, as they are on screen: side×side pixels."""
    sheet = _backdrop((side, side), rng)
    for path in rng.choice(np.array(files, dtype=object), 350):
        piece = Image.open(path).convert("RGBA")
        sheet.alpha_composite(piece, tuple(int(v) for v in rng.integers(0, side - 60, 2)))
    return sheet.convert("RGB")


def build(root: Path, out: Path) -> None:
    """Write the data file: `index.json` (a list of {"name", "kind", "key"}) and the pictures, in a zip."""
    index, pieces, sizes = [], [], {}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:

        def add(picture: Image.Image, kind: str, key: str) -> None:
            name, buffer, quality = f"{len(index):04d}", io.BytesIO(), KINDS[kind].quality
            if quality:
                picture.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
            else:
                picture.save(buffer, "PNG", optimize=True)
            archive.writestr(name, buffer.getvalue())
            index.append({"name": name, "kind": kind, "key": key})
            sizes.setdefault(kind, []).append(len(buffer.getvalue()))

        for kind, key, path in sources(root):
            if reserved(key) or (kind == "portrait" and zlib.crc32(key.encode()) % 2):  # half of them are enough
                continue
            if kind == "sprites":
                pieces.append(path)
                continue
            add(_read(path, key, KINDS[kind].side), kind, key)
        for number in range(2):
            sheet = _sprite_sheet(pieces, KINDS["sprites"].side, np.random.default_rng(number))
            add(sheet, "sprites", f"sheet {number}")
        archive.writestr("index.json", json.dumps(index))
    for kind, found in sizes.items():
        print(f"{kind}: {len(found)} pictures, {sum(found) / 1e6:.1f} MB")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def load(path: Path, tile: int) -> list[tuple[str, np.ndarray]]:
    """Pictures of the data file at every scale of their kind that a tile fits into: (kind, 3×H×W uint8) each."""
    with zipfile.ZipFile(path) as archive:
        index = json.loads(archive.read("index.json"))
        data = [archive.read(entry["name"]) for entry in index]

    def unpack(entry: dict, encoded: bytes) -> list[tuple[str, np.ndarray]]:
        picture, out = Image.open(io.BytesIO(encoded)).convert("RGB"), []
        for scale in KINDS[entry["kind"]].scales:
            size = (round(picture.width * scale), round(picture.height * scale))
            if min(size) > tile:
                resized = picture if scale == 1 else picture.resize(size, Image.Resampling.LANCZOS)
                out.append((entry["kind"], np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))))
        return out

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return [item for items in pool.map(unpack, index, data) for item in items]


class TilesOnDevice:
    """Random augmented tiles, cut on the device that trains: N×3×tile×tile float32 in [-1, 1].

    path: the data file. Drawn with a generator of its own: deterministic for a seed and a kind of device.
    """

    def __init__(self, path: Path, tile: int, device: torch.device, seed: int):
        self.tile, self.device = tile, device
        self.generator = torch.Generator(device).manual_seed(seed)
        pictures = load(path, tile)
        sizes = [p.size for _, p in pictures]
        self.bytes = torch.from_numpy(np.concatenate([p.ravel() for _, p in pictures])).to(device)
        self.start = torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()], device=device)
        self.height = torch.tensor([p.shape[1] for _, p in pictures], device=device)
        self.width = torch.tensor([p.shape[2] for _, p in pictures], device=device)
        counts = {kind: sum(k == kind for k, _ in pictures) for kind in KINDS}
        weights = torch.tensor([KINDS[k].share / counts[k] for k, _ in pictures], dtype=torch.float64)
        # Where to look up a uniform number: finer than any weight, and the same on every device.
        self.choice = torch.multinomial(
            weights, 2**16, replacement=True, generator=torch.Generator().manual_seed(seed)
        ).to(device)

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def _cut(self, count: int) -> Tensor:
        """Tiles as they are, turned and mirrored: count×3×tile×tile, 0..255."""
        size, n = self.tile, (count, 1, 1, 1)
        which = self.choice[(self._uniform(count) * len(self.choice)).long()]
        height, width, start = (v[which].view(n) for v in (self.height, self.width, self.start))
        top = (self._uniform(*n) * (height - size + 1)).long()
        left = (self._uniform(*n) * (width - size + 1)).long()
        line = torch.arange(size, device=self.device)
        forth, back = line.view(1, 1, size, 1), line.flip(0).view(1, 1, size, 1)
        down = torch.where(self._uniform(*n) < 0.5, forth, back)  # count×1×size×1
        along = torch.where(self._uniform(*n) < 0.5, forth, back)
        turned = self._uniform(*n) < 0.5
        y = torch.where(turned, along.transpose(2, 3), down)  # count×1×size×size
        x = torch.where(turned, down, along.transpose(2, 3))
        channel = torch.arange(3, device=self.device).view(1, 3, 1, 1)
        swapped = self._uniform(count, 3).argsort(1).view(count, 3, 1, 1)
        channel = torch.where(self._uniform(*n) < 0.2, swapped, channel)
        return self.bytes[start + (channel * height + top + y) * width + left + x].float()

    def _plain(self, count: int) -> Tensor:
        """Flat fills and bilinear gradients in whole levels, half of them flat: count×3×tile×tile, 0..255."""
        colour = self._uniform(count, 3, 1, 1, high=255)
        slope = self._uniform(count, 3, 2, 2, low=-30, high=30) * (self._uniform(count, 1, 1, 1) < 0.5)
        corners = colour + slope * self._uniform(count, 1, 1, 1)
        size = (self.tile, self.tile)
        return torch.nn.functional.interpolate(corners, size, mode="bilinear", align_corners=True).round().clamp(0, 255)

    def batch(self, count: int) -> Tensor:
        """count×3×tile×tile in [-1, 1]: flips, turns, swapped channels, exposure, white balance, saturation."""
        n = (count, 1, 1, 1)
        tiles = torch.where(self._uniform(*n) < PLAIN_SHARE, self._plain(count), self._cut(count)) / 127.5 - 1
        grey = tiles.mean(1, keepdim=True)
        changed = grey + (tiles - grey) * self._uniform(*n, low=0.0, high=1.4)
        changed = changed * self._uniform(*n, low=0.6, high=1.15)
        normal = torch.randn(count, 4, 1, 1, generator=self.generator, device=self.device)
        changed = changed + 0.12 * normal[:, :1] + 0.05 * normal[:, 1:]
        return torch.where(self._uniform(*n) < 0.4, changed, tiles).clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder with the unpacked packages")
    parser.add_argument("out", type=Path, nargs="?", default=Path("judge_data.zip"))
    parser.add_argument("--list", action="store_true", help="only name the pictures that are kept for measuring")
    args = parser.parse_args()
    if args.list:
        for kind, key, _ in sources(args.root):
            if kind != "sprites" and reserved(key):
                print(f"{kind}: {key}")
    else:
        build(args.root, args.out)


if __name__ == "__main__":
    main()
