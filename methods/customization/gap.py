"""What a customization was worth: the customization gap, and how its samples differ from the clean subject.

The gap (of this project: samples of a small model are noisy judges) is the denoising loss on *clean* crops of
the subject, the crops, timesteps and noise being the same for every version, less that of the model customized on the
clean pictures. 0: as good as learning from the clean pictures. Above the base model's: worse than not customizing.
At low timesteps it tells what was learned of fine structure, at higher ones of coarse structure (`PROBE_RANGES`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.loss import noised_loss
from ..errors import AntiPureError
from ..metrics.distribution import extract, kernel_distance
from ..metrics.image import radial_spectrum
from ..metrics.sliced_wasserstein import patch_distance
from ..pictures import check_picture, random_stream, to_picture, to_pixels
from .dreambooth_lora import prepared, random_crop

# Timesteps of the probes by the name of their figure: the first is `make_probe`'s own.
PROBE_RANGES = {"loss_20_100": (20, 100), "loss_100_400": (100, 400)}


@dataclass(frozen=True)
class Probe:
    """Clean crops with fixed timesteps and noise. crops: N×3×T×T in [-1, 1]; t: N; stream: seed of the noise."""

    crops: Tensor
    t: Tensor
    stream: int

    @property
    def pictures(self) -> Tensor:
        """The crops in 0..1."""
        return to_picture(self.crops)


def make_probe(
    denoiser: Denoiser,
    pictures: Tensor,
    *,
    count: int = 128,
    low: int = 20,
    high: int = 100,
    resize: bool = False,
    seed: int = 0,
) -> Probe:
    """`count` unmirrored random crops of B×3×H×W clean pictures (0..1), timesteps evenly spread over low..high-1.

    low, high: 0-based timesteps. resize: as in `CustomizationSettings`.
    Raises `AntiPureError` for bad pictures and ranges.
    """
    check_picture(pictures)
    if not 0 <= low < high <= denoiser.timesteps or count < 1:
        raise AntiPureError(
            f"{count} crops at timesteps {low}..{high}: at least 1 crop is needed, and 0 <= low < high <= "
            f"{denoiser.timesteps}."
        )
    source, tile = prepared(denoiser, to_pixels(pictures.detach().float()), resize)
    crops = [random_crop(source, tile, random_stream(seed, 2, i), mirrored=False) for i in range(count)]
    t = low + torch.arange(count) * (high - low) // count
    return Probe(torch.cat(crops), t, seed)


@torch.no_grad()
def probe_loss(denoiser: Denoiser, probe: Probe) -> float:
    """L_ddpm (mean square error of the predicted noise) on the probe, as the denoiser is now, customized or not."""
    values = []
    for part in denoiser.batching.batches(len(probe.crops), *probe.crops.shape[-2:]):
        z = denoiser.encode(probe.crops[part].to(denoiser.device))
        t = probe.t[part].to(denoiser.device)
        streams = [random_stream(probe.stream, 3, i) for i in range(part.start, part.stop)]
        values.append(noised_loss(denoiser, z, t, streams))
    return float(torch.cat(values).double().mean())


def make_probes(
    denoiser: Denoiser, pictures: Tensor, *, count: int = 128, resize: bool = False, seed: int = 0
) -> dict[str, Probe]:
    """A probe for each of `PROBE_RANGES`, of the same crops and noise. Arguments and errors as `make_probe`."""
    return {
        name: make_probe(denoiser, pictures, count=count, low=low, high=high, resize=resize, seed=seed)
        for name, (low, high) in PROBE_RANGES.items()
    }


def probe_losses(denoiser: Denoiser, probes: dict[str, Probe]) -> dict[str, float]:
    """`probe_loss` of every probe, by its name."""
    return {name: probe_loss(denoiser, probe) for name, probe in probes.items()}


def customization_gap(loss: float, loss_of_clean: float) -> float:
    """`probe_loss` after customizing on a version, less that after customizing on the clean pictures (same seed)."""
    return loss - loss_of_clean


def spectral_distance(samples: Tensor, clean: Tensor) -> float:
    """Mean absolute difference of two sets' mean radial power spectra, in dB.

    samples, clean: B×3×H×W in 0..1, of equal size; the constant is left out.
    """
    if samples.shape[-2:] != clean.shape[-2:]:
        raise AntiPureError("Spectra are compared between pictures of one size; give samples as large as the crops.")
    bins = max(1, min(samples.shape[-2:]) // 2)
    spectra = [10 * radial_spectrum(x, bins)[:, 1:].mean(0).clamp(min=1e-12).log10() for x in (samples, clean)]
    return float((spectra[0] - spectra[1]).abs().mean())


def judge_samples(
    samples: Tensor, clean: Tensor, encoder: Callable[[Tensor], Tensor], *, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """How samples differ from clean crops (both B×3×H×W in 0..1, one size, at least 2 each).

    swd: sliced Wasserstein distance of 8-px patches. kid: in the encoder's feature space (name it beside the figure;
    the encoder must be the same for all versions: the *base* denoiser's, not the customized one's).
    spectrum: `spectral_distance` in dB.
    """
    kid, _ = kernel_distance(extract(samples, encoder, device=device), extract(clean, encoder, device=device))
    return {"swd": patch_distance(samples, clean), "kid": kid, "spectrum": spectral_distance(samples, clean)}
