"""IMPRESS (Cao, Li, Wang, Jia, Li, Chen, NeurIPS 2023): what a VAE gives back unchanged carries no protection.

Minimises, over a picture x that begins as the protected one,

    mean (D(E(x)) - x)²

by Adam, its learning rate falling along half a cosine to 1e-5. E is the latent's mean. The paper starts from noise
added to the picture and keeps x near it by a hinge on LPIPS (VGG). Ours: no noise at the start, and instead of LPIPS,
whose weights nobody has at hand, x stays within `BOUND` levels of where it began, in every pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.autoencoder import Autoencoder
from ..errors import AntiPureError
from ..pictures import check_picture, pad_reflect, round_8bit, round_up, to_picture, to_pixels
from ..progress import Progress, silent
from .settings import nan_if_infinite

LEARNING_RATE, LAST_RATE, ADAM_EPS = 1e-3, 1e-5, 1e-5  # of pixels in [-1, 1], as in the authors' code
BOUND = 16 / 127.5  # 16 levels


def impress(picture: Tensor, autoencoder: Autoencoder, *, steps: int = 100, progress: Progress = silent) -> Tensor:
    """`steps` steps of Adam towards a picture that the autoencoder gives back unchanged.

    picture: B×3×H×W in 0..1, any size (mirrored up to the VAE's multiple). Returns the same shape, 8-bit rounded,
    nowhere more than 16 levels away. Inside the autoencoder's session. Raises `AntiPureError` for bad pictures.
    """
    check_picture(picture)
    if steps < 1:
        raise AntiPureError(f"IMPRESS is to run {steps} steps; at least 1 is needed.")
    h, w = picture.shape[-2:]
    results = []
    with torch.inference_mode(False), torch.enable_grad():
        for i, single in enumerate(picture.detach().float().split(1)):
            start = to_pixels(single).clone()
            start = pad_reflect(start, round_up(h, autoencoder.multiple), round_up(w, autoencoder.multiple))
            low, high = (start - BOUND).clamp(min=-1), (start + BOUND).clamp(max=1)
            x = start.clone().requires_grad_()
            adam = torch.optim.Adam([x], lr=LEARNING_RATE, eps=ADAM_EPS)
            rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=LAST_RATE)
            for step in range(steps):
                loss = (autoencoder.decode(autoencoder.encode(x)) - x).square().mean()
                (x.grad,) = torch.autograd.grad(loss, x)
                adam.step()
                rate.step()
                with torch.no_grad():
                    x.copy_(x.clamp(low, high))
                progress(i * steps + step + 1, len(picture) * steps)
            pixels = nan_if_infinite(x.detach(), x.detach())
            results.append(round_8bit(to_picture(pixels[..., :h, :w])))
    return torch.cat(results)
