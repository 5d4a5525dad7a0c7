"""The error rates of the demo model's identity judge on persons it was never trained on.

    python -m tools.draw_judge_portraits --out folder --persons 60 --held-out
    python -m tools.measure_portrait_judge --people folder

The first half of each person's pictures, clean, are the reference (as a subject's pictures are), the others are judged:
as drawn, after a round trip through the demo model's autoencoder, and after one whose latents were disturbed (noise of
.35 of their deviation). One by one and as a mean of them: d' between own and others' references, rank 1 (the nearest
reference is the own one), the equal error rate with a 95 % interval (bootstrap over persons); for single pictures
against single pictures, too. Then portraits called none, and pictures without a portrait called one, by kind.

--pool (of `tools.draw_pool`) adds what the demo model itself draws: the persons it knows by name, four pictures each,
against drawn portraits of all of those. Here the judge has seen the persons, and what is measured is the model, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from antipure.methods.figures.text_table import text_table
from antipure.methods.files import BUNDLED_FOLDER
from antipure.methods.metrics.portrait_judge import (
    BUNDLED,
    DIMENSIONS,
    SIDE,
    THRESHOLD,
    PortraitJudge,
    d_prime,
    read_judge,
)
from torch import Tensor, nn

from tools import judge_pictures
from tools.draw_judge_portraits import read_people
from tools.latent_networks import CHANNELS, Conditions, MMDiT
from tools.latent_pool import KNOWN, SIZES
from tools.latent_training import read_model
from tools.train_latent_model import sample
from tools.train_portrait_judge import demo_autoencoder, pool_people, reduced, textures, through_autoencoder

RESAMPLED = 200
HEAD = ("judged", "own pairs", "own", "others", "d'", "rank 1", "equal error (95 %)")


def equal_error_rate(genuine: Tensor, impostor: Tensor) -> float:
    """Where as many impostors are let in as genuine ones are kept out; linear between the values seen."""
    values = torch.cat([genuine, impostor]).unique()
    kept_out = torch.searchsorted(genuine.sort().values, values).double() / len(genuine)
    let_in = 1 - torch.searchsorted(impostor.sort().values, values).double() / len(impostor)
    first = int((kept_out >= let_in).nonzero()[0, 0]) if (kept_out >= let_in).any() else len(values) - 1
    if first == 0:
        return float((kept_out[0] + let_in[0]) / 2)
    below, above = let_in[first - 1] - kept_out[first - 1], kept_out[first] - let_in[first]
    share = below / (below + above) if below + above > 0 else torch.tensor(0.5)
    return float(torch.lerp(kept_out[first - 1], kept_out[first], share.double()))


def split(cosines: Tensor, persons: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Own and others' values among chosen persons. cosines: P×K×P×L; same: K×L, which pairs of one person count."""
    part = cosines[persons][:, :, persons]
    own = persons[:, None] == persons[None]
    genuine = torch.stack([part[i, :, i][same] for i in range(len(persons))]).flatten()
    return genuine, part.permute(0, 2, 1, 3)[~own].flatten()


def row(name: str, judged: Tensor, references: Tensor, alike: bool = False) -> list[str]:
    """One line: embeddings P×K×D against P×L×D. alike: both are the same pictures, and none is compared with itself."""
    cosines = torch.einsum("pkd,qld->pkql", judged, references).double()
    persons, kinds = len(judged), cosines.shape[1::2]
    same = torch.ones(kinds, dtype=torch.bool)
    if alike:
        same = same.triu(1)
    genuine, impostor = split(cosines, torch.arange(persons), same)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(RESAMPLED):
        chosen = torch.randint(persons, (persons,), generator=generator)
        drawn.append(equal_error_rate(*split(cosines, chosen, same)))
    low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    nearest = (cosines[..., 0].argmax(2) == torch.arange(persons)[:, None]).double().mean()
    rate = equal_error_rate(genuine, impostor)
    return [
        name,
        str(len(genuine)),
        f"{genuine.mean():.3f}",
        f"{impostor.mean():.3f}",
        f"{d_prime(genuine, impostor):.2f}",
        "" if alike else f"{100 * nearest:.1f} %",
        f"{100 * rate:.1f} % ({100 * low:.1f}..{100 * high:.1f})",
    ]


def identities(judge: PortraitJudge, held: dict[str, Tensor], versions: dict[str, Tensor]) -> str:
    shots = int(held["who"].bincount(minlength=1).max())
    persons = len(held["who"]) // shots
    half = shots // 2

    def embedded(pictures: Tensor) -> Tensor:
        return judge.embed_all(pictures.float() / 255).view(persons, shots, -1)

    clean = embedded(held["pictures"])
    references = F.normalize(clean[:, :half].mean(1, keepdim=True), dim=-1)
    lines = [row("clean: single with single", clean, clean, alike=True)]
    for name, pictures in versions.items():
        other = embedded(pictures)[:, half:]
        lines.append(row(f"{name}: single with mean of {half}", other, references))
        mean = F.normalize(other.mean(1, keepdim=True), dim=-1)
        lines.append(row(f"{name}: mean of {shots - half} with mean of {half}", mean, references))
    return text_table(HEAD, lines)


def portraits(judge: PortraitJudge, versions: dict[str, Tensor], others: dict[str, Tensor]) -> str:
    def share(pictures: Tensor) -> Tensor:
        return (judge.portrait_probability(pictures.float() / 255) >= THRESHOLD).double()

    lines = [[f"portraits, {name}", str(len(p)), f"{100 * (1 - share(p).mean()):.1f} % missed"]
             for name, p in versions.items()]  # fmt: skip
    lines += [[f"no portrait: {k}", str(len(p)), f"{100 * share(p).mean():.1f} % taken for one"]
              for k, p in others.items()]  # fmt: skip
    return text_table(("pictures", "number", "errors"), lines)


@torch.no_grad()
def drawn_by_name(folder: Path, each: int = 4) -> Tensor:
    """What the demo model draws when told a person's name alone: (KNOWN·each)×3×128×128 uint8."""
    both, network = nn.ModuleDict({"model": MMDiT(), "conditions": Conditions(SIZES)}), demo_autoencoder(folder)
    read_model(folder, both["model"], both["conditions"])
    asked = torch.zeros(KNOWN * each, len(SIZES), dtype=torch.long)
    asked[:, 0] = 1 + torch.arange(KNOWN).repeat_interleave(each)
    noise = torch.randn(len(asked), CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = [sample(both, a, 3.0, 20, z) for a, z in zip(asked.split(16), noise.split(16), strict=True)]
    return torch.cat([(network.decode(z).clamp(0, 1) * 255).round().byte() for z in latents])


def of_the_model(judge: PortraitJudge, samples: Tensor, pool: dict[str, Tensor]) -> str:
    """Samples by name, KNOWN·each, against the mean of each known person's portraits in the pool."""
    known = [judge.embed_all(pool["pictures"][pool["who"] == i].float() / 255).mean(0) for i in range(KNOWN)]
    references = F.normalize(torch.stack(known), dim=1)[:, None]
    embeddings, seen = judge.look(samples.float() / 255)
    embeddings = embeddings.view(KNOWN, -1, DIMENSIONS)
    mean = F.normalize(embeddings.mean(1, keepdim=True), dim=-1)
    lines = [row("by name: single", embeddings, references), row("by name: mean of its pictures", mean, references)]
    missed = f"{len(samples)} samples by name, {100 * (seen < THRESHOLD).double().mean():.1f} % called no portrait"
    return f"{text_table(HEAD, lines)}\n{missed}"


def no_portraits(count: int, held: Tensor, empty: Tensor, texture: Tensor) -> dict[str, Tensor]:
    """Pictures of each kind that the judge was trained on, made of what it has not seen."""
    photos = judge_pictures.photographs(judge_pictures.HELD_OUT_PHOTOS)
    torch.manual_seed(99)
    found = {}
    for kind in judge_pictures.KINDS:
        parts = [judge_pictures.no_portraits(kind, 4, held, empty, texture, photos, SIDE) for _ in range(count // 4)]
        found[kind] = (torch.cat(parts) * 255).round().byte()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=Path, required=True, help="folder of tools.draw_judge_portraits --held-out")
    parser.add_argument("--judge", type=Path, default=BUNDLED)
    parser.add_argument("--demo", type=Path, default=BUNDLED_FOLDER / "demo", help="folder of the autoencoder")
    parser.add_argument("--pool", type=Path, help="folder of tools.draw_pool: measure what the demo model draws, too")
    parser.add_argument("--others", type=int, default=200, help="pictures without a portrait of each kind")
    args = parser.parse_args()
    judge, network, held = read_judge(args.judge), demo_autoencoder(args.demo), read_people(args.people, held_out=True)
    torch.manual_seed(7)
    versions = {
        "clean": held["pictures"],
        "round trip": through_autoencoder(held["pictures"], network, 0.0),
        "disturbed": through_autoencoder(held["pictures"], network, 0.35),
    }
    texture = reduced(textures(64, network, held["pictures"].shape[-1] // 8))
    others = no_portraits(args.others, reduced(held["pictures"]), reduced(held["empty"]), texture)
    parameters = sum(p.numel() for p in judge.network.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(held['who'].unique())} persons never trained on\n")
    print(identities(judge, held, versions))
    print()
    print(portraits(judge, versions, others))
    if args.pool is not None:
        print()
        print(of_the_model(judge, drawn_by_name(args.demo), pool_people(args.pool)))


if __name__ == "__main__":
    main()
