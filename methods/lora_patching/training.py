"""Training a LoRA patch (arXiv 2510.03747): a bi-level game against the Disrupting attack.

For every batch x of faces and every edit of the generator G, patched to G':

    inner:  x_adv = PGD from a random start, maximising MSE(G'(x_adv), G'(x))        (attack.pgd, 10 steps)
    outer:  minimise MSE(G'(x), y*) + MSE(G'(x_adv), y*) + MMFA                       (one Adam step)

y* = G(x) of the untouched generator ("evaluation"), or clamp(2 W + G(x), -1, 1) with a warning picture W
("defensive", the default): then whoever edits a picture with the patched generator prints the warning on it.

Every step draws from its own random stream, a function of the seed and the step's number, so that a training that
was interrupted goes on to the very patch it would have reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import fingerprint, weights_digest
from ..attacks.pgd import pgd
from ..attacks.settings import AttackSettings
from ..errors import AntiPureError, sizes
from ..generators.generator import Generator
from ..memory import enough_memory
from ..pictures import check_picture, random_stream, to_picture, to_pixels
from ..precision import autocast
from ..progress import Progress, silent
from .disrupting import LEVELS, STEP_LEVELS, STEPS, disruption_loss
from .low_rank import INITIALISATIONS, STRONGER, PatchConfig
from .mmfa import MMFA
from .patch import WEIGHTS, AppliedPatch, LoraPatch, new_patch
from .training_state import Snapshot, digest, load_state, save_state, snapshot
from .warning import text_warning, warned

MODES = ("defensive", "evaluation")
PRECISIONS = ("fp32", "bf16")
SMALLEST_FACE = 16


@dataclass(frozen=True)
class TrainingConfig:
    """Settings; the defaults are the paper's.

    mode: "defensive" (rank 16, 5 epochs) or "evaluation" (rank 8, 1 epoch). rank, epochs: None takes the mode's.
    gate, alpha: as in `PatchConfig`. inner_steps, levels, step_levels: the attack inside, in 8-bit
    levels as `disrupting.disrupt`.
    learning_rate, betas: Adam's. batch: faces per step. precision: "fp32", or "bf16" for autocast in the networks
    (losses stay in fp32). seed: of the patch, the order of the faces and the attacks.
    preview_every: steps between preview pictures, 0 for none. save_every: steps between saved states.
    initialisation: of the factors, as for `patch.new_patch`.
    """

    mode: str = "defensive"
    rank: int | None = None
    epochs: int | None = None
    gate: str = "scalar"
    alpha: float = 2.0
    inner_steps: int = STEPS
    levels: float = LEVELS
    step_levels: float = STEP_LEVELS
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    batch: int = 4
    precision: str = "fp32"
    seed: int = 0
    preview_every: int = 10
    save_every: int = 200
    initialisation: str = STRONGER

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise AntiPureError(f"There is no mode '{self.mode}'; train a {' or '.join(MODES)} patch.")
        if self.precision not in PRECISIONS:
            raise AntiPureError(f"The precision '{self.precision}' is unknown; choose {' or '.join(PRECISIONS)}.")
        if self.initialisation not in INITIALISATIONS:
            raise AntiPureError(
                f"There is no initialisation '{self.initialisation}'; choose {' or '.join(INITIALISATIONS)}."
            )
        for name in ("inner_steps", "batch", "save_every", "total_epochs"):
            if getattr(self, name) < 1:
                raise AntiPureError(f"{name.removeprefix('total_')} is {getattr(self, name)}; at least 1 is needed.")
        if not (0 < self.step_levels <= 255 and 0 < self.levels <= 255):
            raise AntiPureError(
                f"The attack inside has steps of {self.step_levels:g} within {self.levels:g} levels; both must lie in "
                "0..255."
            )
        if not self.learning_rate > 0:
            raise AntiPureError(f"The learning rate is {self.learning_rate}; it must be above 0.")
        _ = self.patch

    @property
    def patch(self) -> PatchConfig:
        rank = self.rank if self.rank is not None else (16 if self.mode == "defensive" else 8)
        return PatchConfig(rank, self.alpha, self.gate)

    @property
    def total_epochs(self) -> int:
        return self.epochs if self.epochs is not None else (5 if self.mode == "defensive" else 1)


@dataclass(frozen=True)
class TrainingResult:
    """patch: the trained patch. history: one dict per step with "clean", "attacked", "mmfa" and "total" loss."""

    patch: LoraPatch
    history: list[dict[str, float]]


def train_patch(
    generator: Generator,
    faces: Tensor,
    config: TrainingConfig | None = None,
    *,
    warning: Tensor | None = None,
    mmfa: MMFA | None = None,
    edits: tuple[str, ...] | None = None,
    labels: Tensor | None = None,
    notes: Mapping[str, object] | None = None,
    progress: Progress = silent,
    state_file: str | Path | None = None,
) -> TrainingResult:
    """Train a patch for a generator on faces; the generator is left as it was, whatever happens.

    generator: has `network`, `edits`, `size`, `device` and `edit(pixels, edit)`. faces: N×3×H×W in 0..1; others than
        the generator's size are cropped to the middle and resized.
    warning: 1×3×size×size in [-1, 1] (`warning.text_warning`); None writes FAKE. Only for the defensive mode.
    mmfa: the alignment terms; None trains without, and the patch's metadata says so.
    edits: those to train on, all by default. labels: what each face has, N×attributes, as for `Generator.labelled`.
    notes: plain values to be written into the patch's metadata, too. progress: its picture, now and then, is
        1×3×H×3W: a face, its edit by the patched generator, and the same after the attack.
    state_file: if given, the state is saved there regularly and on cancel, and training goes on from it.
    Raises `AntiPureError` for faces, edits, a warning or a state that cannot be used, and when memory runs out.
    """
    config = config or TrainingConfig()
    edits = tuple(generator.edits) if edits is None else tuple(edits)
    _check_edits(generator, edits)
    faces = fit_faces(faces, generator.size)
    if config.mode == "defensive":
        warning = text_warning(*faces.shape[-2:]) if warning is None else warning
        if tuple(warning.shape) != (1, *faces.shape[1:]):
            wanted = sizes((1, *faces.shape[1:]))
            raise AntiPureError(f"The warning has shape {sizes(warning.shape)}; for these faces it must be {wanted}.")
    elif warning is not None:
        raise AntiPureError("An evaluation patch carries no warning; train a defensive one, or give no warning.")
    if labels is not None and len(labels) != len(faces):
        raise AntiPureError(f"There are labels for {len(labels)} pictures, not for {len(faces)}; give one each.")
    if labels is not None:
        generator.labelled(labels)  # whether it takes any
    made_for = fingerprint(generator), weights_digest(generator)
    # ComfyUI runs prompts in inference mode; clones made outside it are ordinary tensors.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        enough_memory("a training step", "use a smaller batch, bf16, or close other programs"),
    ):
        applied = new_patch(generator, config.patch, config.seed, initialisation=config.initialisation)
        try:
            applied.evaluate()
            run = _Run(generator, applied, faces.clone(), edits, config, warning, mmfa, made_for, state_file, labels)
            run.train(progress)
            result = run.result()
            patch = replace(result.patch, metadata={**result.patch.metadata, **(notes or {})})
            return replace(result, patch=patch)
        finally:
            applied.remove()


def fit_faces(faces: Tensor, size: int | None) -> Tensor:
    """Faces N×3×H×W in 0..1 as N×3×size×size: the middle square, resized. None keeps their size.

    Raises `AntiPureError` for no faces, grayscale ones, values outside 0..1, and ones too small to learn from.
    """
    if faces.ndim == 4 and len(faces) == 0:
        raise AntiPureError("There are no faces to train on; give at least one picture.")
    if faces.ndim == 4 and faces.shape[1] == 1:
        raise AntiPureError("The faces are grayscale; convert them to RGB (three channels).")
    check_picture(faces, "training set")
    if float(faces.min()) < -1e-3 or float(faces.max()) > 1 + 1e-3:
        raise AntiPureError("The faces hold values outside 0..1; give pictures, not pixels in -1..1 or 0..255.")
    height, width = faces.shape[-2:]
    needed = max(SMALLEST_FACE, (size or 0) // 2)
    if min(height, width) < needed:
        raise AntiPureError(
            f"The faces are {height}×{width}; the smallest this generator can use is {needed}×{needed}."
        )
    if size is None or (height, width) == (size, size):
        return faces.float().clamp(0, 1)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = faces[..., top : top + side, left : left + side].float()
    parts = [F.interpolate(p, (size, size), mode="bilinear", antialias=True) for p in middle.split(64)]
    return torch.cat(parts).clamp(0, 1)


class _Run:
    """One training: what is fixed, how far it is, and a step."""

    def __init__(
        self,
        generator: Generator,
        applied: AppliedPatch,
        faces: Tensor,
        edits: tuple[str, ...],
        config: TrainingConfig,
        warning: Tensor | None,
        mmfa: MMFA | None,
        made_for: tuple[str, str],
        state_file: str | Path | None,
        labels: Tensor | None,
    ):
        self.labels, self.known = labels, generator  # `known`: the generator as it knows the faces of a batch
        self.generator, self.applied, self.faces, self.edits, self.config = generator, applied, faces, edits, config
        self.device = torch.device(generator.device)
        self.warning = None if warning is None else warning.clone().float().to(self.device)
        self.mmfa = None if mmfa is None else mmfa.to(self.device)
        self.architecture, self.weights = made_for
        self.state_file = None if state_file is None else Path(state_file)
        self.parameters = applied.parameters()
        self.optimizer = torch.optim.Adam(self.parameters, config.learning_rate, config.betas)
        self.history: list[dict[str, float]] = []
        self.whole: Snapshot | None = None  # after the latest whole step, where there is a file for it
        self.batches = -(-len(faces) // config.batch)
        self.total = config.total_epochs * self.batches * len(edits)
        self._check_gradients()
        if self.state_file is not None and self.state_file.exists():
            self.history = load_state(self.state_file, self._identity(), self.parameters, self.optimizer)
            if len(self.history) > self.total:
                raise AntiPureError(
                    f"{self.state_file} holds {len(self.history)} steps, more than the {self.total} asked for; ask for "
                    "more epochs or give another file."
                )

    def train(self, progress: Progress) -> None:
        """All steps that are left."""
        try:
            for step in range(len(self.history), self.total):
                epoch, rest = divmod(step, self.batches * len(self.edits))
                index, edit = divmod(rest, len(self.edits))
                losses, outputs = self._step(step, self._batch(epoch, index), self.edits[edit])
                self.history.append(losses)
                if self.state_file:
                    # Adam writes into its tensors, and Ctrl-C may come between any two of them: what is saved is
                    # always this copy, never the tensors themselves.
                    self.whole = snapshot(self.parameters, self.optimizer, step + 1)
                every = self.config.preview_every
                show = every and (step % every == 0 or step + 1 == self.total)
                picture = to_picture(torch.cat(outputs, 3)).cpu() if show else None
                progress(step + 1, self.total, picture, losses["total"])
                if (step + 1) % self.config.save_every == 0:
                    self._save()
        finally:
            self._save()

    def _batch(self, epoch: int, index: int) -> Tensor:
        """Batch number `index` of an epoch, as pixels: every epoch has its own order."""
        order = torch.randperm(len(self.faces), generator=random_stream(self.config.seed, 1, epoch))
        chosen = order[index * self.config.batch : (index + 1) * self.config.batch]
        if self.labels is not None:
            self.known = self.generator.labelled(self.labels[chosen])
        return to_pixels(self.faces[chosen].to(self.device))

    def _edit(self, pixels: Tensor, edit: str) -> Tensor:
        with autocast(self.device, torch.bfloat16 if self.config.precision == "bf16" else torch.float32):
            output = self.known.edit(pixels, edit)
        return output.float()

    def _step(self, step: int, x: Tensor, edit: str) -> tuple[dict[str, float], list[Tensor]]:
        """One Adam step; its losses, and the first face with its two outputs."""
        with torch.no_grad(), self.applied.bypassed():
            target = self._edit(x, edit)
            if self.warning is not None:
                target = warned(target, self.warning)
        x_adv = self._attack(step, x, edit)
        clean, attacked = self._edit(torch.cat([x, x_adv]), edit).chunk(2)
        terms = {"clean": F.mse_loss(clean, target), "attacked": F.mse_loss(attacked, target)}
        if self.mmfa is not None:
            features = self.mmfa.features(target)
            terms["mmfa"] = self.mmfa(clean, features) + self.mmfa(attacked, features)
        total = sum(terms.values(), torch.zeros((), device=self.device))
        losses = {name: float(term.detach()) for name, term in {**terms, "total": total}.items()}
        if not math.isfinite(losses["total"]):
            raise AntiPureError(f"The loss is no longer finite at step {step + 1}; use fp32 or a lower learning rate.")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return losses, [x[:1], clean[:1].detach(), attacked[:1].detach()]

    def _attack(self, step: int, x: Tensor, edit: str) -> Tensor:
        """The inner maximisation. The patch is frozen, and folded into the weights where its gates allow it."""
        config = self.config
        seed = int(torch.randint(2**31, (), generator=random_stream(config.seed, 2, step)))
        with _frozen(self.parameters), self.applied.folded():
            attacked = pgd(
                to_picture(x),
                partial(disruption_loss, [partial(self._edit, edit=edit)]),
                AttackSettings(config.levels, config.inner_steps, seeds=seed, keep_grey=False),
                step_levels=config.step_levels,
                random_start=True,
                decay=False,
                rounded=False,
                together=True,
            )
        return to_pixels(attacked)

    def _check_gradients(self) -> None:
        x = to_pixels(self.faces[:1].to(self.device)).requires_grad_()
        output = self._edit(x, self.edits[0])
        if output.shape != x.shape:
            raise AntiPureError(
                f"The generator turns {sizes(x.shape)} into {sizes(output.shape)}; its edits must keep the size."
            )
        if not output.requires_grad:
            raise AntiPureError("The generator's edits pass no gradient to the picture, so nothing can be learned.")

    def _identity(self) -> dict[str, object]:
        """What must be the same for a saved state to go on: all but the length and the reporting."""
        settings = asdict(self.config)
        for name in ("epochs", "preview_every", "save_every"):
            settings.pop(name)
        if self.config.initialisation == INITIALISATIONS[0]:  # states from before there was a choice go on
            settings.pop("initialisation")
        if self.labels is not None:
            settings["labels"] = digest(self.labels)
        return {
            **settings,
            "rank": self.config.patch.rank,
            "architecture": self.architecture,
            WEIGHTS: self.weights,
            "edits": list(self.edits),
            "faces": digest(self.faces),
            "warning": None if self.warning is None else digest(self.warning),
            "mmfa": None if self.mmfa is None else self.mmfa.describe(),
        }

    def _save(self) -> None:
        """The latest whole step, if one was done since the file was read."""
        if self.state_file and self.whole is not None:
            save_state(self.state_file, self._identity(), self.whole, self.history)

    def result(self) -> TrainingResult:
        config = self.config
        metadata = {
            "generator": str(getattr(self.generator, "name", "")),
            WEIGHTS: self.weights,
            "mode": config.mode,
            "edits": list(self.edits),
            "faces": len(self.faces),
            "size": list(self.faces.shape[-2:]),
            "epochs": config.total_epochs,
            "steps": len(self.history),
            "batch": config.batch,
            "learning_rate": config.learning_rate,
            # Files say it on [-1, 1], as the paper does.
            "inner": {
                "steps": config.inner_steps,
                "step": config.step_levels / 127.5,
                "eps": config.levels / 127.5,
            },
            "precision": config.precision,
            "seed": config.seed,
            "initialisation": config.initialisation,
            **({} if self.labels is None else {"labels": "of each picture"}),
            "mmfa": "off" if self.mmfa is None else self.mmfa.describe(),
        }
        patch = LoraPatch(config.patch, self.applied.tensors(), self.architecture, metadata)
        return TrainingResult(patch, self.history)


@contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """No graph and no gradients for the parameters, only for pixels."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _check_edits(generator: Generator, edits: tuple[str, ...]) -> None:
    if not edits:
        raise AntiPureError("No edits were chosen to train on; give at least one of the generator's.")
    unknown = [edit for edit in edits if edit not in generator.edits]
    if unknown:
        raise AntiPureError(f"The generator has no edit '{unknown[0]}'; it has {', '.join(generator.edits)}.")
