"""Train, apply, save and load LoRA patches."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial

import torch

from ..methods.errors import AntiPureError
from ..methods.figures.loss_curve import loss_curve
from ..methods.files import check_writable, safetensors_bytes
from ..methods.lora_patching.diffusion_training import ModelTrainingConfig, train_model_patch
from ..methods.lora_patching.low_rank import INITIALISATIONS, STRONGER
from ..methods.lora_patching.mmfa import MMFA
from ..methods.lora_patching.patch import patched_copy, trained_on_others
from ..methods.lora_patching.save_and_load import load_patch, patch_bytes
from ..methods.lora_patching.standard_lora import kohya_name, standard_lora
from ..methods.lora_patching.training import MODES, PRECISIONS, TrainingConfig, train_patch
from ..methods.lora_patching.warning import (
    DEFAULT_TEXT,
    PLACEMENTS,
    picture_warning,
    text_warning,
    tiled_warning,
)
from . import host, inputs, model_folders, outputs
from .convert import from_image, to_image
from .encoders import borrowed_encoder
from .face_labels import labels_input, own_labels
from .generators import ALL_EDITS, EDITS_TOOLTIP, chosen_edits
from .model_patch import patch_model
from .progress import Progress
from .targets import check_single

log = logging.getLogger(__name__)
CATEGORY = "AntiPure/LoRA Patching"
GATES = ["scalar", "none", "input", "channel"]
FORMATS = ["patch", "standard LoRA"]
GATE_TOOLTIP = (
    "scalar: one learned strength per layer, can be merged into the weights and saved as a standard LoRA. none: "
    "without. input, channel: depend on the picture, cannot be merged."
)


def _rate() -> inputs.Input:
    return inputs.number(1e-3, 1e-6, 1.0, 1e-5, "Adam's step size.", round=1e-6)


def seed_input() -> inputs.Input:
    return inputs.seed("Of the patch, the order and the noise.")


def drawn_warning(text: str, picture, height: int, width: int, placement: str = PLACEMENTS[0], seed: int = 0):
    """The warning of a patch, from text or an IMAGE. seed: the patch's, which a tiled one's place is drawn from."""
    if picture is None:
        draw = partial(text_warning, text=text.replace("\\n", "\n"))
    else:
        rgb, alpha = from_image(picture, "warning picture")
        if alpha is not None:
            rgb = torch.cat([rgb, alpha.permute(0, 3, 1, 2).float()], 1)
        draw = partial(picture_warning, rgb[:1])
    return draw(height, width) if placement == PLACEMENTS[0] else tiled_warning(draw, height, width, seed)


def _last_losses(history: list[dict[str, float]]) -> str:
    """Means over the last twentieth of the steps."""
    last = history[-max(1, len(history) // 20) :]
    return ", ".join(f"{name} {sum(row[name] for row in last) / len(last):.4f}" for name in last[0])


class TrainLoraPatch:
    DESCRIPTION = (
        "Trains a gated low-rank patch for a face-editing network (LoRA Patching, IEEE SPL 2026). defensive: whoever "
        "edits a face with the patched network prints a visible warning on it. evaluation: the patched network "
        "ignores the proactive defence Disrupting, to measure how fragile such defences are."
    )
    CATEGORY = CATEGORY
    FUNCTION = "train"
    RETURN_TYPES = ("LORA_PATCH", "IMAGE", "STRING")
    RETURN_NAMES = ("patch", "loss curve", "report")
    OUTPUT_TOOLTIPS = ("The patch.", "Losses over the steps, logarithmic.", "Settings and last losses, as text.")
    SEARCH_ALIASES = ["deepfake", "lora training", "proactive defense", "watermark"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            generator=inputs.wire("GENERATOR", "The network to patch, itself left as it is."),
            faces=inputs.image("Faces to train on; 1,000 in the paper. Not those you test on."),
            mode=inputs.choice(
                MODES,
                "defensive",
                "defensive: edits carry the warning. evaluation: edits withstand Disrupting, as a measurement of "
                "that defence.",
            ),
            edits=inputs.text(ALL_EDITS, EDITS_TOOLTIP),
            warning_text=inputs.text(DEFAULT_TEXT, "What a defensive patch prints."),
            rank=inputs.integer(0, 0, 256, "0: the paper's, 16 for defensive and 8 for evaluation patches."),
            epochs=inputs.integer(0, 0, 1000, "Times all faces are seen with every edit. 0: the paper's, 5 and 1."),
            gate=inputs.choice(GATES, "scalar", GATE_TOOLTIP),
            batch=inputs.integer(4, 1, 256, "Faces per step."),
            learning_rate=_rate(),
            precision=inputs.choice(PRECISIONS, "fp32", "bf16: faster on most GPUs; losses stay in fp32."),
            seed=seed_input(),
            optional={
                "warning_picture": inputs.image("Dark ink on white, or ink on transparent, instead of text."),
                "visual_encoder": inputs.wire(
                    "CLIP_VISION,VISUAL_ENCODER",
                    "Feature alignment (MMFA) with a vision backbone; the paper: ResNet-50.",
                ),
                "language_encoder": inputs.wire(
                    "CLIP_VISION,VISUAL_ENCODER",
                    "Feature alignment with a vision-language model; the paper: BLIP. CLIP serves.",
                ),
                "state": inputs.text(
                    "", "A name: the training is saved under it now and then, and goes on from there next time."
                ),
                "initialisation": inputs.choice(
                    INITIALISATIONS,
                    STRONGER,
                    "kaiming: both factors at random, as in the paper's code; stronger. identity: the patched network "
                    "starts as the original (B = 0).",
                ),
                "labels": labels_input(),
                "placement": inputs.choice(
                    PLACEMENTS,
                    PLACEMENTS[0],
                    "middle: the warning once, as large as fits. tiled: small and all over the picture, its place "
                    "drawn from the seed; harder to paint over.",
                ),
            },
            advanced=(
                "rank",
                "epochs",
                "gate",
                "batch",
                "learning_rate",
                "precision",
                "state",
                "initialisation",
            ),  # fmt: skip
            node_id=True,
        )

    def train(
        self, generator, faces, mode, edits, warning_text, rank, epochs, gate, batch, learning_rate, precision, seed,
        warning_picture=None, visual_encoder=None, language_encoder=None, state="",
        initialisation=STRONGER, labels=None,
        placement=PLACEMENTS[0], node_id=None,
    ) -> tuple:  # fmt: skip
        pictures, _ = from_image(faces, "training set")
        names = chosen_edits(generator, edits)
        own = own_labels(generator, labels, len(pictures))
        config = TrainingConfig(
            mode=mode, rank=rank or None, epochs=epochs or None, gate=gate, batch=batch, learning_rate=learning_rate,
            precision=precision, seed=seed, initialisation=initialisation,
        )  # fmt: skip
        size = generator.size
        defensive = mode == "defensive"
        warning = drawn_warning(warning_text, warning_picture, size, size, placement, seed) if defensive else None
        state_file = outputs.saved_path(state, ".state") if state else None
        if state_file is not None:
            check_writable(state_file.parent)
        with ExitStack() as borrowed:
            encoders = [
                None if encoder is None else borrowed.enter_context(borrowed_encoder(encoder))
                for encoder in (visual_encoder, language_encoder)
            ]
            host.ready_network(generator)
            with Progress("training a patch", node_id) as progress:
                result = train_patch(
                    generator, pictures, config, warning=warning, mmfa=MMFA(*encoders) if any(encoders) else None,
                    edits=tuple(names), labels=own, progress=progress, state_file=state_file,
                    notes={"placement": placement} if defensive else None,
                )  # fmt: skip
        aligned = "with feature alignment" if any(encoders) else "without feature alignment (no encoder wired)"
        report = (
            f"{mode} patch for {generator.name}, rank {config.patch.rank}, {config.patch.gate} gates\n"
            f"{len(pictures)} faces, {len(names)} edits, {len(result.history)} steps, {aligned}\n"
            f"last losses: {_last_losses(result.history)}"
        )
        host.show_text(report, node_id)
        return result.patch, to_image(loss_curve(result.history)), report


class TrainModelPatch:
    DESCRIPTION = (
        "Trains a defensive patch for a diffusion model: what the patched model generates carries a visible warning. "
        "The paper's defensive patching, carried over to Stable Diffusion; not part of the paper."
    )
    CATEGORY = CATEGORY
    EXPERIMENTAL = True
    FUNCTION = "train"
    RETURN_TYPES = ("LORA_PATCH", "IMAGE", "STRING")
    RETURN_NAMES = ("patch", "loss curve", "report")
    OUTPUT_TOOLTIPS = ("The patch.", "Loss over the steps, logarithmic.", "Settings and last losses, as text.")
    SEARCH_ALIASES = ["stable diffusion", "watermark", "lora training", "warning"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            denoiser=inputs.wire("DENOISER", "From Denoiser from Model; its MODEL is left as it is."),
            pictures=inputs.image("Pictures like those the model will be asked for, at their size."),
            warning_text=inputs.text(DEFAULT_TEXT, "What is printed on every picture."),
            steps=inputs.integer(300, 1, 100000, "Training steps."),
            batch=inputs.integer(1, 1, 64, "Noised pictures per step."),
            rank=inputs.integer(16, 1, 256, "Rank of the patch."),
            gate=inputs.choice(GATES, "scalar", GATE_TOOLTIP),
            learning_rate=_rate(),
            seed=seed_input(),
            optional={"warning_picture": inputs.image("Dark ink on white, or ink on transparent, instead of text.")},
            advanced=("batch", "rank", "gate", "learning_rate"),
            node_id=True,
        )

    def train(
        self, denoiser, pictures, warning_text, steps, batch, rank, gate, learning_rate, seed,
        warning_picture=None, node_id=None,
    ) -> tuple:  # fmt: skip
        picture, _ = from_image(pictures, "training set")
        check_single(denoiser, "have no single network to patch; wire one of them here")
        warning = drawn_warning(warning_text, warning_picture, *picture.shape[-2:])
        config = ModelTrainingConfig(
            rank=rank, steps=steps, batch=batch, gate=gate, learning_rate=learning_rate, seed=seed
        )
        host.ready(denoiser)
        with denoiser.session(), Progress("training a patch", node_id) as progress:
            result = train_model_patch(denoiser, picture, config, warning=warning, progress=progress)
        report = (
            f"defensive patch, rank {rank}, {gate} gates\n{len(picture)} pictures, {steps} steps\n"
            f"last losses: {_last_losses(result.history)}"
        )
        host.show_text(report, node_id)
        return result.patch, to_image(loss_curve(result.history)), report


class LoraPatchApply:
    DESCRIPTION = (
        "Puts a patch on a face-editing network or on a Stable Diffusion MODEL. What is wired in stays as it is; the "
        "outputs are patched copies that share its weights."
    )
    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("GENERATOR", "MODEL")
    RETURN_NAMES = ("generator", "model")
    OUTPUT_TOOLTIPS = ("The patched generator, if one was given.", "The patched MODEL, if one was given.")
    SEARCH_ALIASES = ["lora", "patch", "watermark"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        strength = "1: as trained. 0: not at all."
        return inputs.declare(
            patch=inputs.wire("LORA_PATCH", "The patch, made for this very architecture."),
            strength=inputs.number(1.0, -10.0, 10.0, 0.05, strength),
            optional={
                "generator": inputs.wire("GENERATOR", "The network to patch, or:"),
                "model": inputs.wire(
                    "MODEL",
                    "The diffusion model to patch. Gates that depend on the picture run beside its layers; others "
                    "become ordinary weight patches.",
                ),
            },
        )

    def apply(self, patch, strength, generator=None, model=None) -> tuple:
        if generator is None and model is None:
            raise AntiPureError("Nothing to patch is wired; give a generator or a MODEL.")
        if generator is not None:
            host.ready_network(generator)
            copy = patched_copy(generator, patch, strength)  # first: it refuses another architecture
            if (said := trained_on_others(generator, patch)) is not None:
                log.warning("AntiPure: %s", said)
            generator = host.manage(copy)
        return generator, None if model is None else patch_model(model, patch, strength)


class SaveLoraPatch:
    DESCRIPTION = (
        "Saves a patch below output/antipure_patches, where Load LoRA Patch finds it. 'standard LoRA' writes a file "
        "for the core LoRA loaders instead (scalar or no gates; wire the MODEL): move it to models/loras."
    )
    CATEGORY = CATEGORY
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("Where it was saved.",)
    SEARCH_ALIASES = ["export", "lora file"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            patch=inputs.wire("LORA_PATCH", "The patch."),
            filename_prefix=inputs.text("patch", "A number is added."),
            format=inputs.choice(
                FORMATS,
                FORMATS[0],
                "patch: everything, for this pack (peft's adapter keys). standard LoRA: for other programs and "
                "the core loaders.",
            ),
            optional={"model": inputs.wire("MODEL", "Needed for a standard LoRA: what the patch was made for.")},
            node_id=True,
        )

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix=None) -> bool | str:
        """Asked before any node runs: a training whose patch cannot be saved does not begin."""
        try:
            if isinstance(filename_prefix, str):  # else it is wired
                check_writable(outputs.saved_path(filename_prefix, "").parent)
        except AntiPureError as error:
            return str(error)
        return True

    def save(self, patch, filename_prefix, format, model=None, node_id=None) -> dict:  # noqa: A002
        if format == FORMATS[0]:
            content = patch_bytes(patch)
        elif model is None:
            raise AntiPureError("A standard LoRA needs to know its model; wire the MODEL the patch was made for.")
        else:
            network = model.model.diffusion_model
            known = host.lora_names(model)
            lora = standard_lora(network, patch, name=lambda layer: kohya_name(layer, known))
            content = safetensors_bytes(lora, {"format": "pt"})
        path = outputs.save_new(filename_prefix, ".safetensors", content)
        host.show_text(path.name, node_id)
        return {"ui": {"text": [str(path)]}, "result": (str(path),)}


class LoadLoraPatch:
    DESCRIPTION = (
        "Loads a patch from models/antipure_patches or output/antipure_patches: what Save LoRA Patch wrote, or a "
        "checkpoint of the paper's own code. Only weights are read; files that carry code are refused."
    )
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("LORA_PATCH", "STRING")
    RETURN_NAMES = ("patch", "report")
    OUTPUT_TOOLTIPS = ("The patch.", "What its file says about it.")
    SEARCH_ALIASES = ["lora file"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        names = model_folders.list_models("patches")
        return inputs.declare(
            patch=inputs.file(
                names,
                "A patch that Save LoRA Patch or the paper's own code wrote.",
                absent=model_folders.ABSENT["patches"],
            )
        )

    @classmethod
    def IS_CHANGED(cls, patch=None, **_) -> str:
        return model_folders.model_state("patches", patch)

    def load(self, patch) -> tuple:
        loaded = load_patch(model_folders.find_model("patches", patch))
        notes = ", ".join(f"{key} {value}" for key, value in loaded.metadata.items() if not isinstance(value, dict))
        config = loaded.config
        return loaded, f"rank {config.rank}, {config.gate} gates, {len(loaded.layers)} layers\n{notes}"
