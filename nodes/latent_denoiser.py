"""The MODEL and VAE that ComfyUI has loaded, as a `Denoiser`, without a second copy of their weights.

Facts it rests on (inference tensors, dynamic VRAM, the VAE's
cropping) are the same in ComfyUI 0.3.64, 0.8 and 0.33.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..methods.diffusion.autoencoder import TILE, tile_side
from ..methods.diffusion.denoiser import Denoiser
from ..methods.diffusion.latent_family import better_family, colour_agreement
from ..methods.diffusion.schedules import Schedule, flow, thousand_levels, variance_exploding
from ..methods.errors import AntiPureError, sizes
from ..methods.files import BUNDLED_FOLDER
from ..methods.gradients.checkpointing import blocks, checkpointed
from ..methods.gradients.differentiation import plain_copy, plain_weights
from ..methods.gradients.memory_plan import SavedBytes
from ..methods.memory import is_out_of_memory
from ..methods.pictures import from_uint8, pad_reflect, round_up, to_pixels
from . import host
from .latent_autoencoder import (
    check_vae,
    decode_with,
    encode_with,
    joined_moments,
    split_moments,
)
from .segments import Segments

# Forwards of one tile that the preset strong holds: what decides whether a tile of the native size has room.
_FORWARDS = 4
# Families whose VAEs have the same shapes, by ComfyUI's names of their latents, and how people call them.
_FAMILIES = {"SD15": "SD 1.x or 2.x", "SDXL": "SDXL", "SD3": "SD 3", "Flux": "Flux"}
_ALIKE = (("SD15", "SDXL"), ("SD3", "Flux"))
# What a CONDITIONING may carry beside text that would act on places, times or other networks.
_NOT_PLAIN = {
    "control": "a ControlNet",
    "gligen": "GLIGEN boxes",
    "hooks": "hooks",
    "area": "an area",
    "mask": "a mask",
    "start_percent": "a timestep range",
    "concat_latent_image": "an inpainting latent",
}
_NEEDS_MORE = (
    "This MODEL takes more than the noisy latent (inpainting, depth or edit model); "
    "use the ordinary model of its family."
)


class ModelDenoiser(Segments, Denoiser):
    """A latent diffusion MODEL, its VAE and a CONDITIONING.

    Model space is the latent, scaled as the model takes it. Timesteps are the model's own 1000 steps: for eps and
    v-prediction models the trained ones; for flow models timestep k is k/1000 of the schedule that the MODEL
    carries, shift included, seen as the DDPM step with the same noise-to-signal ratio (methods/diffusion/schedules.py).

    Call `host.ready` first, then work inside `session()`.
    Raises `AntiPureError` when model, VAE and conditioning do not fit together.
    """

    clip_x0 = False
    latent = True
    tile = TILE

    def __init__(self, model, vae, conditioning):
        check_fit(model, vae, conditioning)
        self.patcher = model
        self.vae = vae
        self.vae_patcher = vae.patcher
        self.conditioning = conditioning
        self.multiple = int(vae.spacial_compression_encode())
        with torch.inference_mode(False):
            schedule = read_schedule(model.get_model_object("model_sampling"))
            self.schedule = Schedule(*(table.to(model.load_device) for table in vars(schedule).values()))
        self.alphas_cumprod = self.schedule.alphas_cumprod
        self.native = native_side(model.model.latent_format)
        self._tile = TILE
        self._family_checked = False
        self._encoded: dict[tuple[int, ...], list[dict]] = {}

    # For host.ready ------------------------------------------------------------------------------------------

    @property
    def shared_patchers(self) -> tuple:
        """What ComfyUI has to bring onto its device before work."""
        return self.patcher, self.vae_patcher

    def memory_required(self) -> float:
        """Bytes to keep free for one tile's activations, by ComfyUI's own estimates."""
        side = TILE // self.multiple
        model = self.patcher.model.memory_required([2, self._channels, side, side])
        return model + self.vae.memory_used_decode((1, self._channels, side, side), self.vae.vae_dtype)

    @property
    def borrowed_bytes(self) -> int:
        """Size of the weights that this denoiser uses and does not own."""
        return sum(p.nbytes for patcher in self.shared_patchers for p in patcher.model.parameters())

    @property
    def _channels(self) -> int:
        return self.patcher.model.latent_format.latent_channels

    # Session -------------------------------------------------------------------------------------------------

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Borrow the weights as ordinary tensors; they are returned however the block is left.

        Raises `AntiPureError` when a first small step fails: the inputs do not fit together.
        """
        model = self.patcher.model
        networks = (model, self.vae_patcher.model)
        parts = [part for network in networks for part in blocks(network)]
        with (
            torch.inference_mode(False),
            plain_weights(*networks, model.latent_format),
            checkpointed(parts, lambda: self._in_blocks, self._tidy),
        ):
            try:
                self.patcher.pre_run()
                self._plain_conditioning = plain_copy(self.conditioning)
                self._probe()
                self._tile = self.native if self._native_fits() else TILE
                yield
            finally:
                self.patcher.cleanup()
                self._encoded.clear()
                self._plain_conditioning = None

    def _probe(self) -> None:
        side = 8
        z = torch.zeros(1, self._channels, side, side, device=self.device)
        try:
            with torch.no_grad():
                out = self.predict(z, torch.zeros(1, dtype=torch.long, device=self.device))[0]
        except (AntiPureError, host.interruption()):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise AntiPureError(
                f"The MODEL does not work with this CONDITIONING ({reason[0]}); encode the text with its own CLIP."
            ) from error
        if out.shape != z.shape:
            raise AntiPureError(f"The MODEL turns a latent of shape {sizes(z.shape)} into {sizes(out.shape)}.")
        if not self._family_checked:
            with torch.no_grad():
                self._check_family()
            self._family_checked = True

    def _native_fits(self) -> bool:
        """Whether this session's memory has room for the gradient through one tile of the native size."""
        if self.native == TILE:
            return True
        self.batching.size(self.native, self.native, _FORWARDS)
        plan = self.batching.plan
        return plan is not None and plan.fixed + plan.each <= self.batching.memory_bytes

    def _check_family(self) -> None:
        """Refuse another family's VAE of the same shape (SDXL's with SD 1.5): its latents show other colours."""
        own = type(self.patcher.model.latent_format).__name__
        alike = next((names for names in _ALIKE if own in names), ())
        if not alike:
            return
        picture = to_pixels(_probe_picture()).to(self.device)
        raw = self.patcher.model.process_latent_out(self._encode(picture))
        agreements = {}
        for name in alike:
            family = host.latent_format(name)
            factors = torch.tensor(family.latent_rgb_factors)
            agreements[name] = colour_agreement(family.process_in(raw), factors, picture)
        other = better_family(own, agreements)
        if other is not None:
            raise AntiPureError(
                f"The VAE is one for {_FAMILIES[other]} and the MODEL is {_FAMILIES[own]}; use the VAE of the MODEL."
            )

    # Denoiser ------------------------------------------------------------------------------------------------

    def tile_for(self, height: int, width: int) -> int:
        """Tiles of the native size (512 px, from SDXL on 1024) or, in a session whose memory has no room for one, of
        512 px; a smaller picture is one tile of its own size.
        """
        return tile_side(self.multiple, height, width, self._tile)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels, mirrored up to the VAE's multiple and never cropped, to latents: float32, on the model's device."""
        h, w = (round_up(size, self.multiple) for size in pixels.shape[-2:])
        return self._segment("encode", self._encode, pad_reflect(pixels, h, w))

    def decode(self, latent: Tensor) -> Tensor:
        return self._segment("decode", self._decode, latent)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The VAE's own, not scaled for the model: on the model's device."""
        h, w = (round_up(size, self.multiple) for size in pixels.shape[-2:])

        def joined(x: Tensor) -> Tensor:
            return joined_moments(self.vae, self.vae_patcher, x).to(self.device)

        return split_moments(self._segment("encode", joined, pad_reflect(pixels, h, w)), self._channels)

    def predict(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._segment("predict", lambda x: self._predict_noise(x, t), x_t), None

    @property
    def network(self) -> nn.Module:
        return self.patcher.model.diffusion_model

    def predict_trainable(self, x_t: Tensor, t: Tensor) -> Tensor:
        self._tidy()
        self._in_blocks = True
        return self._predict_noise(x_t, t)

    def _encode(self, pixels: Tensor) -> Tensor:
        z = encode_with(self.vae, self.vae_patcher, pixels)
        return self.patcher.model.process_latent_in(z).to(self.device)

    def _decode(self, latent: Tensor) -> Tensor:
        z = self.patcher.model.process_latent_out(latent)
        return decode_with(self.vae, self.vae_patcher, z).to(self.device)

    def _predict_noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """eps_hat from the denoised latent, which every kind of model gives: (x_t - sqrt(abar) x0) / sqrt(1 - abar)."""
        abar_t, scale = (table[t].view(-1, 1, 1, 1) for table in (self.schedule.alphas_cumprod, self.schedule.scale))
        model, sigma = self.patcher.model, self.schedule.sigmas[t]
        x0 = host.denoised(model, self._conditions(x_t), scale * x_t, sigma, self.patcher.model_options)
        return (x_t - abar_t.sqrt() * x0) / (1 - abar_t).sqrt()

    def _conditions(self, x: Tensor) -> list[dict]:
        """The conditioning as this model takes it at this size (pooled output, SDXL sizes), made by its own code."""
        size = tuple(x.shape[1:])
        if size not in self._encoded:
            latent = torch.zeros(1, *size, device=self.device)
            with torch.no_grad():
                conditions = host.encode_conditions(self.patcher.model, self._plain_conditioning, latent)
            self._encoded[size] = conditions
            if any("c_concat" in c["model_conds"] for c in self._encoded[size]):
                raise AntiPureError(_NEEDS_MORE)
        return self._encoded[size]

    # Memory --------------------------------------------------------------------------------------------------

    def _measure_segments(self) -> dict[str, SavedBytes]:
        t = torch.zeros(1, dtype=torch.long, device=self.device)
        return {
            "encode": self._measure(self._encode, 3, 1, self.vae_patcher.model),
            "predict": self._measure(
                lambda x: self._predict_noise(x, t), self._channels, self.multiple, self.patcher.model
            ),
            "decode": self._measure(self._decode, self._channels, self.multiple, self.vae_patcher.model),
        }


def native_side(latent_format) -> int:
    """Pixels of a side that a latent model was trained at: 512 up to SD 2.x, 1024 from SDXL on."""
    return TILE if type(latent_format).__name__ == "SD15" else 1024


def check_fit(model, vae, conditioning) -> None:
    """Raise `AntiPureError` when MODEL, VAE and CONDITIONING can be seen not to belong together."""
    base, latent = model.model, model.model.latent_format
    if getattr(latent, "latent_dimensions", 2) != 2:
        raise AntiPureError("The latent of this MODEL is not an image (video or audio model); use an image model.")
    check_vae(vae)
    if vae.latent_channels != latent.latent_channels:
        raise AntiPureError(
            f"The VAE has {vae.latent_channels} latent channels and the MODEL {latent.latent_channels}; "
            "use the VAE that belongs to the MODEL."
        )
    ratio = getattr(latent, "spacial_downscale_ratio", None)
    if ratio is not None and ratio != vae.spacial_compression_encode():
        raise AntiPureError(
            f"The VAE shrinks pictures {vae.spacial_compression_encode()} times and the MODEL expects {ratio}; "
            "use the VAE that belongs to the MODEL."
        )
    if getattr(base, "concat_keys", ()):
        raise AntiPureError(_NEEDS_MORE)
    if not conditioning:
        raise AntiPureError("The CONDITIONING is empty; wire a CLIP Text Encode node (its text may be empty).")
    width = base.model_config.unet_config.get("context_dim")
    for tensor, extras in conditioning:
        for key, name in _NOT_PLAIN.items():
            if extras.get(key) is not None:
                raise AntiPureError(f"The CONDITIONING carries {name}; Denoiser from Model takes plain text only.")
        if isinstance(width, int) and isinstance(tensor, Tensor) and tensor.shape[-1] != width:
            raise AntiPureError(
                f"The CONDITIONING is {tensor.shape[-1]} wide and the MODEL expects {width}; "
                "encode the text with the CLIP that belongs to the MODEL."
            )


def _probe_picture() -> Tensor:
    """The bundled portrait, 1×3×128×128 in 0..1: a natural picture with many colours."""
    from PIL import Image

    with Image.open(BUNDLED_FOLDER / "astronaut_face.png") as face:
        return from_uint8(np.asarray(face.convert("RGB").resize((128, 128))))


def read_schedule(sampling) -> Schedule:
    """The 1000 noise levels of a model's own sampling object. Raises `AntiPureError` for unknown kinds."""
    kinds = host.sampling_kinds()
    image_to_image = tuple(getattr(kinds, name) for name in ("IMG_TO_IMG", "IMG_TO_IMG_FLOW") if hasattr(kinds, name))
    sigmas = thousand_levels(plain_copy(sampling.sigmas))
    if isinstance(sampling, kinds.CONST) and not isinstance(sampling, image_to_image):
        return flow(sigmas, getattr(sampling, "noise_scale", 1.0))
    if isinstance(sampling, (kinds.EPS, kinds.COSMOS_RFLOW)) and not isinstance(sampling, image_to_image):
        return variance_exploding(sigmas)
    raise AntiPureError(
        f"The sampling of this MODEL ({type(sampling).__mro__[-2].__name__}) is not noise to image; use another model."
    )
