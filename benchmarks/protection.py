"""Every protection against every attacker, with the controls: `python -m benchmarks.protection`.

Rows: all presets and the published baselines that run on a pixel denoiser or on VAEs, made against the bundled
denoiser (`robust` against its sibling and four VAEs too, PhotoGuard, Mist's textural loss and PID against those); as
controls random signs, smoothing, smoothing at the PSNR of `strong`, smoothing with random signs, and each preset's own
spectrum-matched noise. Columns: the picture as it is; what thieves do to it (purifiers by their text,
`methods/purification/purifiers.py`); what a trainer sees of it, with and without a purifier: `shrink0.5` of a crop is
what is left at 512 px of a picture twice as large, `train512` of a whole picture is the trainers' own bucket. Nobody
here trained the VAEs, FFDNet and waifu2x (`strangers.py`, `upscalers.py`); the `judge` is ours, but took no part in any
protection and shares neither architecture nor training pictures with the attacked denoiser. What is not there is named,
and not measured.

Pictures are those of `pictures/sets.json`. A seed is that of the protection, and (plus 1000) of the attackers' noise.
Finished stages are kept under --work, named by all they depend on; an interrupted run goes on where it was, and
--finished tabulates what is there without computing anything. The first seed of all rows comes first, then the whole
pictures, then the other seeds. After a change of the algorithms give another folder.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import torch
from antipure.methods.antipure.objective import PRESETS
from antipure.methods.errors import AntiPureError

from . import sets, strangers
from .protection_report import markdown, summary
from .protection_run import MATCHED, OVER_VAES, SMOOTH_EQUAL, SMOOTH_RANDOM, Run, usable
from .work import machine, read_lpips

# gridpure10/2: of each iteration's ten timesteps the network runs at two. A fifth of the time, nearly the same figures.
COLUMNS = (
    "none",
    "gridpure10/2",
    "held_out:gridpure10/2",
    "judge:gridpure10/2",
    "ffdnet:gridpure10/2",
    "waifu2x:upscale",
    "realesrgan:upscale",
    "adversecleaner",
    "nlm10",
    "sdxl:vae",
    "jpeg75",
    "shrink0.5",
    "shrink0.5+gridpure10/2",
    "gridpure10/2+shrink0.5",
    "judge:gridpure10/2+shrink0.5",
)
WHOLE_COLUMNS = ("none", "train512", "gridpure10/2+train512")
# In order of worth, since a run may be stopped; a control that needs another row's picture comes after it.
ARMS = ("random", "strong", "strong" + MATCHED, "smooth", SMOOTH_EQUAL, SMOOTH_RANDOM)
ARMS += tuple(arm for preset in PRESETS if preset != "strong" for arm in (preset, preset + MATCHED))
ARMS += ("advdm", "simac", *OVER_VAES)
WHOLE_ARMS = ("random", "strong", "strong" + MATCHED, "smooth", "robust", "robust" + MATCHED)
Task = tuple[Run, int, str, str, str, float, int, tuple[str, ...]]


def work(task: Task) -> tuple[dict, float]:
    """One row of one picture; with the seconds it took."""
    run, threads, group, name, arm, levels, seed, columns = task
    torch.set_num_threads(threads)
    began = time.time()
    looks = run.looks(name, arm, levels, seed)
    after = {text: run.after(name, arm, levels, seed, text) for text in columns}
    row = {
        "group": group,
        "picture": name,
        "arm": arm,
        "levels": levels,
        "seed": seed,
        "looks": looks,
        "after": {text: found for text, found in after.items() if found is not None},
    }
    return row, time.time() - began


def tasks(args: argparse.Namespace, run: Run, columns: tuple[str, ...], whole: tuple[str, ...]) -> list[Task]:
    """Crops with the first seed, whole pictures with it, then the other seeds of the crops."""
    crops, pictures = picture_names(args)
    found = []
    for levels in args.levels:
        for seed in range(args.seeds):
            found += [("crops", name, arm, levels, seed, columns) for arm in args.arms for name in crops]
            if not seed:
                arms = [arm for arm in WHOLE_ARMS if arm in args.arms]
                found += [("whole", name, arm, levels, seed, whole) for arm in arms for name in pictures]
    return [(run, args.threads, *task) for task in found]


def picture_names(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Crops and whole pictures."""
    known = sets.load()
    unknown = [name for name in args.pictures or () if name not in known]
    if unknown:
        raise AntiPureError(f"{', '.join(unknown)}: not in {sets.FILE.name}; the names are {', '.join(known)}.")
    chosen = args.pictures or [name for whole in (False, True) for name in sets.names(args.half, whole=whole)]
    return [n for n in chosen if not known[n].whole], [n for n in chosen if known[n].whole and not args.no_whole]


@torch.no_grad()
def add_lpips(rows: list[dict], run: Run, path: Path) -> None:
    """LPIPS of every protected picture to its original; the pictures are there already."""
    distance = read_lpips(path)
    for row in rows:
        picture = run.protected(row["picture"], row["arm"], row["levels"], row["seed"])
        row["looks"]["lpips"] = float(distance(run.clean(row["picture"]), picture))


def done(jobs: list[Task], args: argparse.Namespace) -> Iterator[tuple[dict, float]]:
    """The tasks' results in order, made by --workers processes or by this one."""
    if args.finished or not args.workers:
        yield from map(work, jobs)
        return
    with get_context("spawn").Pool(args.workers) as pool:
        yield from pool.imap(work, jobs, chunksize=1)


def measured(jobs: list[Task], args: argparse.Namespace) -> list[dict]:
    """The rows of all tasks, those that are there; prints the time left as they come."""
    rows = []
    began = time.time()
    for i, (row, seconds) in enumerate(done(jobs, args), 1):
        if row["looks"] is not None:
            rows.append(row)
        spent = (time.time() - began) / 60
        if seconds > 1 and not args.finished:
            what = f"{row['group']} {row['picture']}, {row['arm']}, seed {row['seed']}"
            left = spent / i * (len(jobs) - i)
            print(f"{spent:6.1f} min, about {left:.0f} left: {what}: {seconds:.1f} s", flush=True)
        if args.minutes and spent > args.minutes:
            print(f"{args.minutes:g} minutes are over; {len(jobs) - i} rows of pictures are left for the next run.")
            break
    return rows


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", default="held_out", choices=sets.HALVES, help="of pictures/sets.json")
    parser.add_argument("--pictures", nargs="+", help="names of pictures/sets.json, in place of a half")
    parser.add_argument("--no-whole", action="store_true", help="leave out the whole pictures")
    parser.add_argument("--size", type=int, default=0, help="side of the middle that is taken of each; 0: all of it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", nargs="+", type=float, default=[8.0], help="the table is made of the first")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="NAME")
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS), help="attackers of the crops, as texts")
    parser.add_argument("--whole-columns", nargs="+", default=list(WHOLE_COLUMNS), help="of the whole pictures")
    parser.add_argument("--with", dest="also", type=Path, help="a run's JSON: its rows of other arms join the page")
    parser.add_argument("--steps", type=int, default=40, help="PGD steps of every protection")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0: this one")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--minutes", type=float, default=0, help="stop then and tabulate; 0: when all is done")
    parser.add_argument("--work", type=Path, default=Path("protection-work"), help="folder for finished stages")
    parser.add_argument("--finished", action="store_true", help="tabulate what is finished, compute nothing")
    parser.add_argument("--lpips", type=Path, help="torchvision's AlexNet file, for a column LPIPS")
    parser.add_argument("--markdown", type=Path, help="write the page there, and all figures as JSON beside it")
    return parser.parse_args(argv)


def command(given: list[str]) -> str:
    """The command that makes these figures anywhere: without folders of this machine and the number of processes."""
    kept, skip = [], False
    for text in given:
        name = text.split("=")[0]
        if name in ("--work", "--markdown", "--lpips", "--with", "--workers", "--threads", "--minutes"):
            skip = "=" not in text
        elif name.startswith("--"):
            skip = name == "--finished"
            kept += [] if skip else [text]
        elif not skip:
            kept.append(text)
    return shlex.join(["python", "-m", "benchmarks.protection", *kept])


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    run = Run(args.work, args.steps, args.size, args.finished)
    columns, refused = usable(args.columns)
    whole, refused_whole = usable(args.whole_columns)
    absent = [f"`{text}` ({why})" for text, why in (refused | refused_whole).items()]
    missing = " ".join(
        part for part in (strangers.missing(), *(["Left out: " + "; ".join(absent)] if absent else [])) if part
    )
    if missing:
        print(missing, flush=True)
    rows = measured(tasks(args, run, tuple(columns), tuple(whole)), args)
    if args.lpips:
        add_lpips(rows, run, args.lpips)
    arms = list(args.arms)
    if args.also:
        others = [row for row in json.loads(args.also.read_text(encoding="utf-8"))["rows"] if row["arm"] not in arms]
        arms = [*dict.fromkeys(row["arm"] for row in others), *arms]
        rows = others + rows
    given = argv if argv is not None else sys.argv[1:]
    about = {
        "command": command(given),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": f"{machine()}, fp32",
        "pictures": "named" if args.pictures else f"of the {args.half.replace('_', '-')} half",
        "steps": args.steps,
        "levels": args.levels[0],
        "missing": missing,
    }
    found = summary(rows, arms, columns, whole, args.levels[0])
    page = markdown(found, rows, about)
    print(page)
    if args.markdown:
        args.markdown.write_text(page + "\n", encoding="utf-8")
        content = {"version": 1, "about": about, "cells": found, "rows": rows}
        args.markdown.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
