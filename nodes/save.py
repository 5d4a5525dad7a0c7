"""Save Protected Picture."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

from . import host, inputs, outputs
from .convert import from_image, to_image

NAME = "%name%"
UNNAMED = "picture"


class SavePicture:
    DESCRIPTION = (
        "Saves pictures as PNG under the name of the file they were made from, with or without the workflow in them. "
        "With the original wired, both are shown on the node: click one, then the arrows."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    RETURN_NAMES = ()
    OUTPUT_TOOLTIPS = ()
    SEARCH_ALIASES = ["save image", "save png", "export", "without workflow", "without metadata", "before after"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            image=inputs.image("The pictures to save."),
            filename_prefix=inputs.text(
                f"antipure/{NAME}_protected",
                f"Below the output folder; {NAME} is the name of the file that the pictures were loaded from.",
            ),
            recipe=inputs.boolean(
                True,
                "Keep the workflow in the file: dragged into ComfyUI it opens again. It tells preset, seed and file "
                "names to whoever gets the picture; turn it off for pictures that you publish.",
            ),
            optional={"original": inputs.image("The picture before, to be shown beside the saved one.")},
            node_id=True,
            graph=True,
        )

    def save(
        self, image, filename_prefix, recipe, original=None, node_id=None, prompt=None, extra_pnginfo=None
    ) -> dict:
        picture, alpha = from_image(image)
        name = source_name(prompt or {}, str(node_id))
        prefix = filename_prefix.replace(NAME, name)
        texts = {}
        if recipe and prompt:
            texts = {"prompt": json.dumps(prompt), **{key: json.dumps(v) for key, v in (extra_pnginfo or {}).items()}}
        shown = outputs.save_pictures(to_image(picture, alpha), prefix, texts)
        if original is not None:
            before, before_alpha = from_image(original, "original")
            shown += outputs.preview_pictures(to_image(before, before_alpha))
        return {"ui": {"images" if host.inside_comfyui() else "files": shown}}


def source_name(prompt: dict, node_id: str) -> str:
    """The name, without folder and ending, of the file whose picture reaches a node of an API prompt.

    The nearest node before it that has a text as its input "image", as Load Image has; `UNNAMED` where there is none.
    """
    queue, seen = [node_id], set()
    for at in queue:
        if at in seen:
            continue
        seen.add(at)
        given = prompt.get(at, {}).get("inputs", {})
        file = given.get("image")
        if isinstance(file, str) and file:
            plain = re.sub(r" \[(input|output|temp)\]$", "", file).replace("\\", "/")
            return PurePosixPath(plain).stem or UNNAMED
        wired = [given[key] for key in sorted(given, key=lambda key: key != "image")]  # of several, the picture first
        queue += [str(link[0]) for link in wired if isinstance(link, list) and len(link) == 2]
    return UNNAMED
