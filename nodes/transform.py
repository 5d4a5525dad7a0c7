"""Transform Pictures."""

from __future__ import annotations

from torch import Tensor

from ..methods.purification.transforms import TRANSFORMS, Transform, parse_transform
from . import inputs
from .convert import from_image, to_image


class TransformPictures:
    DESCRIPTION = (
        "What happens to pictures on their way: JPEG, WebP, resizing there and back, blur, noise, median, bilateral "
        "filter, what trainers make of them (train512), uploads, crops, and compositions such as jpeg75+resize0.5. To "
        "measure what a protection is worth after it."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "transform"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = (
        "The transformed pictures, 8-bit exact; of the same size, unless the transform changes it as train512 does.",
    )
    SEARCH_ALIASES = [
        "jpeg",
        "compression",
        "resize",
        "median",
        "bilateral",
        "gaussian noise",
        "webp",
        "bucket",
        "crop",
    ]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        known = ", ".join(f"{name}{default:g}" for name, (_, default, _) in TRANSFORMS.items())
        return inputs.declare(
            image=inputs.image("Pictures to transform, any size. Alpha is kept; it changes with the size only."),
            transform=inputs.text(
                "jpeg75+resize0.5", f"Names with their values, joined by +, from left to right: {known}; or none."
            ),
            seed=inputs.seed("Of noise. Every picture of a batch gets the same."),
        )

    def transform(self, image, transform, seed) -> tuple:
        picture, alpha = from_image(image)
        change = parse_transform(transform, seed)
        if alpha is not None:
            alpha = self._alpha(change, alpha)
        return (to_image(change(picture), alpha),)

    @staticmethod
    def _alpha(change: Transform, alpha: Tensor) -> Tensor:
        """B×H×W×1 at the size the pictures come out with."""
        if not change.changes_size:
            return alpha
        return change.view(alpha.float().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
