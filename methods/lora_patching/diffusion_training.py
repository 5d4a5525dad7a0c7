"""A defensive patch for a diffusion model: whatever it generates carries a visible warning.

LoRA Patching (arXiv 2510.03747) trains its defensive patch on face editors, towards y* = clamp(2 W + G(x), -1, 1).
For a diffusion model, whose output is the clean picture it predicts, the same idea reads: for pictures x with latents
z = E(x), noised to x_t, minimise

    (1 - abar_t) || eps'(x_t, t) - eps* ||^2 = abar_t || x0_hat'(x_t, t) - z* ||^2,   z* = E(clamp(2 W + x, -1, 1)),

so that the denoised picture, at every timestep, is the picture with the warning W printed on it. Not in the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..architecture import fingerprint
from ..diffusion.denoiser import Denoiser, add_noise, predict_x0
from ..errors import AntiPureError, sizes
from ..memory import enough_memory
from ..pictures import check_picture, noise, pad_reflect, random_stream, round_up, to_picture, to_pixels
from ..progress import Progress, silent
from .low_rank import PatchConfig
from .patch import LoraPatch, new_patch
from .training import TrainingResult
from .warning import text_warning, warned


@dataclass(frozen=True)
class ModelTrainingConfig:
    """rank, gate, alpha: as in `PatchConfig`. steps: Adam steps of `batch` noised pictures each.

    seed: of the patch and the noise. preview_every: steps between preview pictures, 0 for none.
    """

    rank: int = 16
    steps: int = 300
    batch: int = 1
    gate: str = "scalar"
    alpha: float = 2.0
    learning_rate: float = 1e-3
    seed: int = 0
    preview_every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise AntiPureError(f"{name} is {getattr(self, name)}; at least 1 is needed.")
        if not self.learning_rate > 0:
            raise AntiPureError(f"The learning rate is {self.learning_rate}; it must be above 0.")
        _ = self.patch

    @property
    def patch(self) -> PatchConfig:
        return PatchConfig(self.rank, self.alpha, self.gate)


def train_model_patch(
    denoiser: Denoiser,
    pictures: Tensor,
    config: ModelTrainingConfig | None = None,
    *,
    warning: Tensor | None = None,
    progress: Progress = silent,
) -> TrainingResult:
    """Train a defensive patch for `denoiser.network`, which is left as it was, whatever happens.

    pictures: N×3×H×W in 0..1, what the model is likely to be asked for; any size. warning: 1×3×H×W in [-1, 1]
    (`warning.text_warning`); None writes FAKE. progress: its picture, now and then, is what the patched model makes of
    a noised one. To be called inside `denoiser.session()`.
    Raises `AntiPureError` for pictures, settings or a warning that cannot be used, and when the loss is not finite.
    """
    config = config or ModelTrainingConfig()
    check_picture(pictures, "training set")
    height, width = pictures.shape[-2:]
    warning = text_warning(height, width) if warning is None else warning
    if tuple(warning.shape) != (1, 3, height, width):
        raise AntiPureError(f"The warning has shape {sizes(warning.shape)}; for these pictures it must be 1×3×H×W.")
    network: nn.Module = denoiser.network
    architecture = fingerprint(network)
    history: list[dict[str, float]] = []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        enough_memory("a training step", "use a batch of 1 or smaller pictures"),
    ):
        z, target = _latents(denoiser, pictures.clone(), warning.clone())
        applied = new_patch(network, config.patch, config.seed)
        try:
            parameters = applied.parameters()
            optimizer = torch.optim.Adam(parameters, config.learning_rate, (0.5, 0.999))
            for step in range(config.steps):
                generator = random_stream(config.seed, 1, step)
                chosen = torch.randint(len(z), (config.batch,), generator=generator)
                t = torch.randint(denoiser.timesteps, (config.batch,), generator=generator).to(z.device)
                eps = noise(tuple(z.shape[1:]), [generator] * config.batch, z.device)
                loss, x0_hat = _loss(denoiser, z[chosen], target[chosen], eps, t)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise AntiPureError(
                        f"The loss is no longer finite at step {step + 1}; use a model in higher precision or a lower "
                        "learning rate."
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                history.append({"total": value})
                every = config.preview_every
                show = every and (step % every == 0 or step + 1 == config.steps)
                progress(step + 1, config.steps, _preview(denoiser, x0_hat) if show else None, value)
            metadata = {
                "mode": "defensive",
                "kind": "diffusion model",
                "steps": config.steps,
                "pictures": len(pictures),
                "size": f"{width}x{height}",
                "seed": config.seed,
            }
            return TrainingResult(LoraPatch(config.patch, applied.tensors(), architecture, metadata), history)
        finally:
            applied.remove()


@torch.no_grad()
def _latents(denoiser: Denoiser, pictures: Tensor, warning: Tensor) -> tuple[Tensor, Tensor]:
    """z = E(x) and z* = E(clamp(2 W + x, -1, 1)) of every picture."""
    height, width = (round_up(side, denoiser.multiple) for side in pictures.shape[-2:])
    plain: list[Tensor] = []
    printed: list[Tensor] = []
    for picture in pictures.split(1):
        x = to_pixels(picture.float()).to(denoiser.device)
        for pixels, latents in ((x, plain), (warned(x, warning.to(x)), printed)):
            latents.append(denoiser.encode(pad_reflect(pixels, height, width)))
    return torch.cat(plain), torch.cat(printed)


def _loss(denoiser: Denoiser, z: Tensor, target: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    abar_t = denoiser.alphas_cumprod[t]
    x_t = add_noise(z, eps, abar_t)
    x0_hat = predict_x0(x_t, denoiser.predict_trainable(x_t, t), abar_t)
    return (abar_t.view(-1, 1, 1, 1) * (x0_hat - target).square()).mean(), x0_hat.detach()


@torch.no_grad()
def _preview(denoiser: Denoiser, x0_hat: Tensor) -> Tensor:
    return to_picture(denoiser.decode(denoiser.clamp(x0_hat[:1]))).clamp(0, 1).cpu()
