"""The one interface between a face-editing network and the defences, patches and metrics of this pack.

Conventions: pixels are B×3×H×W in [-1, 1]. A generator has *named* edits; what a name means to its network (labels,
a style) is the business of its class.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import fingerprint
from ..errors import AntiPureError, sizes
from ..pictures import check_picture, pad_reflect, round_up, to_picture, to_pixels


class Generator(ABC):
    """A frozen image-to-image network with named edits.

    name: of the architecture. network: everything a patch may touch lies in it. edits: names `edit` accepts.
    size: side it was trained at. multiple: sides are padded to multiples of this many pixels.
    fingerprint: of the architecture, taken before anything is patched (`lora_patching.fingerprint`).
    attributes: that the network is told of as a whole, where pictures may bring their own (`labelled`); none: (). own:
    what the pictures have of them, B×attributes in {0, 1}; None: the same is assumed of all.
    """

    name: str
    attributes: tuple[str, ...] = ()
    own: Tensor | None = None

    def __init__(self, network: nn.Module, *, edits: tuple[str, ...], size: int, multiple: int):
        self.network = network.eval().requires_grad_(False)
        self.edits = tuple(edits)
        self.size = size
        self.multiple = multiple
        self.fingerprint = fingerprint(network)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @property
    def parameters(self) -> int:
        """How many parameters the network has."""
        return sum(p.numel() for p in self.network.parameters())

    def to(self, device: torch.device | str) -> Generator:
        """Move the weights to a device, in place."""
        self.network.to(device)
        return self

    def labelled(self, own: Tensor | None) -> Generator:
        """The same generator, network and all, for pictures that are known: every edit flips one of *their* attributes.

        own: B×attributes in {0, 1}, for B pictures or whole multiples of B, in their order; None: nothing is known.
        Raises `AntiPureError` for a network that is told of no attributes.
        """
        if own is None:
            return self
        if not self.attributes:
            raise AntiPureError(
                f"{self.name} with the edits {', '.join(self.edits)} takes no labels of pictures; leave them out."
            )
        other = copy.copy(self)
        other.own = own
        return other

    def _own_of(self, pixels: Tensor) -> Tensor:
        """What each of B pictures has, B×attributes."""
        assert self.own is not None
        times, rest = divmod(len(pixels), len(self.own))
        if rest:
            raise AntiPureError(f"There are labels for {len(self.own)} pictures, not for {len(pixels)}; give one each.")
        return self.own.to(pixels).repeat(times, 1)

    @abstractmethod
    def _call(self, pixels: Tensor, edit: str) -> Tensor:
        """`self.network` on pixels whose sides are multiples of `multiple`; edit is one of `edits`."""

    def edit(self, pixels: Tensor, edit: str) -> Tensor:
        """G(pixels, edit), B×3×H×W in [-1, 1]; differentiable in the pixels and in the weights.

        pixels: B×3×H×W in [-1, 1] on `device`, ideally `size` on a side: nothing is resized, because resizing would
        wash out what a defence added. Sides that are no multiple of `multiple` are reflected to one, and cut again.
        Raises `AntiPureError` for an unknown edit, and for pixels that are too small or not RGB.
        """
        self.check(pixels, edit)
        height, width = pixels.shape[-2:]
        padded = pad_reflect(pixels, round_up(height, self.multiple), round_up(width, self.multiple))
        return self._call(padded, edit)[..., :height, :width]

    def edit_picture(self, picture: Tensor, edit: str) -> Tensor:
        """The edit for a picture of any size, B×3×H×W in 0..1 on any device, as a deepfake tool would apply it.

        The short side is scaled to `size`, at which the network knows faces, and the result back.
        Raises `AntiPureError` as `edit` does.
        """
        check_picture(picture)
        return self.edit_any_size(picture, edit)

    def edit_any_size(self, picture: Tensor, edit: str) -> Tensor:
        """`edit_picture` without a look at the values, which waits for a GPU: for loops."""
        height, width = picture.shape[-2:]
        pixels = to_pixels(picture.float()).to(self.device)
        scale = self.size / min(height, width)
        if scale == 1:
            return to_picture(self.edit(pixels, edit)).to(picture)
        self.check(pixels, edit)
        small = _resize(pixels, round(height * scale), round(width * scale)).clamp(-1, 1)
        return to_picture(_resize(self.edit(small, edit), height, width)).to(picture)

    def check(self, pixels: Tensor, edit: str) -> None:
        """Raise `AntiPureError` unless `edit` can be asked for and `pixels` be given."""
        if edit not in self.edits:
            raise AntiPureError(f"{self.name} has no edit '{edit}'; choose one of {', '.join(self.edits)}.")
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise AntiPureError(
                f"{self.name} was given a tensor of shape {sizes(pixels.shape)} and type {pixels.dtype}; "
                "give a batch of RGB pictures, B×3×H×W, floats."
            )
        least = max(16, self.multiple)
        if len(pixels) == 0 or min(pixels.shape[-2:]) < least:
            height, width = pixels.shape[-2:]
            raise AntiPureError(
                f"{self.name} cannot edit {len(pixels)} pictures of {width}×{height}; give at least one of at least "
                f"{least}×{least}, best {self.size}×{self.size}."
            )


def _resize(pixels: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
