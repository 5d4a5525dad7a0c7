"""The identity judge of the demo model: ISM and FDFR for drawn portraits, without a face recogniser of photographs.

    judge = load_judge()
    scores = ism(samples, subject, impostors, judge)     # .ism, .impostor, .d_prime
    share = fdfr(samples, judge)

A small encoder of ours, trained on the portraits of `tools/portraits.py` (`tools/train_portrait_judge.py`; persons from
1,000,000 on were never drawn for it), stands in for the two networks of Anti-DreamBooth (Van Le et al., ICCV 2023,
section 5.1): ArcFace (Deng et al., CVPR 2019), whose cosine to the mean embedding of the subject's clean pictures is
their ISM, and RetinaFace, whose share of pictures without a face is their FDFR. It knows drawn portraits at 128×128
and what the demo model makes of them, and says nothing of photographs. Error rates: bundled/README.md.

Pictures are N×3×H×W in 0..1, of any size; they are rounded to 8 bits, as they would be saved, and reduced or enlarged
to the judge's own side. Embeddings are unit vectors: a cosine is a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import fill
from ..errors import AntiPureError
from ..files import BUNDLED_FOLDER, read_safetensors
from ..pictures import check_picture, round_8bit
from .faces import Face

BUNDLED = BUNDLED_FOLDER / "demo" / "judge.safetensors"
NAME = "bundled portrait judge"
SIDE = 80  # pixels it looks at
DIMENSIONS = 96
THRESHOLD = 0.5  # of the probability that a picture shows a portrait
WIDTHS = (32, 64, 96, 128)
_GRID = 3  # features are pooled to 3×3 places, because where a feature lies tells a hat from a beard
_TOGETHER = 64  # pictures in the network at a time


class Block(nn.Module):
    """Two 3×3 convolutions beside a skip (He et al., CVPR 2016), the first with a stride of 2."""

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, 2, 1), norm(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1), norm(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.skip(F.avg_pool2d(x, 2)))


class JudgeNetwork(nn.Module):
    """Pictures N×3×SIDE×SIDE in 0..1 to features N×DIMENSIONS (not normalised) and portrait logits N.

    norm: what stands after a convolution while it is trained; the file holds it folded into the convolutions.
    """

    def __init__(self, norm: Callable[[int], nn.Module] = lambda _: nn.Identity()):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, WIDTHS[0], 5, 2, 2), norm(WIDTHS[0])
        self.blocks = nn.Sequential(*(Block(a, b, norm) for a, b in zip(WIDTHS, WIDTHS[1:], strict=False)))
        self.identity = nn.Linear(WIDTHS[-1] * _GRID**2, DIMENSIONS)
        self.portrait = nn.Linear(WIDTHS[-1] * _GRID**2, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(F.relu(self.norm(self.stem(pictures * 2 - 1))))
        x = F.adaptive_avg_pool2d(x, _GRID).flatten(1)
        return self.identity(x), self.portrait(x)[:, 0]


class PortraitJudge:
    """The two answers of a `JudgeNetwork`. It also serves `faces.face_scores` in place of `FaceModels`."""

    name = NAME

    def __init__(self, network: JudgeNetwork):
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def look(self, pictures: Tensor, name: str = "pictures") -> tuple[Tensor, Tensor]:
        """Unit embeddings N×DIMENSIONS and probabilities N that a picture shows a portrait, on the judge's device.

        Raises `AntiPureError`, with `name` in it, for what are no pictures (`pictures.check_picture`).
        """
        check_picture(pictures, name)
        device = self.network.stem.weight.device
        features, logits = zip(
            *(self.network(sized(part.to(device))) for part in pictures.split(_TOGETHER)), strict=True
        )
        return F.normalize(torch.cat(features), dim=1), torch.cat(logits).sigmoid()

    def embed_all(self, pictures: Tensor, name: str = "pictures") -> Tensor:
        """Unit embeddings, N×DIMENSIONS."""
        return self.look(pictures, name)[0]

    def portrait_probability(self, pictures: Tensor, name: str = "pictures") -> Tensor:
        """N probabilities, 0..1."""
        return self.look(pictures, name)[1]

    def detect(self, picture: Tensor, threshold: float = THRESHOLD) -> list[Face]:
        """The whole of one picture (1×3×H×W) as the one face in it, or none; as `FaceModels.detect`. No landmarks."""
        score = float(self.portrait_probability(picture)[0])
        height, width = picture.shape[-2:]
        box = torch.tensor([0.0, 0.0, width, height])
        return [Face(box, torch.full((5, 2), math.nan), score)] if score >= threshold else []

    def embed(self, picture: Tensor, face: Face) -> Tensor:  # noqa: ARG002
        """The embedding of one picture, DIMENSIONS values; as `FaceModels.embed`."""
        return self.embed_all(picture)[0]


def sized(pictures: Tensor) -> Tensor:
    """Pictures of any size as the judge sees them: of 8 bits, N×3×SIDE×SIDE."""
    pictures = round_8bit(pictures)
    if pictures.shape[-2:] == (SIDE, SIDE):
        return pictures
    return F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)


def read_judge(path: Path = BUNDLED) -> PortraitJudge:
    """The judge in a file. Raises `AntiPureError` where it is missing or holds another network."""
    if not path.is_file():
        raise AntiPureError(f"{path} is missing; install the pack again: nothing is downloaded in its place.")
    state, _ = read_safetensors(path)
    with torch.inference_mode(False):
        with torch.device("meta"):
            network = JudgeNetwork()
        try:
            fill(network, state)
        except AntiPureError as error:
            raise AntiPureError(f"{path} holds no portrait judge. {error} Install the pack again.") from error
    return PortraitJudge(network)


@cache
def load_judge() -> PortraitJudge:
    """The bundled judge, read once, on the CPU."""
    return read_judge()


@dataclass(frozen=True)
class IdentityScores:
    """How near samples come to a person, and how near they come to others.

    ism: mean cosine to the subject's mean embedding, -1..1. impostor: mean cosine of the same samples to the mean
    embeddings of other persons. d_prime: how far apart these two stand, see `d_prime`. All over samples that show a
    portrait: NaN where none does, d_prime also where there are fewer than two.
    similarities: one cosine per sample, NaN where it shows no portrait. impostors: samples×persons, the same.
    """

    ism: float
    impostor: float
    d_prime: float
    similarities: list[float]
    impostors: list[list[float]]


def ism(
    samples: Tensor,
    subject: Tensor,
    impostors: Sequence[Tensor] | Tensor,
    judge: PortraitJudge | None = None,
    *,
    threshold: float = THRESHOLD,
) -> IdentityScores:
    """Identity score matching of samples N×3×H×W with the person on `subject`, M×3×H×W, and with other persons.

    subject: clean pictures, of which those without a portrait are left out; their mean embedding is the reference.
    impostors: for each other person pictures K×3×H×W (a list, or persons×K×3×H×W), whose means are references, too.
    threshold: probability from which a sample counts as a portrait; 0 lets all of them in.
    judge: none, the bundled one.
    Raises `AntiPureError` for what are no pictures, no impostors, and persons without a single portrait.
    """
    judge = judge or load_judge()
    _check_threshold(threshold)
    if len(impostors) == 0:
        raise AntiPureError("There are no impostors; give pictures of at least one other person.")
    embeddings, seen = judge.look(samples, "samples")
    references = [_reference(judge, subject, "subject", threshold)]
    references += [_reference(judge, one, f"impostor {i + 1}", threshold) for i, one in enumerate(impostors)]
    cosines = embeddings @ torch.stack(references, 1)
    shown = cosines[seen >= threshold].double()
    cosines = cosines.masked_fill((seen < threshold)[:, None], math.nan)
    genuine, other = shown[:, 0], shown[:, 1:]
    return IdentityScores(
        float(genuine.mean()) if len(shown) else math.nan,
        float(other.mean()) if len(shown) else math.nan,
        d_prime(genuine, other) if len(shown) > 1 else math.nan,
        cosines[:, 0].tolist(),
        cosines[:, 1:].tolist(),
    )


def fdfr(samples: Tensor, judge: PortraitJudge | None = None, *, threshold: float = THRESHOLD) -> float:
    """Face detection failure rate: the share of samples N×3×H×W that show no portrait, 0..1.

    Raises `AntiPureError` for what are no pictures.
    """
    _check_threshold(threshold)
    seen = (judge or load_judge()).portrait_probability(samples, "samples")
    return float((seen < threshold).double().mean())


def d_prime(genuine: Tensor, impostor: Tensor) -> float:
    """Sensitivity index: difference of means over the pooled standard deviation, sqrt((s1² + s2²) / 2).

    genuine, impostor: values of any shapes, at least two each. Green and Swets, Signal Detection Theory (1966); used
    for identity scores by Daugman (IEEE Trans. Circuits Syst. Video Technol. 14, 2004). Infinite where nothing varies,
    and NaN where the means are equal besides. Raises `AntiPureError` for fewer values.
    """
    if genuine.numel() < 2 or impostor.numel() < 2:
        raise AntiPureError("d' needs at least two values of each kind; draw more samples or give more impostors.")
    spread = ((genuine.double().var() + impostor.double().var()) / 2).sqrt()
    gap = genuine.double().mean() - impostor.double().mean()
    return float(gap / spread)


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise AntiPureError(f"A threshold of {threshold:g} is no probability; give one in 0..1.")


def _reference(judge: PortraitJudge, pictures: Tensor, name: str, threshold: float) -> Tensor:
    """The unit mean embedding of a person's pictures that show a portrait."""
    embeddings, seen = judge.look(pictures, name)
    if not (seen >= threshold).any():
        raise AntiPureError(f"No picture of the {name} shows a portrait the judge knows; give drawn portraits.")
    return F.normalize(embeddings[seen >= threshold].mean(0), dim=0)
