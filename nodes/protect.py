"""AntiPure Protect and AntiPure Objective."""

from __future__ import annotations

from dataclasses import replace

from ..methods.antipure.objective import PRESETS, Objective
from ..methods.attacks.ensemble import Target, VaeTargets, bundled_vae_targets, combine
from ..methods.attacks.settings import AttackSettings
from ..methods.attacks.visibility import FULL
from ..methods.attacks.visibility import SETTINGS as VISIBILITIES
from ..methods.gradients.reproducible import reproducible as reproducibly
from ..methods.metrics import image as metrics
from ..methods.protections import NAMES, NO_PROTECTION, apply_protection, lacks_vae, needs_denoiser, used_terms
from . import host, inputs
from .convert import NOTHING_CHANGED, all_forbidden, difference_view, from_image, from_mask, to_image
from .progress import Progress

DEFAULT = "robust"


class Protect:
    DESCRIPTION = (
        "Adds a small perturbation that disturbs diffusion purification of the picture, and with it the customization "
        "(DreamBooth, LoRA) that follows. Every pixel stays within the given number of 8-bit levels. What survives is "
        "to be measured: run Diffusion Purify and Image Metrics behind it."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "protect"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("image", "perturbation view", "report")
    OUTPUT_TOOLTIPS = (
        "The protected picture, 8-bit exact. Save it as PNG.",
        "The perturbation around mid-grey; black and white are the full budget.",
        "Budget, PSNR and SSIM of each picture.",
    )
    SEARCH_ALIASES = [
        *("protect image", "style protection", "protect art", "anti ai", "poison", "nightshade", "glaze", "mist"),
        *("anti-dreambooth", "adversarial perturbation", "cloak"),
    ]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return inputs.declare(
            image=inputs.image("Pictures to protect, any size. Alpha passes through untouched."),
            denoiser=inputs.wire(
                "DENOISER", "The model whose purification is to be disturbed, VAE Targets, or several combined."
            ),
            preset=inputs.choice(
                NAMES,
                DEFAULT,
                "robust: moves what a trainer's VAE makes of the picture, at the sizes trainers use, and what is left "
                "after purifiers, both at once; wire VAE Targets for the VAEs you know, else the pack's own encoder "
                "stands in. robust_fast: a quarter of its steps. robust_set: robust for several pictures of one "
                "subject, whose latents it moves the same way. strong: unrolls the purifier and wipes out "
                "what it would leave. strong_shaped: the same, less where eyes see it. unrolled: strong's first "
                "version. fast: strong from a smoother start, in a tenth of the steps. paper: the published AntiPure "
                "loss. random, shift, blocks, smooth: controls of the same budget without any adversarial structure, "
                "to compare with. advdm, photoguard, mist, "
                "anti_dreambooth, simac, pid: published protections, to compare with; photoguard, mist_textural and "
                "pid need VAE Targets or Denoiser from Model, mist the latter. none: the picture itself, in 8 bits.",
            ),
            levels=inputs.number(
                8.0,
                0.25,
                64.0,
                0.25,
                "Largest change of any pixel, in 8-bit levels of 255. 8 is usual, 16 the paper's larger setting.",
            ),
            steps=inputs.integer(40, 1, 10000, "Gradient steps. More than 100 add little; the controls need none."),
            seed=inputs.seed(
                "Noise and tile offsets. Same seed and machine, same bytes; a picture's result does not depend on "
                "its place in the batch."
            ),
            optional={
                "mask": inputs.wire(
                    "MASK",
                    "1 where the picture may change, 0 where it must not; values between scale the budget. The "
                    "empty 64×64 mask LoadImage gives for opaque pictures counts as no mask.",
                ),
                "objective": inputs.wire("OBJECTIVE", "Own weights and settings; replaces the preset's objective."),
                "visibility": inputs.choice(
                    VISIBILITIES,
                    FULL,
                    "How much may show. full: the whole budget everywhere. balanced: less of it, and less colour, on "
                    "flat ground, where eyes see most. gentle: hardly any there; edges and texture carry it. Works "
                    "with every preset, and costs some of the effect.",
                ),
                "reproducible": inputs.boolean(
                    False,
                    "On a GPU: the same seed gives the same bytes whatever else is loaded, slower. Without it, runs "
                    "there differ slightly. A CPU needs no switch.",
                ),
            },
            node_id=True,
        )

    def protect(
        self,
        image,
        denoiser,
        preset,
        levels,
        steps,
        seed,
        mask=None,
        objective=None,
        visibility=FULL,
        reproducible=False,
        node_id=None,
    ) -> tuple:
        picture, alpha = from_image(image)
        mask = from_mask(mask, picture)
        settings = AttackSettings(levels, steps, mask, seed, visibility=visibility)
        protection = preset if objective is None else objective
        objective = PRESETS.get(preset) if objective is None else objective  # None: no objective of ours
        limit, used = None, []
        if needs_denoiser(protection):
            if lacks_vae(protection, denoiser):
                denoiser, used = with_bundled_vae(denoiser), ["no VAE wired: the pack's own encoder"]
            used += used_terms(protection, denoiser)  # refuses what does not fit before any model is loaded
            host.ready(denoiser)
            device = denoiser.device
            networks = host.networks_of(denoiser)
            with (
                reproducibly(reproducible and device.type != "cpu"),
                denoiser.session() as batching,
                Progress("protecting", node_id, networks, batching) as progress,
            ):
                progress.begin(picture[:1], len(picture) * (steps if objective is None else objective.steps(steps)))
                settings = replace(settings, mask=None if mask is None else mask.to(device), progress=progress)
                protected = apply_protection(protection, picture.to(device), denoiser, settings).cpu()
            limit = batching.limit
        else:
            protected = apply_protection(protection, picture, None, settings)
        name = "own objective" if isinstance(protection, Objective) else preset
        run = steps if objective is None else objective.steps(steps)
        count = f"{steps}" if run == steps else f"{run} of {steps}"
        if visibility != FULL and name != NO_PROTECTION:
            used = [f"visibility {visibility}", *used]
        report = _report(picture, protected, mask, name, levels, count, seed, used)
        if limit is not None:
            report += f"\nran out of memory once,\nwent on with at most {limit} tiles at a time"
        shown = to_image(protected, alpha), to_image(difference_view(picture, protected, levels))
        host.show_text(report, node_id)
        return *shown, report


def with_bundled_vae(target: Target) -> Target:
    """A target and the encoder that ships with the pack, for the latent term."""
    (encoder,) = bundled_vae_targets().autoencoders
    return combine(target, VaeTargets((host.manage(encoder),)), "mean")


def _report(picture, protected, mask, name: str, levels: float, steps: str, seed: int, used: list[str]) -> str:
    lines = ["no protection" if name == NO_PROTECTION else f"{name}, {levels:g} levels, {steps} steps, seed {seed}"]
    lines += used
    rows = zip(
        metrics.linf_levels(picture, protected),
        metrics.psnr(picture, protected),
        metrics.ssim(picture, protected),
        strict=True,
    )
    for i, (largest, psnr, ssim) in enumerate(rows):
        if len(picture) > 1:
            lines.append(f"picture {i + 1}:")
        if all_forbidden(mask, i):
            lines.append(NOTHING_CHANGED)
        lines += [f"largest change {largest:.0f} levels", f"PSNR {psnr:.2f} dB, SSIM {ssim:.4f}"]
    return "\n".join(lines)  # short lines: nodes break long ones within words


class ObjectiveSettings:
    DESCRIPTION = (
        "Own objective for AntiPure Protect: weights of the paper's three terms and of the unrolled purifier, and "
        "of the latent shift over VAEs, and their settings. The defaults are the paper's loss."
    )
    CATEGORY = "AntiPure"
    FUNCTION = "build"
    RETURN_TYPES = ("OBJECTIVE",)
    RETURN_NAMES = ("objective",)
    OUTPUT_TOOLTIPS = ("For the objective input of AntiPure Protect.",)
    SEARCH_ALIASES = ["pfg", "etg", "patch-wise frequency guidance", "erroneous timestep guidance"]

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        default = Objective()

        def weight(name: str, tooltip: str) -> inputs.Input:
            return inputs.number(getattr(default, name), -100.0, 100.0, 0.05, tooltip)

        def whole(name: str, top: int, tooltip: str, step: int = 1) -> inputs.Input:
            return inputs.integer(getattr(default, name), step, top, tooltip, step=step)

        def share(name: str, tooltip: str) -> inputs.Input:
            return inputs.number(getattr(default, name), 0.0, 1.0, 0.05, tooltip)

        return inputs.declare(
            ddpm=weight("ddpm", "Weight of L_ddpm, the model's own denoising loss."),
            pfg=weight("pfg", "Weight of Patch-wise Frequency Guidance (the paper's lambda 1)."),
            etg=weight("etg", "Weight of Erroneous Timestep Guidance (the paper's lambda 2)."),
            unrolled=weight("unrolled", "Weight of the unrolled purifier, the term of the preset 'strong'."),
            patch_size=whole("patch_size", 64, "Side of PFG's patches in pixels, even.", 2),
            t_p=whole("t_p", 1000, "Timesteps of the paper's terms are drawn from 1 to this one."),
            t_err=whole("t_err", 1000, "The erroneous timestep of ETG; above t_p."),
            unrolled_steps=whole("unrolled_steps", 16, "Purifier steps that are unrolled; memory grows with it."),
            unrolled_t=whole("unrolled_t", 1000, "Timestep each unrolled step noises to."),
            optional={
                "unrolled_t_low": inputs.integer(
                    default.unrolled_t_low,
                    0,
                    1000,
                    "Each tile draws its timestep from here to unrolled_t; 0: always unrolled_t.",
                ),
                "turned": share("turned", "Share of the tiles turned and mirrored before they are purified."),
                "halved": share("halved", "Share of the tiles resized to half and back before they are purified."),
                "luminance": share("luminance", "What is left of the gradient's grey part; 1 all, strong has less."),
                "shaped": inputs.boolean(
                    default.shaped,
                    "Less budget where eyes see most: smooth mid-tones. Texture, edges and the dark keep all of it.",
                ),
                "latent": inputs.number(
                    default.latent,
                    0.0,
                    100.0,
                    0.05,
                    "Weight of the latent shift over every wired VAE, against all other terms together; gradients "
                    "are brought to one size first.",
                ),
                "view_least": inputs.number(
                    default.view_least, 0.05, 1.0, 0.05, "The smallest scale a trainer's view has (latent term)."
                ),
                "views_as_is": inputs.number(
                    default.views_as_is,
                    0.0,
                    1.0,
                    0.01,
                    "Share of the views at the picture's own size (latent term).",
                    round=1e-6,
                ),
                "peak_share": inputs.number(
                    default.peak_share,
                    0.0001,
                    1.0,
                    0.0001,
                    "The most of the perturbation's energy that one Fourier bin may hold, against stripes; 1: all.",
                ),
                "first_step": inputs.number(
                    default.first_step, 0.0, 1.0, 0.05, "The first step as a share of the budget; 0: an eighth."
                ),
                "start_blur": inputs.number(
                    default.start_blur,
                    0.0,
                    10.0,
                    0.1,
                    "Begin at the picture blurred by so many pixels, as far as the budget reaches; 0: at the picture.",
                ),
                "views_cleaned": share(
                    "views_cleaned", "Share of the VAEs' views that somebody filtered cheaply first."
                ),
                "tiles_cleaned": share(
                    "tiles_cleaned", "Share of the tiles filtered cheaply before they are purified."
                ),
                "tile_share": inputs.number(
                    default.tile_share, 0.01, 1.0, 0.01, "Share of the tiles that a step looks at; 1: all of them."
                ),
                "memory": share(
                    "memory", "What a gradient of before counts where a step did not look, each step anew."
                ),
                "trained_area": inputs.integer(
                    default.trained_area,
                    0,
                    2**26,
                    "Larger pictures are protected at this many pixels first, then touched up; 0: never.",
                ),
                "pull": inputs.number(
                    default.pull,
                    0.0,
                    100.0,
                    0.5,
                    "How much the direction of the latent shift counts beside its length, which is 1: towards one "
                    "pattern, the same for all pictures (latent term); 0: any direction.",
                ),
            },
        )

    def build(self, **settings) -> tuple:
        return (Objective(**settings),)
