"""Which file a saved picture is made from: only then it may get that file's alpha and colour profile.

The workflow tells, not the pixels: a view of the perturbation or a sheet is made from a file, too, but has no use for
its profile.
"""

from __future__ import annotations

from .graph import is_link

# Nodes whose first output is the picture at this input: as many, of the same size, in the same colours.
KEEPING = {
    "AntiPureProtect": "image",
    "AntiPureDiffusionPurify": "image",
    "AntiPureTransform": "image",
    "AntiPureDisruptProtect": "image",
}


def loader_of(prompt: dict, node_id: str) -> str | None:
    """The LoadImage whose pictures this SaveImage writes, or None where they are made otherwise.

    The workflow need not be checked yet: links that lead nowhere or in a circle lead to no file.
    """
    link = prompt[node_id].get("inputs", {}).get("images")
    seen = set()
    while is_link(link) and link[1] == 0 and link[0] in prompt and link[0] not in seen:
        seen.add(link[0])
        node = prompt[link[0]]
        if node["class_type"] == "LoadImage":
            return link[0]
        link = node.get("inputs", {}).get(KEEPING.get(node["class_type"], ""))
    return None


def alpha_is_a_mask(prompt: dict, loader: str) -> bool:
    """Whether any node takes this LoadImage's MASK."""
    return any(
        is_link(value) and list(value) == [loader, 1]
        for node in prompt.values()
        for value in node.get("inputs", {}).values()
    )
