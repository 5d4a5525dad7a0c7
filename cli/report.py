"""`antipure report`: the workflow robustness_report on a user's picture, with as many protections as are asked for."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from ..methods.errors import AntiPureError
from ..methods.file_names import legal_name
from ..methods.files import free_names, without_clashes, write_new
from ..nodes.robustness import HELD_OUT, MORE, PURIFIERS, VAES
from .graph import read_workflow, set_inputs
from .result import Result

# Node ids of the workflow; test_cli holds them against its classes.
PICTURE, DENOISER, HELD_OUT_LOADER, FIRST, SECOND, REPORT, SHEET = "1", "2", "3", "4", "5", "6", "7"
SLOTS = ("image", *MORE)
PRESETS = ("robust", "paper")
NONE = "none"


def report_prompt(
    picture: str,
    protected: list[str],
    *,
    presets: list[str] | None = None,
    levels: float = 8,
    steps: int = 40,
    seed: int = 0,
    seeds: int = 1,
    denoiser: str = "bundled",
    held_out: str = "bundled_judge",
    precision: str = "fp32",
    purifiers: str = "",
    made_against: str = "",
    curve: int = 20,
    vaes: list[str] | None = None,
) -> dict:
    """The workflow's prompt for these pictures.

    protected: files of protected versions; none: `picture` is protected with `presets` (None: `PRESETS`). held_out:
    "none" leaves it out. purifiers: "" for the workflow's own list. vaes: files of VAEs, which become vae, vae_2, ...
    Raises `AntiPureError` for too many protections or VAEs.
    """
    if protected and presets:
        raise AntiPureError("Give protected pictures or --preset, not both.")
    presets = presets or list(PRESETS)
    count = len(protected) or len(presets)
    if count > len(SLOTS):
        raise AntiPureError(f"{count} protections are too many for one report; give at most {len(SLOTS)}.")
    if vaes and len(vaes) > len(VAES):
        raise AntiPureError(f"{len(vaes)} VAEs are too many for one report; give at most {len(VAES)}.")
    base = read_workflow("robustness_report")
    listed = purifiers or base[REPORT]["inputs"]["purifiers"]
    if held_out == NONE and not purifiers:
        listed = PURIFIERS
    prompt = set_inputs(
        base,
        [
            f"{PICTURE}.image={picture}",
            *(f"{node}.precision={precision}" for node in (DENOISER, HELD_OUT_LOADER)),
            f"{DENOISER}.denoiser={denoiser}",
            f"{HELD_OUT_LOADER}.denoiser={held_out}",
            *(f"{FIRST}.{name}={value}" for name, value in (("levels", levels), ("steps", steps), ("seed", seed))),
            *(f"{REPORT}.{name}={value}" for name, value in (("seed", seed), ("seeds", seeds))),
            f"{REPORT}.curve_iterations={curve}",
            f"{REPORT}.purifiers={listed}",
            f"{REPORT}.made_against={made_against}",
            f"{SHEET}.filename_prefix={legal_name(f'{Path(picture).stem}_robustness')}",
        ],
    )
    template = prompt[PICTURE] if protected else prompt[FIRST]
    del prompt[FIRST], prompt[SECOND]
    inputs = prompt[REPORT]["inputs"]
    for slot in SLOTS:
        inputs.pop(slot, None)
    names = _unique([Path(file).stem for file in protected] or presets)
    inputs["names"] = ", ".join(names)
    values = [{"image": file} for file in protected] or [{"preset": preset} for preset in presets]
    for i, (slot, value, name) in enumerate(zip(SLOTS, values, names, strict=False)):
        node = copy.deepcopy(template)
        node["inputs"] |= value
        node["_meta"] = {"title": name}
        prompt[f"{100 + i}"] = node
        inputs[slot] = [f"{100 + i}", 0]
    for i, (slot, file) in enumerate(zip(VAES, vaes or [], strict=False)):
        prompt[f"{200 + i}"] = {"class_type": "VAELoader", "inputs": {"vae_name": file}, "_meta": {"title": slot}}
        inputs[slot] = [f"{200 + i}", 0]
    if held_out == NONE or f"{HELD_OUT}:" not in listed:
        del prompt[HELD_OUT_LOADER], inputs[HELD_OUT]
    return prompt


def write_report(result: Result, out: Path, *, as_json: bool = False) -> str:
    """Write report.json and report.md into `out`, and say what to print: tables and files, or the JSON.

    Both get the same number where there are reports already: report_2.json, report_2.md.
    """
    found = json.dumps(result.shown(REPORT, "report", dict), indent=1, ensure_ascii=False)
    tables = result.shown(REPORT, "markdown", str)
    tables_too = (path.with_suffix(".md") for path in free_names(out / "report.json"))
    free = (path.with_suffix(".json") for path in without_clashes(tables_too))
    data = write_new(free, f"{found}\n".encode(errors="backslashreplace"))
    text = write_new(free_names(data.with_suffix(".md")), tables.encode(errors="backslashreplace"))
    return found if as_json else "\n".join([tables, *map(str, (data, text, *result.files.get(SHEET, [])))])


def _unique(names: list[str]) -> list[str]:
    """Names without commas, which separate them, and with a number behind those that come again."""
    plain = [" ".join(name.replace(",", " ").split()) or "protected" for name in names]
    return [name if plain.index(name) == i else f"{name} ({i + 1})" for i, name in enumerate(plain)]
