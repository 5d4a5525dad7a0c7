"""What faces have and lack, picture by picture: labels in the layouts that CelebA comes in.

    202599                                      image_id,Bald,Bangs,...
    5_o_Clock_Shadow Arched_Eyebrows ...        000001.jpg,-1,1,...
    000001.jpg -1  1 ...

Left as the authors publish it (`list_attr_celeba.txt`), right as a CSV of the same. 1 is "has", -1 or 0 "lacks".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AntiPureError

HAS, LACKS = ("1", "1.0", "true", "True"), ("-1", "0", "-1.0", "0.0", "false", "False")
EXAMPLE = "give a line of attribute names, then a line per picture: its file's name and 1 or -1 for each attribute"


@dataclass(frozen=True)
class FaceLabels:
    """attributes: names. files: one name per picture. values: pictures × attributes, 1 has, 0 lacks, float32."""

    attributes: tuple[str, ...]
    files: tuple[str, ...]
    values: Tensor

    def of(self, files: Sequence[str]) -> FaceLabels:
        """The rows of these files, in their order. Raises `AntiPureError` naming the first that has none."""
        rows = {name: i for i, name in enumerate(self.files)}
        missing = next((name for name in files if name not in rows), None)
        if missing is not None:
            raise AntiPureError(
                f"The labels have no line for '{missing}'; there are {len(rows)}, from {self.files[0]}."
            )
        return FaceLabels(self.attributes, tuple(files), self.values[[rows[name] for name in files]])

    def columns(self, attributes: Sequence[str]) -> Tensor:
        """pictures × these attributes, in their order. Raises `AntiPureError` naming the first that is not labelled."""
        missing = next((name for name in attributes if name not in self.attributes), None)
        if missing is not None:
            raise AntiPureError(f"The labels say nothing about {missing}, which this generator wants to know; add it.")
        return self.values[:, [self.attributes.index(name) for name in attributes]]


def read_labels(text: str) -> FaceLabels:
    """Labels from text in one of the two layouts. Raises `AntiPureError` naming the first line that does not fit."""
    lines = [(i + 1, line.replace(",", " ").replace(";", " ").split()) for i, line in enumerate(text.splitlines())]
    lines = [(number, words) for number, words in lines if words]
    if lines and len(lines[0][1]) == 1 and lines[0][1][0].isdigit():  # how many pictures follow
        lines = lines[1:]
    if len(lines) < 2:
        raise AntiPureError(f"There are no labels of any picture; {EXAMPLE}.")
    head = lines[0][1]
    # A CSV's first heading is that of the file names; the authors' header has none.
    attributes = tuple(head[1:] if len(lines[1][1]) == len(head) else head)
    if len(set(attributes)) != len(attributes):
        raise AntiPureError("Two attributes of the labels have one name; give each its own.")
    files, rows = [], []
    for number, (name, *values) in lines[1:]:
        wrong = next((value for value in values if value not in (*HAS, *LACKS)), None)
        if len(values) != len(attributes) or wrong is not None:
            what = f"has the value '{wrong}'" if wrong else f"has {len(values)} values for {len(attributes)} attributes"
            raise AntiPureError(f"Line {number} of the labels ({name}) {what}; {EXAMPLE}.")
        files.append(name)
        rows.append([float(value in HAS) for value in values])
    if len(set(files)) != len(files):
        raise AntiPureError("Two lines of the labels have one file's name; give each picture one line.")
    with torch.inference_mode(False):
        return FaceLabels(attributes, tuple(files), torch.tensor(rows))
