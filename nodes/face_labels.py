"""What faces have and lack, picture by picture, for networks that want to be told the whole description of a face."""

from __future__ import annotations

from torch import Tensor

from ..methods.errors import AntiPureError
from ..methods.generators.generator import Generator
from ..methods.generators.labels import FaceLabels, read_labels
from . import host, inputs


def labels_input() -> inputs.Input:
    """The optional input of nodes that edit faces."""
    return inputs.wire(
        "FACE_LABELS",
        "What each picture has, from Face Labels: every edit then flips one of its own attributes. None: the same is "
        "assumed of all.",
    )


def own_labels(generator: Generator, labels: FaceLabels | None, count: int) -> Tensor | None:
    """The labels as this generator wants them, count×attributes. Raises `AntiPureError` where they do not fit."""
    if labels is None:
        return None
    if len(labels.files) != count:
        raise AntiPureError(
            f"There are labels for {len(labels.files)} pictures, not for {count}; name the files of these pictures, in "
            "their order."
        )
    own = labels.columns(generator.attributes)
    generator.labelled(own)
    return own


class FaceLabelsNode:
    DESCRIPTION = (
        "What each picture's face has and lacks, from a text or a file in CelebA's layouts (list_attr_celeba.txt, or a "
        "CSV of it), found by the pictures' file names. StarGAN and AttGAN want it; without it they guess."
    )
    CATEGORY = "AntiPure/LoRA Patching"
    FUNCTION = "read"
    RETURN_TYPES = ("FACE_LABELS", "STRING")
    RETURN_NAMES = ("labels", "report")
    OUTPUT_TOOLTIPS = ("For Edit Face, Disrupt Protect, Train LoRA Patch and Defence Report.", "What was read.")
    SEARCH_ALIASES = ["celeba", "attributes", "list_attr"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            labels=inputs.text(
                "",
                "The labels themselves, or the name of a .txt or .csv file in ComfyUI's input folder: a line of "
                "attribute names, then for each picture its file's name and 1 or -1 for each.",
                multiline=True,
            ),
            file_names=inputs.text(
                "",
                "Files of the pictures, one a line or separated by commas, in the batch's order. Empty: the labels' "
                "lines are the pictures, in their order.",
                multiline=True,
            ),
        )

    @classmethod
    def IS_CHANGED(cls, labels=None, **_) -> str:
        if isinstance(labels, str) and host.is_file_name(labels, (".txt", ".csv")):
            path = host.input_file(labels.strip())
            return str(path.stat().st_mtime_ns) if path.is_file() else ""
        return ""

    def read(self, labels, file_names) -> tuple:
        if host.is_file_name(labels, (".txt", ".csv")):
            path = host.input_file(labels.strip())
            if not path.is_file():
                raise AntiPureError(f"There is no {path.name} in the input folder; put it there, or paste the labels.")
            try:
                labels = path.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise AntiPureError(f"{path.name} cannot be read as text; give labels in CelebA's layout.") from error
        found = read_labels(labels)
        names = [name.strip() for name in file_names.replace(",", "\n").splitlines() if name.strip()]
        if names:
            found = found.of(names)
        return found, f"{len(found.files)} pictures, {len(found.attributes)} attributes"
