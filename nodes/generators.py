"""Load Generator, Edit Face, Disrupt Protect, Procedural Faces: what LoRA patches are tried on."""

from __future__ import annotations

import torch

from ..methods.attacks.settings import AttackSettings
from ..methods.errors import AntiPureError
from ..methods.generators.loading import LARGEST_SIZE, load_generator
from ..methods.generators.procedural_faces import HELD_OUT, SIDE, draw_faces
from ..methods.lora_patching.disrupting import LEVELS, STEP_LEVELS, STEPS, disrupt
from ..methods.metrics import image as metrics
from . import host, inputs, model_folders
from .convert import NOTHING_CHANGED, all_forbidden, difference_view, from_image, from_mask, to_image
from .face_labels import labels_input, own_labels
from .progress import Progress

ALL_EDITS = "all"
EDITS_TOOLTIP = (
    "Names of edits, separated by commas, or 'all'. The bundled toy: black hair, blond hair, brown hair, glasses, "
    "no glasses. A wrong name lists the generator's own."
)


def chosen_edits(generator, edits: str) -> list[str]:
    """The edits a text names. Raises `AntiPureError` for none and for ones the generator does not have."""
    if edits.strip().lower() == ALL_EDITS:
        return list(generator.edits)
    names = [name.strip() for name in edits.split(",") if name.strip()]
    unknown = next((name for name in names if name not in generator.edits), None)
    if unknown is not None or not names:
        what = f"has no edit '{unknown}'" if unknown else "was given no edit"
        raise AntiPureError(f"{generator.name} {what}; write some of {', '.join(generator.edits)}, or 'all'.")
    return names


class LoadGenerator:
    DESCRIPTION = (
        "A face-editing network, to measure proactive defences and LoRA patches on: the bundled toy for procedural "
        "faces, or a StarGAN, AttGAN or HiSD checkpoint as its authors publish it, from models/antipure_generators. "
        "Only weights are read; files that carry code are refused."
    )
    CATEGORY = "AntiPure/LoRA Patching"
    FUNCTION = "load"
    RETURN_TYPES = ("GENERATOR",)
    RETURN_NAMES = ("generator",)
    OUTPUT_TOOLTIPS = ("The face-editing network.",)
    SEARCH_ALIASES = ["stargan", "attgan", "hisd", "deepfake", "face editing"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        names = model_folders.list_models("generators")
        tooltip = "'bundled', or a file in models/antipure_generators (.safetensors, .ckpt, .pth, .pt)."
        side = (
            "The side in pixels that the network was trained at, which weights do not tell: 128 for the smaller models "
            "of StarGAN and AttGAN. 0: what the file says, else 256."
        )
        return inputs.declare(
            generator=inputs.file(names, tooltip, model_folders.BUNDLED),
            optional={"size": inputs.integer(0, 0, LARGEST_SIZE, side)},
        )

    @classmethod
    def IS_CHANGED(cls, generator=None, **_) -> str:
        return model_folders.model_state("generators", generator)

    def load(self, generator, size=0) -> tuple:
        path = model_folders.find_model("generators", generator)
        return (host.manage(load_generator(path, size=size or None)),)


class EditFace:
    DESCRIPTION = (
        "What an editing tool would make of the picture: one output per edit and picture. Here to see what a defence "
        "or a patch does to it."
    )
    CATEGORY = "AntiPure/LoRA Patching"
    FUNCTION = "edit"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "edits")
    OUTPUT_TOOLTIPS = ("Edit by edit, all pictures of the batch each time.", "The edits, one line per output picture.")
    SEARCH_ALIASES = ["deepfake", "face attribute", "hair colour", "glasses"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            generator=inputs.wire("GENERATOR", "The network; a patched one comes from LoRA Patch Apply."),
            image=inputs.image("Faces, any size: they are edited at the size the network knows."),
            edits=inputs.text(ALL_EDITS, EDITS_TOOLTIP),
            optional={"labels": labels_input()},
        )

    def edit(self, generator, image, edits, labels=None) -> tuple:
        picture, alpha = from_image(image)
        names = chosen_edits(generator, edits)
        generator = generator.labelled(own_labels(generator, labels, len(picture)))
        host.ready_network(generator)
        results = []
        with torch.inference_mode(False), torch.no_grad(), Progress("editing") as progress:
            for i, name in enumerate(names):
                results.append(generator.edit_picture(picture, name).clamp(0, 1))
                progress(i + 1, len(names), results[-1][:1])
        edited = torch.cat(results)
        alpha = None if alpha is None else alpha.repeat(len(names), 1, 1, 1)
        lines = [f"{name}, picture {i + 1}" for name in names for i in range(len(picture))]
        return to_image(edited, alpha), "\n".join(lines)


class DisruptProtect:
    DESCRIPTION = (
        "Disrupting (Ruiz et al. 2020), the proactive defence that LoRA patches are measured against: perturbs the "
        "picture so that the face-editing network spoils it. JPEG at quality 75 undoes most of it, and so does a "
        "patch; wire a patched generator here to see what a defender who knows the patch can do."
    )
    CATEGORY = "AntiPure/LoRA Patching"
    FUNCTION = "protect"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("protected", "difference", "report")
    OUTPUT_TOOLTIPS = (
        "The protected picture, rounded to 8 bits inside the budget. Save it as PNG.",
        "The perturbation around mid-grey; the budget reaches black and white.",
        "Settings and what the protection costs, as text.",
    )
    SEARCH_ALIASES = ["deepfake defence", "proactive defense", "disrupting deepfakes"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        tooltip = "Budget in 8-bit levels: no pixel changes by more. 6.375 is the literature's 0.05 on [-1, 1]."
        step = "Step of each iteration, in 8-bit levels; 1.275 is the literature's 0.01 on [-1, 1]."
        return inputs.declare(
            image=inputs.image("Faces to protect, any size."),
            generator=inputs.wire("GENERATOR", "The network to protect against."),
            edits=inputs.text(ALL_EDITS, "All are disrupted together. " + EDITS_TOOLTIP),
            levels=inputs.number(LEVELS, 0.125, 64.0, 0.125, tooltip),
            steps=inputs.integer(STEPS, 1, 1000, "Iterations of PGD."),
            step_levels=inputs.number(STEP_LEVELS, 0.005, 64.0, 0.005, step),
            seed=inputs.seed("Of the random start."),
            optional={
                "mask": inputs.wire("MASK", "1 where the picture may change; none: everywhere."),
                "labels": labels_input(),
            },
            node_id=True,
        )

    def protect(
        self, image, generator, edits, levels, steps, step_levels, seed, mask=None, labels=None, node_id=None
    ) -> tuple:
        picture, alpha = from_image(image)
        mask = from_mask(mask, picture)
        names = chosen_edits(generator, edits)
        generator = generator.labelled(own_labels(generator, labels, len(picture)))
        host.ready_network(generator)
        device = generator.device
        with Progress("disrupting", node_id) as progress:
            protected = disrupt(
                generator,
                picture.to(device),
                names,
                AttackSettings(levels, steps, None if mask is None else mask.to(device), seed, progress),
                step_levels=step_levels,
            ).cpu()
        lines = [f"Disrupting against {generator.name}: {', '.join(names)}; {levels:g} levels, {steps} steps"]
        values = zip(metrics.linf_levels(picture, protected), metrics.psnr(picture, protected), strict=True)
        for i, (largest, psnr) in enumerate(values):
            lines.append(f"picture {i + 1}: largest change {largest:.0f} levels, PSNR {psnr:.2f} dB")
            if all_forbidden(mask, i):
                lines.append(NOTHING_CHANGED)
        report = "\n".join(lines)
        shown = to_image(protected, alpha), to_image(difference_view(picture, protected, levels))
        host.show_text(report, node_id)
        return *shown, report


class ProceduralFaces:
    DESCRIPTION = (
        "Cartoon portraits drawn from seeds, 64×64: what the bundled generator edits. From seed 1,000,000 on it has "
        "never seen them."
    )
    CATEGORY = "AntiPure/LoRA Patching"
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("faces",)
    OUTPUT_TOOLTIPS = ("A batch of faces, one per seed.",)
    SEARCH_ALIASES = ["toy faces", "dataset", "portraits"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        first = f"Seed of the first face; the next have the next seeds. Held-out faces start at {HELD_OUT:,}."
        return inputs.declare(
            count=inputs.integer(4, 1, 20000, "How many faces."),
            first=inputs.integer(HELD_OUT, 0, 2**53, first),
        )

    def draw(self, count, first) -> tuple:
        with torch.inference_mode(False):
            return (to_image(draw_faces(range(first, first + count), side=SIDE)),)
