"""Train the identity judge of the demo model (`methods/metrics/portrait_judge.py`) on drawn portraits.

    python -m tools.draw_judge_portraits --out folder/judge --persons 360
    python -m tools.train_portrait_judge --people folder/judge --pool folder/pool --out folder/run --minutes 20

--pool adds the portraits of `tools.draw_pool`: many persons who sat once, and the 32 the demo model knows by name. A
share of the pictures goes through the demo model's autoencoder first (`round.safetensors` in --out; reused while it
fits): what is judged comes out of its decoder. Identities are learned by a softmax over all persons with a margin on
the cosine (CosFace, Wang et al., CVPR 2018), portrait or not by cross entropy. Goes on where it was stopped; writes
`judge.safetensors`, the exponential moving average with its normalisation folded into the convolutions.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from antipure.methods.files import BUNDLED_FOLDER
from antipure.methods.metrics.portrait_judge import DIMENSIONS, SIDE, JudgeNetwork
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tools import judge_pictures
from tools.draw_judge_portraits import read_people
from tools.draw_pool import AT_ONCE, POSES, VARIANTS, numbered
from tools.latent_networks import CHANNELS, Autoencoder
from tools.latent_pool import HELD_OUT, KNOWN
from tools.latent_training import Average, Clock, autocast, read_autoencoder, save_atomically

SCALE, MARGIN = 20.0, 0.2
PORTRAITS, OTHERS = 72, 18  # in a step
TEXTURES = 240


def pool_people(folder: Path) -> dict[str, Tensor]:
    """The portraits of `tools.draw_pool` (--seed 0) and whom they show."""
    files = sorted(folder.glob("pool-*.safetensors"))
    pictures, who = [], []
    for path in files:
        heads, _ = numbered(int(path.stem.rpartition("-")[2]) * POSES, POSES, 0)
        held = load_file(path)
        # A few heads at a time, each lot in all its styles (`draw_pool.drawn`).
        shown = heads.view(-1, 1, AT_ONCE).expand(-1, VARIANTS, -1).flatten()
        if not torch.equal(held["labels"][:, 0].long(), torch.where(shown < KNOWN, shown + 1, 0)):
            raise SystemExit(f"{path} was drawn by another version of tools.draw_pool; draw it again.")
        pictures.append(held["pictures"])
        who.append(shown)
    return {"pictures": torch.cat(pictures), "who": torch.cat(who)}


def reduced(pictures: Tensor) -> Tensor:
    """uint8 of any side to uint8 of the judge's."""
    parts = [
        F.interpolate(part.float(), (SIDE, SIDE), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for part in pictures.split(256)
    ]
    return torch.cat(parts).contiguous()


@torch.no_grad()
def through_autoencoder(pictures: Tensor, network: Autoencoder, disturbed: float, report: float = 30) -> Tensor:
    """uint8 pictures encoded and decoded; latents (unit deviation) disturbed by noise of up to `disturbed`."""
    made, shown, device = [], time.monotonic(), torch.device("cpu")
    for part in pictures.split(8):
        with autocast(device):
            x = (part.float() / 255).contiguous(memory_format=torch.channels_last)
            latents = network.taesd_encoder(x).float()
            strength = disturbed * torch.rand(len(part), 1, 1, 1)
            back = network.decode(latents + strength * torch.randn_like(latents)).float()
        made.append((back.clamp(0, 1) * 255).round().byte())
        if time.monotonic() - shown > report:
            shown = time.monotonic()
            print(f"{sum(map(len, made))} of {len(pictures)} through the autoencoder", flush=True)
    return torch.cat(made).contiguous()


@torch.no_grad()
def textures(count: int, network: Autoencoder, latent_side: int) -> Tensor:
    """uint8: what the decoder makes of noise of every grain: a model that has lost its subject draws such."""
    made = []
    for _ in range(0, count, 8):
        cells = max(2, latent_side // int(2 ** torch.randint(0, 4, ())))
        latents = F.interpolate(torch.randn(8, CHANNELS, cells, cells), (latent_side,) * 2, mode="bicubic")
        with autocast(torch.device("cpu")):
            back = network.decode(latents * judge_pictures.between(0.3, 1.2, 8)).float()
        made.append((back.clamp(0, 1) * 255).round().byte())
    return torch.cat(made)[:count].contiguous()


def demo_autoencoder(folder: Path) -> Autoencoder:
    network = Autoencoder().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    read_autoencoder(folder, network)
    return network


class Data:
    """Portraits and whom they show (numbered from 0), their round trips, and pictures of nobody; all SIDE×SIDE."""

    def __init__(self, args: argparse.Namespace):
        people = read_people(args.people)
        pictures, who = [people["pictures"]], [people["who"]]
        if args.pool is not None:
            pool = pool_people(args.pool)
            pictures.append(pool["pictures"])
            who.append(pool["who"])
        full, seeds = torch.cat(pictures), torch.cat(who)
        if seeds.max() >= HELD_OUT:
            raise SystemExit("There are held-out persons among those to train on; leave their files out.")
        self.persons, self.who = seeds.unique(return_inverse=True)
        self.pictures, self.empty = reduced(full), reduced(people["empty"])
        self.photos = judge_pictures.photographs(judge_pictures.PHOTOS)
        counts = self.who.bincount()
        # A person who sat often is drawn more often, but not as often as that.
        self.weights = counts[self.who].float() ** -0.5
        self.passed, self.texture = self.round_trips(args, full)
        self.with_passed = torch.full((len(full),), -1).scatter(0, self.passed, torch.arange(len(self.passed)))

    def round_trips(self, args: argparse.Namespace, full: Tensor) -> tuple[Tensor, Tensor]:
        path = args.out / "round.safetensors"
        chosen = torch.randperm(len(full), generator=torch.Generator().manual_seed(1))[: args.round_trips]
        if path.exists():
            known = load_file(path)
            if torch.equal(known["chosen"], chosen) and known["sum"] == full[chosen].sum():
                self.back = known["back"]
                return chosen, known["texture"]
        network = demo_autoencoder(args.demo)
        self.back = reduced(through_autoencoder(full[chosen], network, 0.35))
        texture = reduced(textures(TEXTURES, network, full.shape[-1] // 8))
        made = {"chosen": chosen, "sum": full[chosen].sum(), "back": self.back, "texture": texture}
        save_file(made, path)
        return chosen, texture

    def batch(self) -> tuple[Tensor, Tensor]:
        """PORTRAITS portraits, then OTHERS pictures of nobody, N×3×SIDE×SIDE; and whom the first ones show."""
        chosen = torch.multinomial(self.weights, PORTRAITS, replacement=True)
        pictures = self.pictures[chosen].clone()
        at = self.with_passed[chosen]
        instead = (at >= 0) & (torch.rand(PORTRAITS) < 0.6)
        pictures[instead] = self.back[at[instead]]
        kinds = judge_pictures.KINDS
        each = OTHERS // len(kinds)
        others = [
            judge_pictures.no_portraits(k, each, self.pictures, self.empty, self.texture, self.photos, SIDE)
            for k in kinds
        ]
        return judge_pictures.conditions(torch.cat([pictures.float() / 255, *others])), self.who[chosen]


def folded(network: JudgeNetwork) -> dict[str, Tensor]:
    """The file's weights: fp16, each batch norm folded into the convolution before it."""
    network = copy.deepcopy(network).eval()
    places = [(network, "stem", "norm")]
    places += [(block, f"conv{i}", f"norm{i}") for block in network.blocks for i in (1, 2)]
    for place, conv, norm in places:
        fused = nn.utils.fuse_conv_bn_eval(getattr(place, conv), getattr(place, norm))
        setattr(place, conv, fused)
        setattr(place, norm, nn.Identity())
    return {k: v.half().contiguous() for k, v in network.state_dict().items()}


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    device, data = torch.device("cpu"), Data(args)
    print(f"{len(data.pictures)} portraits of {len(data.persons)} persons", flush=True)
    network = JudgeNetwork(nn.BatchNorm2d).to(memory_format=torch.channels_last)
    proxies = nn.Parameter(torch.randn(len(data.persons), DIMENSIONS) * 0.1)
    optimizer = torch.optim.AdamW([*network.parameters(), proxies], args.rate, betas=(0.9, 0.98), weight_decay=0.02)
    average, clock, state_file = Average(network, 0.998), Clock(args.minutes), args.out / "judge.state"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        known = torch.isin(data.persons, state["persons"])  # more may have been drawn since
        proxies.data[known] = state["proxies"][torch.isin(state["persons"], data.persons)]
        if torch.equal(data.persons, state["persons"]):
            optimizer.load_state_dict(state["optimizer"])
        average.state, average.steps = state["average"], state["steps"]
        clock = Clock(args.minutes, state["spent"])
        torch.manual_seed(args.seed + average.steps)  # other pictures after a break

    def save() -> None:
        state = {
            "network": network.state_dict(),
            "proxies": proxies.data,
            "persons": data.persons,
            "optimizer": optimizer.state_dict(),
        }
        save_atomically(state | {"average": average.state, "steps": average.steps, "spent": clock.spent}, state_file)
        mean = copy.deepcopy(network)
        mean.load_state_dict(average.state)
        path = args.out / "judge.safetensors"
        save_file(folded(mean), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    portrait = torch.cat([torch.ones(PORTRAITS), torch.zeros(OTHERS)])
    shown = saved = time.monotonic()
    sums = torch.zeros(4)
    while clock.share < 1:
        pictures, who = data.batch()
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(args.rate)
        with autocast(device):
            features, logits = network(pictures.contiguous(memory_format=torch.channels_last))
        cosines = F.normalize(features[:PORTRAITS].float(), dim=1) @ F.normalize(proxies, dim=1).T
        guess = cosines.detach().argmax(1)
        cosines = cosines - MARGIN * F.one_hot(who, len(proxies))
        identity = F.cross_entropy(SCALE * cosines, who, label_smoothing=0.02)
        shows = F.binary_cross_entropy_with_logits(logits.float(), portrait)
        optimizer.zero_grad(set_to_none=True)
        (identity + shows).backward()
        nn.utils.clip_grad_norm_([*network.parameters(), proxies], 5.0)
        optimizer.step()
        average.update(network)
        right = ((logits.detach() > 0) == (portrait > 0)).float().mean()
        sums += torch.stack([identity.detach(), shows.detach(), (guess == who).float().mean(), right])
        if time.monotonic() - shown > args.report:
            shown, steps = time.monotonic(), average.steps
            i, p, g, r = (sums / max(1, steps - getattr(clock, "last", 0))).tolist()
            print(f"{clock.spent:5.1f} min, step {steps}: identity {i:.2f} ({100 * g:.0f} % right), "
                  f"portrait {p:.3f} ({100 * r:.1f} % right)", flush=True)  # fmt: skip
            clock.last, sums = steps, torch.zeros(4)
        if time.monotonic() - saved > 60 * args.save:
            saved = time.monotonic()
            save()
    save()
    print(f"{average.steps} steps, {clock.spent:.1f} minutes: {args.out / 'judge.safetensors'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=Path, required=True, help="folder of tools.draw_judge_portraits")
    parser.add_argument("--pool", type=Path, help="folder of tools.draw_pool")
    parser.add_argument("--demo", type=Path, default=BUNDLED_FOLDER / "demo", help="folder of the autoencoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--round-trips", type=int, default=2400, help="pictures that go through the autoencoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=float, default=30, help="seconds between lines")
    parser.add_argument("--save", type=float, default=2, help="minutes between saved states")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    train(args)


if __name__ == "__main__":
    main()
