"""Transform Pictures."""

from __future__ import annotations

from ..methods.purification.transforms import TRANSFORMS, parse_transform
from . import inputs
from .convert import from_image, to_image


class TransformPictures:
    DESCRIPTION = (
        "What happens to pictures on their way: JPEG, resizing there and back, blur, noise, median, bilateral filter, "
        "and compositions such as jpeg75+resize0.5. To measure what a protection is worth after it."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "transform"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The transformed pictures, same size, 8-bit exact.",)
    SEARCH_ALIASES = ["jpeg", "compression", "resize", "median", "bilateral", "gaussian noise"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        known = ", ".join(f"{name}{default:g}" for name, (_, default, _) in TRANSFORMS.items())
        return inputs.declare(
            image=inputs.image("Pictures to transform, any size. Alpha passes through untouched."),
            transform=inputs.text(
                "jpeg75+resize0.5", f"Names with their values, joined by +, from left to right: {known}; or none."
            ),
            seed=inputs.seed("Of noise. Every picture of a batch gets the same."),
        )

    def transform(self, image, transform, seed) -> tuple:
        picture, alpha = from_image(image)
        return (to_image(parse_transform(transform, seed)(picture), alpha),)
