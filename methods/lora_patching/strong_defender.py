"""A defender who gives a patch no presents: Disrupting with all that usually makes an attack stronger.

Fifty steps with momentum (`attacks.momentum`), twice the budget (eps 0.1 on [-1, 1]), the original *and* the patched
network attacked at once, and every other step through a JPEG of random quality (expectation over transformation,
Athalye et al., ICML 2018), so that recompression is no way out. What a patch is worth is what is left against this one,
not against the attack that it was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..attacks.loss import FunctionLoss, Loss
from ..attacks.momentum import Momentum
from ..attacks.pgd import pgd
from ..attacks.settings import AttackSettings
from ..errors import AntiPureError
from ..generators.generator import Generator
from ..pictures import check_shape, to_picture, to_pixels
from ..purification.saving import jpeg
from .disrupting import LEVELS

STRONG_STEPS = 50
STRONG_LEVELS = 2 * LEVELS  # eps 0.1 on [-1, 1]
QUALITIES = (50, 95)  # of the JPEGs it reckons with
FLOOR = 1e-6  # of an output's mean squared change, so that the logarithm begins somewhere


def strong_loss(edits: Sequence[Callable[[Tensor], Tensor]], clean: Tensor) -> Loss:
    """sum_n log E_J MSE(G_n(J(x_adv)), G_n(x)) over networks G_n, J the identity or a JPEG, one draw a step.

    The logarithm keeps the network that breaks more easily from outshouting the other. edits: the same edit by each
    network, pixels B×3×H×W in [-1, 1] to the same. clean: the pixels before the attack.
    """
    with torch.no_grad():
        undisturbed = [edit(clean) for edit in edits]

    def terms(pixels: Tensor, stream: torch.Generator) -> Iterator[Tensor]:
        saved = bool(torch.rand((), generator=stream) < 0.5)
        quality = int(torch.randint(QUALITIES[0], QUALITIES[1] + 1, (), generator=stream))
        for edit, target in zip(edits, undisturbed, strict=True):
            # Anew for each network: a term's graph is gone when the next one is asked for.
            seen = to_pixels(jpeg(to_picture(pixels), quality)) if saved else pixels
            yield (FLOOR + (edit(seen) - target).square().flatten(1).mean(1)).log().sum()

    return FunctionLoss(terms)


def strong_disrupt(
    networks: Sequence[Generator],
    picture: Tensor,
    edit: str,
    *,
    levels: float = STRONG_LEVELS,
    steps: int = STRONG_STEPS,
    seed: int = 0,
) -> Tensor:
    """The perturbation of a strong defender against one edit by all of `networks` at once.

    networks: the original generator and, where the patch is known, a patched copy. picture: B×3×H×W in 0..1 at the
    generators' size. levels: budget in 8-bit levels. Returns 8-bit pictures, B×3×H×W in 0..1, within the budget.
    Raises `AntiPureError` for no networks, bad pictures, budgets or edits.
    """
    check_shape(picture)
    if not networks:
        raise AntiPureError("A defender needs a network to attack; give the original, or the original and a patched.")
    for network in networks:
        network.check(picture, edit)
    return pgd(
        picture,
        partial(strong_loss, [partial(network.edit, edit=edit) for network in networks]),
        AttackSettings(levels=levels, steps=steps, seeds=seed),
        step_levels=levels / 5,
        decay=True,
        precondition=Momentum(),
        random_start=True,
        together=True,
    )
