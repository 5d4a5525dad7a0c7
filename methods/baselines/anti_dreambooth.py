"""Anti-DreamBooth (Van Le et al., ICCV 2023, arXiv 2303.15433): L_ddpm against a model fine-tuned on the subject.

FSMG maximises L_ddpm against a fixed surrogate. The surrogate is the denoiser as given: fine-tune it first (a LoRA
loader before Denoiser from Model); without that, FSMG is AdvDM with another budget.
ASPL fine-tunes its surrogate in turn with the perturbation; `surrogate` has the loop and how it differs.

Budget: the released 0.05 of the [-1, 1] range, 6.375 levels, in steps of 0.005 (0.64 levels) that do not decay;
ASPL 50 rounds of 6 steps. FSMG's 100 steps are our choice.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

from ..attacks.loss import MakeLoss
from ..diffusion.denoiser import Denoiser
from .advdm import advdm_loss
from .surrogate import alternating

LEVELS, STEP_LEVELS = 6.375, 0.6375
FSMG_STEPS, ASPL_STEPS = 100, 300

fsmg_loss = advdm_loss


def aspl(denoiser: Denoiser) -> AbstractContextManager[MakeLoss]:
    """`make_loss` for `attacks.pgd`, for as long as the block lasts; the network is as it was afterwards.

    Raises `AntiPureError` for a denoiser that does not show its network, or whose network carries a patch.
    """
    return alternating(denoiser, partial(advdm_loss, denoiser), "Anti-DreamBooth ASPL")
