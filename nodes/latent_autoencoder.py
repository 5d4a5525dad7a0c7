"""The VAE that ComfyUI has loaded, as an `Autoencoder`, without a second copy of its weights.

What a `ModelDenoiser` needs of its VAE is here, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..methods.diffusion.autoencoder import Autoencoder
from ..methods.errors import AntiPureError, sizes
from ..methods.gradients.checkpointing import blocks, checkpointed
from ..methods.gradients.differentiation import plain_weights
from ..methods.gradients.memory_plan import SavedBytes
from ..methods.pictures import to_pixels
from .segments import Segments

_SIDE = 512  # of the picture that memory is kept free for


class HostAutoencoder(Segments, Autoencoder):
    """A VAE of the graph. Latents are the VAE's own, before any MODEL scales them.

    Call `host.ready` first, then work inside `session()`. Raises `AntiPureError` for a VAE that is none for pictures.
    """

    def __init__(self, vae, name: str = "VAE"):
        check_vae(vae)
        self.vae, self.name = vae, name
        self.vae_patcher = vae.patcher
        self.multiple = int(vae.spacial_compression_encode())
        self.channels = int(vae.latent_channels)
        self._probed = False

    # For host.ready ------------------------------------------------------------------------------------------

    @property
    def shared_patchers(self) -> tuple:
        """What ComfyUI has to bring onto its device before work."""
        return (self.vae_patcher,)

    def memory_required(self) -> float:
        """Bytes to keep free for one picture's activations, by ComfyUI's own estimate."""
        return self.vae.memory_used_encode((1, 3, _SIDE, _SIDE), self.vae.vae_dtype)

    @property
    def borrowed_bytes(self) -> int:
        """Size of the weights that this autoencoder uses and does not own."""
        return sum(p.nbytes for p in self.vae_patcher.model.parameters())

    # Autoencoder ---------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return torch.device(self.vae.device)

    def parts(self) -> tuple[nn.Module, ...]:
        return (self.vae_patcher.model,)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Borrow the weights as ordinary tensors; they are returned however the block is left.

        Raises `AntiPureError` when a first small picture does not become a latent.
        """
        network = self.vae_patcher.model
        with (
            torch.inference_mode(False),
            plain_weights(network),
            checkpointed(blocks(network), lambda: self._in_blocks, self._tidy),
        ):
            if not self._probed:
                self._probe()
                self._probed = True
            yield

    def _probe(self) -> None:
        """Ask the network for `multiple` and `channels`: ComfyUI 0.33 calls FLUX.2's 16 pixels 8."""
        side = 8 * self.multiple
        with torch.no_grad():
            latent = encode_with(self.vae, self.vae_patcher, torch.zeros(1, 3, side, side, device=self.device))
        if latent.ndim != 4 or latent.shape[-1] != latent.shape[-2] or not latent.numel() or side % latent.shape[-1]:
            raise AntiPureError(
                f"This VAE turns {side}×{side} pixels into {sizes(latent.shape)}: no picture's latent; use another VAE."
            )
        self.multiple, self.channels = side // latent.shape[-1], int(latent.shape[1])

    def encode(self, pixels: Tensor) -> Tensor:
        self.check_pixels(pixels)
        return self._segment("encode", self._encode, pixels)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        self.check_pixels(pixels)
        joined = self._segment("encode", lambda x: joined_moments(self.vae, self.vae_patcher, x), pixels)
        return split_moments(joined, self.channels)

    def decode(self, latent: Tensor) -> Tensor:
        return self._segment("decode", self._decode, latent)

    def _encode(self, pixels: Tensor) -> Tensor:
        return encode_with(self.vae, self.vae_patcher, pixels)

    def _decode(self, latent: Tensor) -> Tensor:
        return decode_with(self.vae, self.vae_patcher, latent)

    # Memory --------------------------------------------------------------------------------------------------

    def _measure_segments(self) -> dict[str, SavedBytes]:
        network = self.vae_patcher.model
        return {
            "encode": self._measure(self._encode, 3, 1, network),
            "decode": self._measure(self._decode, self.channels, self.multiple, network),
        }


def as_autoencoder(vae, name: str = "VAE") -> Autoencoder:
    """What a VAE input was given: ComfyUI's VAE, or outside of it one that this pack has loaded.

    name: what reports call ComfyUI's, which has none of its own.
    """
    return vae if isinstance(vae, Autoencoder) else HostAutoencoder(vae, name)


def encode_with(vae, patcher, pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] through ComfyUI's VAE in its own precision, not cropped: latents, float32, where the VAE is."""
    image = vae.process_input((pixels + 1) / 2)
    return patcher.model.encode(image.to(vae.device, vae.vae_dtype)).float()


def joined_moments(vae, patcher, pixels: Tensor) -> Tensor:
    """As `encode_with`, with the log variances as further channels where the VAE has one for each place."""
    regularization = getattr(patcher.model, "regularization", None)
    if not isinstance(regularization, nn.Module):
        return encode_with(vae, patcher, pixels)
    given: list[Tensor] = []
    hook = regularization.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    try:
        mean = encode_with(vae, patcher, pixels)
    finally:
        hook.remove()
    if len(given) != 1 or given[0].shape[1] != 2 * mean.shape[1] or given[0].shape[2:] != mean.shape[2:]:
        return mean  # FLUX.2's is folded after its regularization
    return torch.cat([mean, given[0].chunk(2, 1)[1].float().clamp(-30, 20)], 1)


def split_moments(joined: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Means and log variances of `joined_moments`; None where there are none."""
    return joined[:, :channels], joined[:, channels:] if joined.shape[1] > channels else None


def decode_with(vae, patcher, latent: Tensor) -> Tensor:
    """Latents through ComfyUI's VAE: pixels in [-1, 1], float32, where the VAE is."""
    image = patcher.model.decode(latent.to(vae.device, vae.vae_dtype))
    # Some versions finish in place: not on a tensor that autograd has saved.
    return to_pixels(vae.process_output(image.float().clone()))


def check_vae(vae) -> None:
    """Raise `AntiPureError` for a VAE that is empty or not one for single pictures."""
    if getattr(vae, "first_stage_model", None) is None:
        raise AntiPureError("This VAE is empty; the checkpoint holds none, so load one with Load VAE.")
    is_image = vae.latent_dim == 2 and getattr(vae, "extra_1d_channel", None) is None
    if not is_image or getattr(vae, "output_channels", 3) != 3:
        raise AntiPureError("This VAE is not one for single images (video or audio); use the VAE of the MODEL.")
