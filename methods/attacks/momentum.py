"""Momentum over the steps of an attack: MI-FGSM (Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018).

g_(t+1) = mu * g_t + gradient / |gradient|_1,   the step goes along sign(g_(t+1))
"""

from __future__ import annotations

from torch import Tensor


class Momentum:
    """A `precondition` for one run of `pgd`, which it remembers the gradients of; make a new one for each.

    decay: mu, 1 in the paper. The norm is the mean over a picture's values, which scales all steps alike.
    """

    def __init__(self, decay: float = 1.0):
        self.decay = decay
        self.velocity: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        """B×3×H×W to the same: every picture's own sum."""
        normal = gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-30)
        self.velocity = normal if self.velocity is None else self.decay * self.velocity + normal
        return self.velocity
