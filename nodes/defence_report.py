"""Defence Report: what a defence and a patch are worth against each other."""

from __future__ import annotations

import torch

from ..methods.attacks.settings import AttackSettings
from ..methods.errors import AntiPureError
from ..methods.figures.inspection_sheet import labelled_sheet
from ..methods.generators.procedural_faces import HELD_OUT
from ..methods.lora_patching.cmua import universal_watermark
from ..methods.lora_patching.defence_report import defence_report
from ..methods.lora_patching.disrupting import LEVELS, STEPS
from ..methods.lora_patching.patch import check_patch, trained_on_others
from ..methods.lora_patching.warning import DEFAULT_TEXT, PLACEMENTS
from . import host, inputs
from .convert import from_image, to_image
from .face_labels import labels_input, own_labels
from .generators import ALL_EDITS, EDITS_TOOLTIP, chosen_edits
from .lora_patch import CATEGORY, drawn_warning, seed_input
from .progress import Progress


class DefenceReport:
    DESCRIPTION = (
        "How a proactive defence (Disrupting) and a patch fare against each other: share of edits disrupted for plain "
        "pictures, noise, JPEG, the defence, and the defence made with knowledge of the patch; and how often a "
        "defensive patch's warning can be seen."
    )
    CATEGORY = CATEGORY
    FUNCTION = "measure"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("report", "sheet")
    OUTPUT_TOOLTIPS = ("The table, as Markdown.", "The first face through everything.")
    SEARCH_ALIASES = ["disrupting", "success rate", "leakage"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            generator=inputs.wire("GENERATOR", "The network, not patched."),
            faces=inputs.image(f"Faces it never saw: Procedural Faces from {HELD_OUT:,} on."),
            edits=inputs.text(ALL_EDITS, EDITS_TOOLTIP),
            warning_text=inputs.text(DEFAULT_TEXT, "The one the patch was trained with."),
            levels=inputs.number(LEVELS, 0.125, 64.0, 0.125, "Budget of noise and defence in 8-bit levels."),
            quality=inputs.integer(75, 1, 95, "Of the JPEG rows."),
            seed=seed_input(),
            optional={
                "patch": inputs.wire("LORA_PATCH", "The patch; none: only the defence is measured."),
                "warning_picture": inputs.image("The one the patch was trained with, instead of text."),
                "strong_defender": inputs.boolean(
                    True,
                    "Rows of a defender who knows the patch and does all that makes an attack stronger: 50 steps with "
                    "momentum, twice the levels, JPEG reckoned with, both networks at once. Takes most of the time.",
                ),
                "labels": labels_input(),
                "watermark_faces": inputs.image(
                    "Other faces, to make a CMUA-Watermark from: adds the rows of that defence."
                ),
                "other_patch": inputs.wire(
                    "LORA_PATCH",
                    "Another patch of the same network: adds the rows of a defence made with knowledge of that one.",
                ),
            },
            node_id=True,
        )

    def measure(
        self, generator, faces, edits, warning_text, levels, quality, seed, patch=None, warning_picture=None,
        strong_defender=True, labels=None,
        watermark_faces=None, other_patch=None, node_id=None,
    ) -> dict:  # fmt: skip
        picture, _ = from_image(faces, "faces")
        if min(picture.shape[-2:]) != generator.size:
            raise AntiPureError(
                f"The faces are {picture.shape[-1]}×{picture.shape[-2]}; the report compares outputs at the size the "
                f"generator knows, so resize them to {generator.size}×{generator.size}."
            )
        names = chosen_edits(generator, edits)
        defensive = patch is not None and patch.metadata.get("mode") == "defensive"
        warning = usual = None
        if defensive:
            height, width = picture.shape[-2:]
            usual = drawn_warning(warning_text, warning_picture, height, width)
            # A file can say anything of itself.
            placement = PLACEMENTS[patch.metadata.get("placement") == PLACEMENTS[1]]
            its_seed = patch.metadata.get("seed")
            its_seed = its_seed if isinstance(its_seed, int) else 0
            warning = drawn_warning(warning_text, warning_picture, height, width, placement, its_seed)
        made_from = None if watermark_faces is None else from_image(watermark_faces, "watermark's faces")[0]
        own = own_labels(generator, labels, len(picture))
        told = []
        for name, one in (("patch", patch), ("other_patch", other_patch)):
            if one is not None:
                check_patch(generator, one)
                if (said := trained_on_others(generator, one)) is not None:
                    told.append(f"{name}: {said}")
        host.ready_network(generator)
        with torch.inference_mode(False), Progress("measuring", node_id) as progress:
            watermark = None
            if made_from is not None:
                settings = AttackSettings(levels, STEPS, seeds=seed)
                watermark = universal_watermark([generator], made_from.to(generator.device), names, settings)
            found = defence_report(
                generator, patch, picture, edits=names, warning=warning, levels=levels, quality=quality, seed=seed,
                strong=strong_defender, labels=own, watermark=watermark, usual=usual,
                other=other_patch, progress=progress,
            )  # fmt: skip
        report = "\n\n".join([found.markdown(), *told])
        host.show_text(report, node_id)
        sheet = labelled_sheet({name: value.cpu() for name, value in found.examples.items()})
        return {"ui": {"text": [report]}, "result": (report, to_image(sheet))}
