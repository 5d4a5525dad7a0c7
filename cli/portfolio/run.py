"""A command on many pictures: found, planned, worked on, written, and told of."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ...methods.errors import AntiPureError
from ...methods.files import check_writable
from ..terminal import complain, one_line, show
from . import places
from .console import Console, measured, summary, tell_notes
from .inputs import Found, find
from .manifest import NAME, Line, Manifest, read_claims, read_lines
from .models import sums_of_models
from .options import OF_THE_RUN
from .pairs import pair
from .plan import Job, Plan, check_no_input_is_an_output, is_output_of, kept_place, make_jobs, plan
from .work import FRAME, Outcome, Setup

# What a command's arguments name, and where they go; all others are settings of the pictures.
_NO_SETTINGS = {
    *("command", "picture", "more", "protected", "reference", "image", "out", "server", "json", *OF_THE_RUN),
}


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Returns 0 where all pictures are as they should be, 1 where some failed.

    Raises `AntiPureError` for what concerns the whole run: settings, models, places that cannot be written.
    """
    _check(args)
    began = time.monotonic()
    with ExitStack() as stack:
        if args.out is None:  # measuring, for the eyes alone
            out = stack.enter_context(tempfile.TemporaryDirectory())
        else:
            out = args.out if isinstance(args.out, str) else os.path.abspath(args.out)
            places.check_folder(out)
        path = _manifest_path(args, out)
        check_writable(path.parent)
        jobs, found = _jobs(args, out, read_lines(path), read_claims(path))
        for note in found.notes:
            complain(note)
        check_no_input_is_an_output(jobs, out)
        settings, defaults = _settings(args, parser)
        manifest = stack.enter_context(Manifest(path))
        planned = plan(jobs, manifest, settings, defaults, out=out, retry=args.retry)
        counts = Counter({"done": 0, "finished before": len(planned.finished), "failed": 0})
        counts["failed before (try again with --retry)"] = len(planned.failed)
        lines = [*planned.finished, *planned.failed]
        for line in planned.failed:
            complain(f"{one_line(line['picture'])}: {line['error']}")
        try:
            for line in _work(args, planned, manifest, settings, out, found.root):
                lines.append(line)
                counts["failed" if line.get("error") else "done"] += 1
        finally:
            counts["not reached"] = len(jobs) - len(lines)
            manifest.end(job.output for job in jobs if _unmade(manifest, job))
            if lines or counts["not reached"]:
                new = lines[counts["finished before"] + len(planned.failed) :]
                tell_notes(new)
                _tell(args, lines, counts, time.monotonic() - began, path)
        if places.is_url(out):
            places.write(places.join(out, NAME), path.read_bytes())
        if args.page:
            from .page import write_page

            for file in write_page(out, [manifest.lines[job.key] for job in jobs], args.command, settings):
                show(file)
    for problem in found.problems:
        complain(problem)
    return 1 if found.problems or any(line.get("error") for line in lines) else 0


def _check(args: argparse.Namespace) -> None:
    for name in ("workers", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise AntiPureError(f"--{name} is {value}; give a whole number from 1 on.")
    if args.address and args.engine != "ray":
        raise AntiPureError("--address is a Ray cluster's; give --engine ray, too.")
    if args.page and args.out is None:
        raise AntiPureError("--page is written into --out; give a folder there.")
    if args.server and (args.engine == "ray" or (args.workers or 1) > 1):
        raise AntiPureError("A ComfyUI does one picture at a time; leave --workers and --engine out with --server.")


def _manifest_path(args: argparse.Namespace, out: str) -> Path:
    if args.manifest is not None:
        return Path(os.path.abspath(args.manifest))
    if places.is_url(out):
        raise AntiPureError(
            f"A manifest cannot grow at {one_line(out)}; give --manifest FILE here: a copy goes there in the end."
        )
    return Path(out, NAME)


def _jobs(args: argparse.Namespace, out: str, lines: list[Line], claims: set[str]) -> tuple[list[Job], Found]:
    """What the arguments ask for, whether it was done before or not."""
    by_key = {(line["command"], line["picture"]): line for line in lines}
    if args.command == "measure":
        found, made = find([args.reference]), find([args.image])
        pairs, problems = pair(found.pictures, made.pictures)
        found.problems += [*made.problems, *problems]
        pictures = [picture for _, picture in pairs]
        jobs = make_jobs("measure", pictures, [(picture.source,) for picture in pictures], by_key)
        # Its place is that of the picture; what it is compared with comes first.
        jobs = [
            Job("measure", job.picture, original.source, job.others, job.output)
            for job, (original, _) in zip(jobs, pairs, strict=True)
        ]
        return jobs, found
    arguments = [args.picture, *getattr(args, "more", [])]
    found = find(arguments, is_output=is_output_of(lines, claims, out))
    others: list[tuple[str, ...]] = [()] * len(found.pictures)
    for argument in getattr(args, "protected", []):
        made = find([argument])
        pairs, problems = pair(found.pictures, made.pictures)
        found.problems += [*made.problems, *problems]
        versions = {original.source: picture.source for original, picture in pairs}
        for i, picture in enumerate(found.pictures):
            if picture.source in versions:
                others[i] += (versions[picture.source],)
            else:
                found.problems.append(f"{one_line(picture.relative)} has no protected version in {one_line(argument)}.")
    if wanted := len(getattr(args, "protected", [])):
        whole = [i for i, beside in enumerate(others) if len(beside) == wanted]
        found.pictures, others = [found.pictures[i] for i in whole], [others[i] for i in whole]
    return make_jobs(args.command, found.pictures, others, by_key), found


def _settings(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the pictures, as JSON keeps them, with the models' checksums; and their defaults."""
    positional = {"measure": ["a", "b"]}.get(args.command, ["a"])
    defaults = _chosen(parser.parse_args([args.command, *positional]))
    settings = _chosen(args)
    settings["models"] = {} if args.server else sums_of_models(settings)
    if args.server:
        settings["server"] = True
    return settings, defaults | {"models": {}}


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    return json.loads(json.dumps({name: value for name, value in vars(args).items() if name not in _NO_SETTINGS}))


def _threads(args: argparse.Namespace) -> int | None:
    """Of each worker: as torch has it in one process; of several their share of it."""
    if args.threads is None and (args.workers or 1) > 1:
        return max(1, torch.get_num_threads() // args.workers)
    return args.threads


def _work(
    args: argparse.Namespace, planned: Plan, manifest: Manifest, settings: dict[str, Any], out: str, root: str
) -> Iterator[Line]:
    """Lines of the manifest, as pictures are done."""
    todo = planned.todo
    if not todo:
        return
    mine = manifest.claims | manifest.outputs()
    foreign = {job.output for job in todo if job.output not in mine and _is_there(out, job, mine)}
    manifest.begin([job.key for job in todo], [job.output for job in todo if job.output not in foreign])
    own = {name: value for name, value in settings.items() if name not in ("models", "keep_exif", "server")}
    models = settings["models"] if args.engine == "ray" else None
    setup = Setup(args.command, own, _threads(args), bool(settings.get("keep_exif")), args.server, models)
    with Console(len(todo)) as console:
        for outcome in _engine(args, setup, todo, console):
            if outcome.fatal or outcome.job is None:
                raise AntiPureError(outcome.fatal or "A worker gave back nothing; report it.")
            job = outcome.job
            if outcome.error and not places.is_url(root) and not os.path.isdir(root):
                raise AntiPureError(f"{one_line(root)} is gone, with the pictures in it; run the same command again.")
            manifest.check_there()
            outputs = _store(outcome, out, mine)
            line = _line(outcome, outputs, settings, out)
            manifest.append(line)
            console.finished(job.picture, outcome.error)
            yield line


def _engine(args: argparse.Namespace, setup: Setup, todo: list[Job], console: Console) -> Iterator[Outcome]:
    if args.engine == "ray":
        from .ray_engine import run_ray

        return run_ray(setup, todo, args.workers, args.address)
    from .processes import run_here, run_processes

    if (args.workers or 1) > 1:
        return run_processes(setup, todo, args.workers, console.tell)
    return run_here(setup, todo, console.tell)


def _is_there(out: str, job: Job, mine: set[str]) -> bool:
    """Whether a file has an output's name that no run is known to have made."""
    names = [f"{job.output}{ending}.png" for ending in ("", FRAME.format(1))]
    return any(name not in mine and places.exists(places.join(out, name)) for name in names)


def _store(outcome: Outcome, out: str, mine: set[str]) -> list[dict[str, str]]:
    """Write a picture's files, and say what they are. A file that no run made is never replaced: the picture fails.

    Raises `AntiPureError` where nothing can be written.
    """
    job, outputs = outcome.job, []
    assert job is not None
    files = [] if outcome.error else outcome.files
    for ending, content in files:
        name = f"{job.output}{ending}"
        target, found = places.join(out, name), hashlib.sha256(content).hexdigest()
        if not {job.output, name} & mine and places.exists(target):
            if hashlib.sha256(places.read(target)).hexdigest() != found:
                outcome.error = f"{one_line(target)} is there already, and no run known here made it; move it away."
                outcome.figures = {}
                return []
        else:
            places.write(target, content)
        outputs.append({"path": name, "sha256": found})
    return outputs


def _line(outcome: Outcome, outputs: list[dict[str, str]], settings: dict[str, Any], out: str) -> Line:
    job = outcome.job
    assert job is not None
    others = [
        {"path": kept_place(source, out), "sha256": found}
        for source, found in zip(job.others, outcome.others_sha256 or [None] * len(job.others), strict=True)
    ]
    return {
        "command": job.command,
        "picture": job.picture,
        "input": kept_place(job.source, out),
        "input_sha256": outcome.input_sha256,
        "others": others,
        "output": job.output,
        "outputs": outputs,
        "settings": settings,
        "seed": settings.get("seed"),
        "figures": outcome.figures,
        "notes": outcome.notes,
        "seconds": outcome.seconds,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "made_on": outcome.made_on,
        "error": outcome.error,
    }


def _unmade(manifest: Manifest, job: Job) -> bool:
    line = manifest.lines.get(job.key)
    return line is None or bool(line["error"])


def _tell(args: argparse.Namespace, lines: list[Line], counts: Counter[str], seconds: float, path: Path) -> None:
    if args.command == "measure":
        show(json.dumps([_as_json(line) for line in lines]) if args.json else measured(lines))
        if args.json:
            return
    if args.command == "report" and args.json:
        show(json.dumps([_as_json(line) for line in lines]))
        return
    show(summary(lines, counts, seconds))
    if args.out is not None:
        show(path)


def _as_json(line: Line) -> dict[str, Any]:
    found = {name: line[name] for name in ("picture", "input", "outputs", "error") if line[name]}
    return found | line["figures"]
