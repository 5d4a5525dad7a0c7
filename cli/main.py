"""The command `antipure`: protect, purify and measure pictures, or run any API workflow of this pack.

`protect`, `purify`, `measure` and `report` are short forms of shipped workflows, so there is one way through the house.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..methods.errors import AntiPureError
from ..methods.file_names import legal_name
from ..methods.memory import is_out_of_memory, out_of_memory
from ..methods.requirements import missed
from .portfolio.options import about_many, add_options, out_folder
from .terminal import complain, show

BUNDLED, BUNDLED_PAIR = "bundled", "bundled_pair"  # nodes.model_folders's, without what it imports

MOST_VAES = 4  # of VAE Targets


def _model_options(default: str) -> argparse.ArgumentParser:
    """What commands share that run a pixel denoiser, with the one they take by default."""
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--denoiser", default=default,
                       help="'bundled', 'bundled_pair' (that and its sibling, to protect against), 'bundled_held_out', "
                       f"'bundled_judge', a file or a folder (default: {default})")  # fmt: skip
    model.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    model.add_argument("--seed", type=int, default=0)
    return model


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="antipure", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=out_folder, default=Path("output"),
                        help="folder for the pictures (default: output)")  # fmt: skip
    common.add_argument("--server", metavar="URL", help="run on this ComfyUI, e.g. http://127.0.0.1:8188")
    model = _model_options(BUNDLED)

    run = commands.add_parser("run", parents=[common], help="run an API workflow")
    run.add_argument("workflow", help="a file, or the name of a shipped workflow such as protect_and_purify")
    run.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="settings",
                     help="set an input; NODE is an id, a title or a class; may be repeated")  # fmt: skip

    protect = commands.add_parser("protect", parents=[common, _model_options(BUNDLED_PAIR)], help="protect pictures")
    protect.add_argument("picture", help="a picture, folder, glob, @list.txt, or - for a list on standard input")
    protect.add_argument("more", nargs="*", help="more of them")
    add_options(protect, pictures=True)
    protect.add_argument("--preset", default="robust", metavar="NAME",
                         help="robust (default), robust_fast, robust_set, strong, strong_shaped, unrolled, fast, "
                         "paper; a control: random, shift, blocks, smooth; a published protection: advdm, photoguard, "
                         "mist, mist_textural, mist_semantic, anti_dreambooth_fsmg, anti_dreambooth_aspl, simac, "
                         "pid; or none")  # fmt: skip
    protect.add_argument("--levels", type=float, default=8, help="budget in 8-bit levels (default 8)")
    protect.add_argument("--steps", type=int, default=40, help="gradient steps (default 40)")
    protect.add_argument("--vae", action="append", default=[], metavar="FILE", dest="vaes",
                         help="also against this VAE (robust, photoguard, mist_textural, pid): file, folder, or a "
                         "name like taesd; up to four times; '--denoiser none' leaves the denoiser out")  # fmt: skip
    protect.add_argument("--visibility", default="full", metavar="NAME",
                         help="full (default), balanced, or gentle: less budget where eyes see it")  # fmt: skip

    purify = commands.add_parser("purify", parents=[common, model], help="purify pictures, to measure a protection")
    purify.add_argument("picture", help="a picture, folder, glob, @list.txt, or - for a list on standard input")
    purify.add_argument("more", nargs="*", help="more of them")
    add_options(purify, pictures=True)
    purify.add_argument("--method", default="gridpure", help="gridpure, diffpure or diffpure_resized")
    purify.add_argument("--timestep", type=int, help="default: 10 for gridpure, 100 for diffpure")
    purify.add_argument("--iterations", type=int, help="default: 20 for gridpure, 1 for diffpure")
    purify.add_argument("--gamma", type=float, default=0.1)

    measure = commands.add_parser("measure", help="compare two pictures, or two folders of them")
    measure.add_argument("reference", help="a picture, folder, glob or @list.txt")
    measure.add_argument("image", help="the same of what is compared with it; of several each with its own by name")
    measure.add_argument("--out", type=out_folder, help="of several: folder for a manifest (default: none is kept)")
    add_options(measure, pictures=False)
    measure.add_argument("--vae", metavar="FILE",
                         help="also the latent shift through this VAE: file, folder, or a name like taesd")  # fmt: skip
    measure.add_argument("--view", default="", metavar="TRANSFORM",
                         help="what both go through first, such as train512 or long1080+jpeg85")  # fmt: skip
    measure.add_argument("--json", action="store_true", help="print JSON")
    measure.add_argument("--server", metavar="URL", help="run on this ComfyUI")

    report = commands.add_parser("report", parents=[common, model], help="what protections of a picture are worth")
    report.add_argument("picture", help="the original, or a folder, glob or @list.txt of originals")
    report.add_argument("protected", nargs="*", help="protected versions of it, or folders of them; none: it is "
                        "protected here")  # fmt: skip
    add_options(report, pictures=False)
    report.add_argument("--preset", action="append", metavar="NAME", dest="presets",
                        help="protect with this one (default: robust and paper); may be repeated")  # fmt: skip
    report.add_argument("--levels", type=float, default=8, help="budget of the presets in 8-bit levels (default 8)")
    report.add_argument("--steps", type=int, default=40, help="of the presets (default 40)")
    report.add_argument("--held-out", default="bundled_judge", metavar="DENOISER",
                        help="what held_out:gridpure10 runs on (default bundled_judge); "
                        "'none' leaves it out")  # fmt: skip
    report.add_argument("--purifiers", default="", metavar="LIST",
                        help="such as 'gridpure20, jpeg75+gridpure10' (default: the workflow's list)")  # fmt: skip
    report.add_argument("--made-against", default="", metavar="LIST",
                        help="those of the list that the protections were made against")  # fmt: skip
    report.add_argument("--vae", action="append", metavar="FILE", dest="vaes",
                        help="measure the latent shift through this VAE, and purify with it (vae:vae, vae:impress100; "
                        "the next is vae_2); up to four times")  # fmt: skip
    report.add_argument("--seeds", type=int, default=1, help="measure with this many seeds (default 1)")
    report.add_argument("--curve", type=int, default=20, metavar="ITERATIONS",
                        help="longest GrIDPure of the curves (default 20; 0: none)")  # fmt: skip
    report.add_argument("--json", action="store_true", help="print JSON")

    verify = commands.add_parser("verify", help="check a folder of outputs: checksums, budget, a sample made again")
    verify.add_argument("folder", help="what --out was")
    verify.add_argument("--manifest", type=Path, metavar="FILE", help="where that of the run is not in the folder")
    verify.add_argument("--originals", metavar="FOLDER", help="the originals of pictures that a ComfyUI saved")
    verify.add_argument("--sample", type=int, default=1, metavar="N", help="how many are made again (default 1)")
    verify.add_argument("--json", action="store_true", help="print JSON")

    demo = commands.add_parser("demo", help="protect and purify a sample photo and print what survives")
    demo.add_argument("--out", type=Path, default=Path("output/demo"))
    demo.add_argument("--picture", default="astronaut_face.png", help="a path, or a bundled sample")
    demo.add_argument("--steps", type=int, default=40)
    demo.add_argument("--iterations", type=int, default=10)
    demo.add_argument("--levels", type=float, default=8)

    commands.add_parser("doctor", help="versions, devices, models, and what is missing for which node")

    fetch = commands.add_parser("fetch-models", help="download weights that metrics use; without names: list them")
    fetch.add_argument("names", nargs="*", metavar="NAME")
    fetch.add_argument("--models", type=Path, metavar="DIR",
                       help="ComfyUI's models folder (default: the one around this pack, or ./models)")  # fmt: skip
    fetch.add_argument("--accept-licence", action="store_true", help="agree to the licence that is listed")
    return parser


def run_workflow(prompt: dict, out: Path, server: str | None):
    """Run a workflow on a server, or in this process."""
    if server:
        from .server import run_on_server

        return run_on_server(server, prompt, out)
    from .executor import Executor

    return Executor(out).run(prompt)


def short_form(name: str, settings: dict[str, object]) -> dict:
    """A shipped workflow with inputs set: {"node id.input": value}."""
    from .graph import read_workflow, set_inputs

    return set_inputs(read_workflow(name), [f"{key}={value}" for key, value in settings.items()])


def _protect(args: argparse.Namespace) -> dict:
    if len(args.vaes) > MOST_VAES:
        raise AntiPureError(f"--vae is given {len(args.vaes)} times; at most {MOST_VAES} VAEs are taken.")
    if args.denoiser == "none" and not args.vaes:
        raise AntiPureError("Without a denoiser there is nothing to protect against; give --vae FILE.")
    prompt = short_form(
        "protect",
        {
            "1.image": args.picture,
            "2.denoiser": args.denoiser,
            "2.precision": args.precision,
            "3.preset": args.preset,
            "3.levels": args.levels,
            "3.steps": args.steps,
            "3.seed": args.seed,
            "3.visibility": args.visibility,
            "4.filename_prefix": legal_name(f"{Path(args.picture).stem}_protected"),
        },
    )
    if args.vaes:
        _wire_vaes(prompt, args.vaes, alone=args.denoiser == "none")
    return prompt


def _wire_vaes(prompt: dict, vaes: list[str], *, alone: bool) -> None:
    """VAE Targets in front of Protect, in place of the denoiser or combined with it."""
    wired = {}
    for i, name in enumerate(vaes):
        prompt[str(100 + i)] = {"class_type": "VAELoader", "inputs": {"vae_name": name}}
        wired["vae" if i == 0 else f"vae_{i + 1}"] = [str(100 + i), 0]
    prompt["110"] = {"class_type": "AntiPureVaeTargets", "inputs": wired}
    if alone:
        del prompt["2"]
        prompt["3"]["inputs"]["denoiser"] = ["110", 0]
    else:
        both = {"first": ["2", 0], "second": ["110", 0], "mode": "mean"}
        prompt["111"] = {"class_type": "AntiPureCombineDenoisers", "inputs": both}
        prompt["3"]["inputs"]["denoiser"] = ["111", 0]


def _purify(args: argparse.Namespace) -> dict:
    grid = args.method == "gridpure"
    return short_form(
        "purify",
        {
            "1.image": args.picture,
            "2.denoiser": args.denoiser,
            "2.precision": args.precision,
            "3.method": args.method,
            "3.timestep": args.timestep if args.timestep is not None else (10 if grid else 100),
            "3.iterations": args.iterations if args.iterations is not None else (20 if grid else 1),
            "3.gamma": args.gamma,
            "3.seed": args.seed,
            "4.filename_prefix": legal_name(f"{Path(args.picture).stem}_purified"),
        },
    )


def prompt_of(command: str, args: argparse.Namespace) -> dict:
    """The workflow that `protect`, `purify`, `measure` or `report` stands for. Raises `AntiPureError` for settings."""
    return {"protect": _protect, "purify": _purify, "measure": _measured, "report": _reported}[command](args)


def _measured(args: argparse.Namespace) -> dict:
    prompt = short_form("measure", {"1.image": args.reference, "2.image": args.image})
    if args.view:
        # The sheet shows pictures as they are, of one size; through a view others can be compared, too.
        prompt = {node_id: prompt[node_id] for node_id in ("1", "2", "3")}
        prompt["3"]["inputs"]["view"] = args.view
    if args.vae is not None:
        wired = {"reference": ["1", 0], "image": ["2", 0], "vae": ["100", 0], "view": args.view or "none"}
        prompt["100"] = {"class_type": "VAELoader", "inputs": {"vae_name": args.vae}}
        prompt["101"] = {"class_type": "AntiPureVaeMetrics", "inputs": wired}
    return prompt


def _measure(args: argparse.Namespace) -> None:
    prompt = _measured(args)
    result = run_workflow(prompt, Path("output"), args.server)
    nodes = [node for node in ("3", "101") if node in prompt]
    found = {"reference": args.reference, "image": args.image, **({"view": args.view} if args.view else {})}
    if args.json:
        for node in nodes:
            found |= result.shown(node, "metrics", dict)
        show(json.dumps(found))
    else:
        for node in nodes:
            show(result.shown(node, "text", str))


def _reported(args: argparse.Namespace) -> dict:
    from .report import report_prompt

    names = (
        "levels",
        "steps",
        "seed",
        "seeds",
        "denoiser",
        "held_out",
        "precision",
        "purifiers",
        "made_against",
        "vaes",
    )
    settings = {name: getattr(args, name) for name in (*names, "curve", "presets")}
    return report_prompt(args.picture, args.protected, **settings)


def _report(args: argparse.Namespace) -> None:
    from .report import write_report

    result = run_workflow(_reported(args), args.out, args.server)
    show(write_report(result, args.out, as_json=args.json))


def _verify(args: argparse.Namespace) -> int:
    from .portfolio.verify import verify

    found = verify(args.folder, originals=args.originals, manifest=args.manifest, sample=args.sample)
    show(json.dumps(found.as_json()) if args.json else found.text())
    return 1 if found.problems else 0


def _run(args: argparse.Namespace) -> None:
    from .graph import read_workflow, set_inputs

    if args.command == "run":
        prompt = set_inputs(read_workflow(args.workflow), args.settings)
    else:
        prompt = prompt_of(args.command, args)
    result = run_workflow(prompt, args.out, args.server)
    for note in result.notes:
        complain(note)
    # Once each: Preview as Text shows what another node has shown already.
    for text in dict.fromkeys(result.texts()):
        show(text)
    for files in result.files.values():
        for file in files:
            show(file)


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0, 1 where some of several pictures failed, 2 after a mistake of the user's (one sentence on
    stderr), 130 after Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        if about_many(args):
            from .portfolio.run import run

            return run(args, build_parser())
        if args.command == "demo":
            from .demo import run_demo

            run_demo(args.picture, args.out, steps=args.steps, iterations=args.iterations, levels=args.levels)
        elif args.command == "measure":
            _measure(args)
        elif args.command == "fetch-models":
            from .fetch_models import run_fetch_models

            run_fetch_models(args.names, args.models, accept_licence=args.accept_licence)
        elif args.command == "doctor":
            from .doctor import run_doctor

            screen, whole = run_doctor()
            show(screen)
            return 0 if whole else 2
        elif args.command == "report":
            _report(args)
        elif args.command == "verify":
            return _verify(args)
        else:
            _run(args)
    except AntiPureError as error:
        complain(error)
        return 2
    except Exception as error:
        if (sentence := missed(error)) is not None:
            complain(sentence)
            return 2
        if not is_out_of_memory(error):
            raise
        complain(out_of_memory(error, "this", "take a smaller picture or model"))
        return 2
    except KeyboardInterrupt:
        complain("cancelled")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
