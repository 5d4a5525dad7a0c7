"""LPIPS (Zhang et al., CVPR 2018), version 0.1, over AlexNet: torchvision's weights from a local file.

The linear heads are the authors' and bundled (BSD-2-Clause, `bundled/LICENSE.lpips`). Nothing is downloaded.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AntiPureError
from ..files import BUNDLED_FOLDER, read_safetensors

SMALLEST = 32  # pixels: below it AlexNet's last pooling has nothing left
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TAPS = (1, 4, 7, 9, 11)  # the layers of `features` after which LPIPS looks: every ReLU


class AlexNet(nn.Module):
    """torchvision's AlexNet up to its last convolution, under torchvision's names."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )

    def stages(self, x: Tensor) -> list[Tensor]:
        """The five activations LPIPS compares. x: B×3×H×W, normalised."""
        found = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _TAPS:
                found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Mean over positions of the last convolution: B×256."""
        return self.stages(x)[-1].mean((2, 3))


def linear_heads() -> list[Tensor]:
    """LPIPS' weights per channel and stage for AlexNet, 1×C×1×1 each."""
    state, _ = read_safetensors(BUNDLED_FOLDER / "lpips_alexnet.safetensors")
    return [state[f"lin{stage}"] for stage in range(len(_TAPS))]


class Lpips:
    """lpips(first, second): B distances between pictures B×3×H×W in 0..1; 0 for equal ones. Differentiable.

    backbone: an `AlexNet` with weights. `name` says what was measured with.
    """

    def __init__(self, backbone: AlexNet, name: str = "LPIPS (AlexNet)"):
        self.backbone = backbone.eval().requires_grad_(False)
        self.name = name
        self.heads = linear_heads()

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        if first.shape != second.shape:
            raise AntiPureError("LPIPS compares pictures of equal size; resize one set to the other's size.")
        if min(first.shape[-2:]) < SMALLEST:
            raise AntiPureError(f"LPIPS needs pictures of at least {SMALLEST}×{SMALLEST} pixels.")
        a, b = self._stages(first), self._stages(second)
        pairs = zip(a, b, self.heads, strict=True)
        terms = [((x - y).square() * head.to(x)).sum(1).mean((1, 2)) for x, y, head in pairs]
        return sum(terms[1:], start=terms[0])

    def _stages(self, picture: Tensor) -> list[Tensor]:
        weight = next(self.backbone.parameters())
        shift, scale = (weight.new_tensor(v).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
        return [
            F.normalize(x, dim=1, eps=1e-8) for x in self.backbone.stages((picture.to(weight) * 2 - 1 - shift) / scale)
        ]
