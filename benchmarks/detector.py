"""A small network that tells protected pictures from others, and how well it does: the first step of LightShed.

LightShed (Foerster et al., USENIX Security 2025) first detects that a picture is protected, then removes what it
found. The network here is the small one that anybody can train who runs the public protections on pictures of
their own; what it scores on other pictures says how easily a protection is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from antipure.methods.pictures import random_stream
from scipy.stats import rankdata
from torch import Tensor, nn

GAIN = 8.0  # of what is finer than 3 px: perturbations are a few levels


class Detector(nn.Module):
    """B×3×H×W in 0..1 to B scores, higher: protected. H, W at least 16.

    It sees the picture and, enlarged, its difference from a 3×3 mean; mean and deviation of the last features over
    the picture decide, so that stripes in one place count.
    """

    def __init__(self, width: int = 24):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(inside, outside, 3, stride=stride, padding=1)
            for inside, outside, stride in ((6, width, 1), (width, width, 2), (width, width, 1), (width, width, 2))
        )
        self.out = nn.Linear(2 * width, 1)

    def forward(self, picture: Tensor) -> Tensor:
        fine = picture - F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="reflect"), 3, 1)
        x = torch.cat([2 * picture - 1, GAIN * fine], 1)
        for layer in self.layers:
            x = F.relu(layer(x))
        x = x.flatten(2)
        return self.out(torch.cat([x.mean(2), x.std(2, correction=0)], 1))[:, 0]


def train_detector(
    others: Mapping[str, Tensor],
    protected: Mapping[str, Tensor],
    *,
    steps: int = 600,
    batch: int = 16,
    side: int = 48,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Detector:
    """A detector trained to score `protected` above `others`.

    others, protected: by kind, N×3×H×W in 0..1 each, window i being the same everywhere. Every step takes `batch`
    windows, each as one of both sides at the same mirrored and turned crop of side×side, so that nothing but the
    change tells them apart. Same seed, machine and thread count: same bits.
    """
    everything = [*others.values(), *protected.values()]
    count, _, height, width = everything[0].shape
    if any(x.shape != everything[0].shape for x in everything):
        raise ValueError("give the same windows of every kind")
    side = min(side, height, width)
    generator = random_stream(seed, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector()
    optimizer = torch.optim.AdamW(detector.parameters(), learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def draw(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    sides = [list(others.values()), list(protected.values())]
    target = torch.tensor([0.0, 1.0]).repeat(batch)
    for _ in range(steps):
        crops = []
        for _ in range(batch):
            i, top, left, turns, mirrored = (draw(n) for n in (count, height - side + 1, width - side + 1, 4, 2))
            for kinds in sides:
                crop = kinds[draw(len(kinds))][i, :, top : top + side, left : left + side].rot90(turns, (-2, -1))
                crops.append(crop.flip(-1) if mirrored else crop)
        loss = F.binary_cross_entropy_with_logits(detector(torch.stack(crops)), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return detector.eval().requires_grad_(False)


@torch.no_grad()
def scores(detector: Detector, pictures: Tensor) -> np.ndarray:
    """One score for each of B×3×H×W pictures."""
    return torch.cat([detector(part) for part in pictures.split(16)]).double().numpy()


def auc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half. 0.5: chance."""
    n, m = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))  # equal values share their mean rank
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def bootstrap_auc(
    positive: np.ndarray,
    negative: np.ndarray,
    pictures: Sequence[str],
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """`auc`, and its percentile interval over pictures drawn with replacement.

    positive: N scores. negative: N scores, or K×N of K kinds. pictures: of which each of the N windows is.
    """
    negative = np.atleast_2d(negative)
    names = list(dict.fromkeys(pictures))
    windows = [np.flatnonzero(np.asarray(pictures) == name) for name in names]
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = np.concatenate([windows[i] for i in generator.integers(len(names), size=len(names))])
        found.append(auc(positive[drawn], negative[:, drawn].ravel()))
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return auc(positive, negative.ravel()), float(low), float(high)
