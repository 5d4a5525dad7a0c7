"""AntiPure (Yang et al., ICCV 2025, arXiv 2509.13922): perturbations that outlive diffusion purification.

The paper maximises over ||delta||_inf <= eta

    E_{eps, t~U(1, t_p)} [ L_ddpm + l1 * exp(abar_t - 1) * L_fre + l2 * exp(L_errt) ]

`paper` is that loss. `unrolled` goes back to the paper's stated objective, || Pure(x + delta) - x ||: a few short
purifier steps are unrolled and the change they make to the picture's structure is maximised. `strong` does so in
expectation over timesteps and sizes and with less grey in its steps (`shaping.balance_colours`);
`strong_shaped` puts it where eyes see it least (`shaping.shaped_budget`). `fast` gives `strong` a start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..diffusion.denoiser import Denoiser
from ..errors import AntiPureError

LOOKED_AT = 2**17  # pixels of a large picture that a denoiser is given in a step: 32 tiles of 64×64
SMALLEST_AREA = 64 * 64
TRAINED_AREA = 1024 * 1024


@dataclass(frozen=True)
class Objective:
    """Weights and settings of the four terms. The defaults are the paper's (arXiv 2509.13922), where it gives them.

    ddpm, pfg, etg: weights of L_ddpm, of exp(abar_t - 1) L_fre (lambda 1) and of exp(L_errt) (lambda 2).
    unrolled: weight of the unrolled objective.
    latent: weight of the latent shift over every VAE that is a target (`antipure.latent`), against the other terms as
        a whole, whose gradient is brought to the same size (`attacks.balanced_loss`). What a target has not, a VAE or
        a diffusion model, it is not asked for.
    pull: for the latent term, how much the direction of the shift counts beside its length, which is 1: the cosine to
        the way towards a pattern that is the same for all pictures (`antipure.latent`).
    view_least, views_as_is: the smallest scale of the views that the VAEs are given, and the share of views at 1.
    patch_size: side s of PFG's patches. t_p: timesteps are drawn from 1..t_p. t_err: ETG's higher timestep.
    unrolled_steps, unrolled_t: how many purifier steps are unrolled, and the timestep each noises to.
    unrolled_t_low: each tile draws its timestep from unrolled_t_low..unrolled_t; 0: always unrolled_t.
    turned: share of the tiles that are turned and mirrored at random first (unrolled term only).
    halved: share of the tiles, and of their clean companions, resized to half and back first (unrolled term only).
    luminance: what is left of the gradient's grey part (`shaping.balance_colours`), 1 all of it.
    shaped: whether the budget follows what eyes notice (`shaping.shaped_budget`).
    start_blur: deviation in pixels of the Gaussian whose blurred picture PGD begins at, as far as the ball reaches; 0:
        at the picture.
    step_share: share of the steps asked for that is run, rounded down, at least one.
    first_step: of PGD, as a share of the budget; 0: the loop's own.
    peak_share: the most of the perturbation's energy that one Fourier bin may hold (`kernels.spectrum`); 1: all of it.
        Without it the unrolled objective draws stripes on flat ground, which one blur takes away.
    views_cleaned, tiles_cleaned: the share of the VAEs' views, and of the unrolled term's tiles, in front of which
        stands a cheap cleaner, drawn anew each time (`purification.random_cleaner`).
    tile_share: of the tiles that a step looks at; where it is below 1, never more pixels than `LOOKED_AT`.
    memory: what a gradient of before counts where a step did not look, for every step since (`attacks.balanced_loss`).
    trained_area: pixels that trainers shrink a picture to. Larger ones are protected at that size first, then touched
        up at their own (`carried`); 0: at their own from the start.
    """

    ddpm: float = 1.0
    pfg: float = 0.5
    etg: float = 0.5
    unrolled: float = 0.0
    patch_size: int = 8
    t_p: int = 10
    t_err: int = 100
    unrolled_steps: int = 4
    unrolled_t: int = 20
    unrolled_t_low: int = 0
    turned: float = 0.0
    halved: float = 0.0
    luminance: float = 1.0
    shaped: bool = False
    start_blur: float = 0.0
    step_share: float = 1.0
    latent: float = 0.0
    view_least: float = 0.4
    views_as_is: float = 1 / 3
    first_step: float = 0.0
    peak_share: float = 1.0
    views_cleaned: float = 0.0
    tiles_cleaned: float = 0.0
    tile_share: float = 1.0
    memory: float = 0.0
    trained_area: int = 0
    pull: float = 0.0

    def check_values(self) -> None:
        """Raise `AntiPureError` for settings that make no sense with any target."""
        if not (self.asks_denoiser or self.latent):
            raise AntiPureError("All weights of the objective are 0; give at least one term a weight.")
        if self.patch_size < 2 or self.patch_size % 2:
            raise AntiPureError(f"The patch size is {self.patch_size}; it must be even and at least 2.")
        if not 0 <= self.unrolled_t_low <= self.unrolled_t:
            raise AntiPureError(
                f"unrolled_t_low is {self.unrolled_t_low}; it must lie in 0..{self.unrolled_t}, which is unrolled_t."
            )
        for name in ("turned", "halved", "tiles_cleaned", "views_as_is", "views_cleaned"):
            if not 0 <= getattr(self, name) <= 1:
                what = "views" if name.startswith("views") else "tiles"
                raise AntiPureError(f"{name} is {getattr(self, name):g}; it is a share of the {what}, 0..1.")
        if not 0 <= self.memory <= 1:
            raise AntiPureError(f"memory is {self.memory:g}; it must lie in 0..1, and 0 is none.")
        if self.trained_area and self.trained_area < SMALLEST_AREA:
            raise AntiPureError(
                f"trained_area is {self.trained_area} pixels; it must be at least {SMALLEST_AREA}, or 0 for none."
            )
        if not 0 <= self.luminance <= 1:
            raise AntiPureError(f"luminance is {self.luminance:g}; it must lie in 0..1, and 1 changes nothing.")
        if self.pull < 0:
            raise AntiPureError(f"pull is {self.pull:g}; it is a weight, at least 0.")
        if self.start_blur < 0:
            raise AntiPureError(f"start_blur is {self.start_blur:g}; it is in pixels, at least 0.")
        if not 0 <= self.first_step <= 1:
            raise AntiPureError(f"first_step is {self.first_step:g}; it is a share of the budget, 0..1.")
        for name in ("step_share", "view_least", "peak_share", "tile_share"):
            if not 0 < getattr(self, name) <= 1:
                raise AntiPureError(f"{name} is {getattr(self, name):g}; it must lie in 0..1, above 0.")

    def check(self, denoiser: Denoiser) -> None:
        """Raise `AntiPureError` when a setting cannot be used with this denoiser."""
        self.check_values()
        last = denoiser.timesteps
        if not 1 <= self.t_p <= last:
            raise AntiPureError(f"t_p is {self.t_p}; it must lie in 1..{last} for this denoiser.")
        if self.etg and not self.t_p < self.t_err <= last:
            raise AntiPureError(f"t_err is {self.t_err}; it must lie above t_p ({self.t_p}) and at most at {last}.")
        if self.unrolled and not (self.unrolled_steps >= 1 and 1 <= self.unrolled_t <= last):
            raise AntiPureError(
                f"{self.unrolled_steps} unrolled steps at timestep {self.unrolled_t}: at least 1 step, in 1..{last}."
            )

    @property
    def asks_denoiser(self) -> bool:
        """Whether a term has weight that is one of a diffusion model."""
        return any((self.ddpm, self.pfg, self.etg, self.unrolled))

    def steps(self, asked: int) -> int:
        """How many of the steps asked for are run."""
        return min(asked, max(1, int(asked * self.step_share)))


UNROLLED = Objective(ddpm=0, pfg=0, etg=0, unrolled=1)
STRONG = replace(UNROLLED, unrolled_t=30, unrolled_t_low=10, halved=0.25, luminance=0.25)
# What `strong` ends in looks smoother than the picture: it takes away as much detail as the budget lets it, and the
# purifier the rest. Where an ascent begins there, its steps arrange what is left.
ROBUST = replace(
    STRONG,
    latent=2,
    start_blur=1.0,
    first_step=0.375,
    peak_share=0.005,
    views_cleaned=0.25,
    tiles_cleaned=0.5,
    tile_share=0.5,
    memory=0.8,
    trained_area=TRAINED_AREA,
)
PRESETS = {
    "robust": ROBUST,
    "robust_fast": replace(ROBUST, step_share=0.25, first_step=0.6),
    "robust_set": replace(ROBUST, pull=2.0),
    "strong": STRONG,
    "strong_shaped": replace(STRONG, shaped=True),
    "unrolled": UNROLLED,
    "paper": Objective(),
    "fast": replace(STRONG, start_blur=1.0, step_share=0.09),
}
