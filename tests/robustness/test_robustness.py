"""The robustness report: its numbers against the functions they come from, and what it concludes from them."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.controls import apply_control, spectrum_matched
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.figures.fonts import BOLD, SANS, escaped
from antipure.methods.metrics import image as metrics
from antipure.methods.pictures import SHOWN
from antipure.methods.purification.purifiers import parse_purifier, parse_purifiers
from antipure.methods.robustness import sheet
from antipure.methods.robustness.measure import measure
from antipure.methods.robustness.report import Cell, Column, Report, Row, level_of
from antipure.methods.robustness.sheet import robustness_sheet
from antipure.methods.robustness.text import markdown, to_dict, to_json, verdict

LIST = "gridpure1, gridpure3, jpeg60+gridpure2, held_out:diffpure4, jpeg60, noise4"


def pictures(count: int, *size: int, seed: int = 0) -> torch.Tensor:
    """Smooth random 8-bit pictures."""
    noise = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(noise, size, mode="bicubic").clamp(0, 1) * 255).round() / 255


@pytest.fixture(scope="module")
def models(tiny, make_tiny):
    return {"denoiser": tiny, "held_out": make_tiny(seed=1)}


@pytest.fixture(scope="module")
def originals():
    return pictures(2, 24, 36)


@pytest.fixture(scope="module")
def protections(originals):
    return {
        "blocks": apply_control("blocks", originals, AttackSettings(levels=6)),
        "noise": apply_control("random", originals, AttackSettings(levels=4)),
    }


@pytest.fixture(scope="module")
def report(models, originals, protections):
    listed = parse_purifiers(LIST, models)
    return measure(originals, protections, listed, seeds=(3, 9), curve_iterations=4, made_against=["gridpure3"])


# Measuring ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIST.split(", "))
def test_numbers_are_those_of_the_functions_they_come_from(report, models, originals, protections, name):
    original, seeds = originals[1:], (3, 9)
    column = next(column for column in report.columns if column.name == name)
    for place, seed in enumerate(seeds):
        purifier = parse_purifier(name, models, seed)
        base = purifier(original)
        assert report.cell(1, "clean", "", column).psnr[place] == float(metrics.psnr(original, base)[0])
        for protection, levels in (("blocks", 6), ("noise", 4)):
            protected = protections[protection][1:]
            versions = {
                "protection": protected,
                "matched": spectrum_matched(original, protected, levels=levels, seed=seed),
                "random": apply_control("random", original, AttackSettings(levels=levels, seeds=seed)),
                "smooth": apply_control("smooth", original, AttackSettings(levels=levels)),
            }
            for kind, version in versions.items():
                pure, cell = purifier(version), report.cell(1, kind, protection, column)
                assert cell.distortion[place] == float(metrics.structural_distortion(base, pure)[0])
                assert cell.detail[place] == float(metrics.detail_ratio(base, pure)[0])
                assert cell.psnr[place] == float(metrics.psnr(original, pure)[0])


def test_costs_and_curves(report, models, originals, protections):
    row = report.row(0, "protection", "blocks")
    original, protected = originals[:1], protections["blocks"][:1]
    assert (row.psnr, row.levels) == (float(metrics.psnr(original, protected)[0]), 6)
    assert report.iterations == (1, 2, 4)
    assert report.curve_of == "gridpure"
    for place, iterations in enumerate(report.iterations):
        found = []
        for seed in (3, 9):
            purifier = parse_purifier(f"gridpure{iterations}", models, seed)
            found.append(float(metrics.structural_distortion(purifier(original), purifier(protected))[0]))
        assert row.curve[place] == pytest.approx(sum(found) / 2)


def test_a_picture_is_measured_as_if_alone(report, models, originals, protections):
    alone = {name: value[1:] for name, value in protections.items()}
    found = measure(originals[1:], alone, parse_purifiers(LIST, models), seeds=(3, 9), curve_iterations=4)
    assert [row.cells for row in found.rows] == [row.cells for row in report.rows if row.picture == 1]


def test_nothing_is_purified_twice(spy, originals):
    original = originals[:1]
    noise = apply_control("random", original, AttackSettings(levels=4, seeds=5))  # the random control itself
    listed = parse_purifiers("gridpure1, gridpure3, gridpure2", {"d": spy})
    measure(original, {"noise": noise, "none": original}, listed, seeds=(5,), curve_iterations=4)
    together = len(spy.shapes)
    spy.shapes.clear()
    parse_purifier("gridpure4", {"d": spy})(original)
    assert together == 4 * len(spy.shapes)  # clean, noise, noise's matched control, and the blur


def test_progress_goes_up_to_its_end_and_cancels(models, originals, protections):
    seen = []
    listed = parse_purifiers(LIST, models)
    measure(originals, protections, listed, curve_iterations=2, progress=lambda *step: seen.append(step))
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert done[-1] == seen[0][1] == seen[-1][1]
    assert any(step[2] is not None for step in seen)

    class Cancelled(BaseException):
        pass

    def cancel(done, total, *_):
        if done > total / 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        measure(originals, protections, listed, progress=cancel)


def test_noise_is_no_more_than_noise_for_the_bundled_denoiser(face):
    original = face[..., 20:84, 30:94]
    noise = apply_control("random", original, AttackSettings(levels=8, seeds=77))
    models = {"denoiser": load_denoiser()}
    found = measure(original, {"noise": noise}, parse_purifiers("gridpure2, jpeg75+gridpure2", models))
    assert found.worst_of_all("noise").level == "no more than noise"
    assert all(0.6 < found.ratio(0, "noise", column, "random") < 1.4 for column in found.columns)
    assert "with the denoiser bundled leaves" in verdict(found)


def test_a_protection_that_changes_nothing_has_the_ratio_1(models, originals):
    found = measure(originals[:1], {"none": originals[:1]}, parse_purifiers("gridpure1, jpeg60", models))
    assert found.worst_of_all("none").ratio == 1
    assert found.row(0, "random", "none").psnr == math.inf
    assert "no more than noise" in verdict(found)
    json.loads(to_json(found), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"protections": {}}, "No protected picture"),
        ({"protections": {"a": pictures(1, 24, 35)}}, "'a' does not fit the originals: 1 of 35×24 against 1 of 36×24"),
        ({"protections": {"a": pictures(2, 24, 36)}}, "does not fit"),
        ({"protections": {"a": pictures(1, 24, 36) * math.nan}}, "NaN"),
        ({"purifiers": []}, "No purifier"),
        ({"seeds": (1, 1)}, "each once"),
        ({"seeds": ()}, "at least one"),
        ({"curve_iterations": -1}, "-1 iterations"),
        ({"made_against": ["gridpure7"]}, "'gridpure7' is not among the measured purifiers; those are jpeg60"),
        ({"example": 1}, "no picture 2"),
    ],
)
def test_mistakes_are_refused_before_work(changes, sentence):
    original = pictures(1, 24, 36)
    settings = {"protections": {"a": original}, "purifiers": parse_purifiers("jpeg60", {}), **changes}
    with pytest.raises(AntiPureError, match=sentence):
        measure(original, progress=lambda *_: pytest.fail("work began"), **settings)


# Concluding --------------------------------------------------------------------------------------------------

GRID, GRID_30, AFTER, HELD_OUT, JPEG = (
    "gridpure10",
    "gridpure5@30",
    "jpeg75+gridpure10",
    "held_out:gridpure10",
    "jpeg75",
)


def built(
    table: dict[str, list[tuple]],
    *,
    random: float = 0.001,
    smooth: float | None = None,
    made_against: str = "",
    name: str = "mine",
) -> Report:
    """A report of one protection. table: purifier -> (distortion, matched) for each picture, floats or one a seed."""

    def cell(value) -> Cell:
        values = value if isinstance(value, tuple) else (value,)
        return Cell(values, (1.0,) * len(values), (30.0,) * len(values))

    names = {GRID: "bundled", HELD_OUT: "bundled_held_out"}
    columns = tuple(
        Column(p, p != JPEG, names.get(p, "bundled" if p != JPEG else ""), p == made_against if made_against else None)
        for p in table
    )
    count = len(next(iter(table.values())))
    seeds = len(cell(next(iter(table.values()))[0][0]).distortion)
    rows = []
    for i in range(count):
        values = [table[p][i] for p in table]
        rows.append(Row(i, "clean", "", math.inf, 1.0, 0.0, tuple(cell((0.0,) * seeds) for _ in values)))
        rows.append(Row(i, "protection", name, 31.0, 0.9, 8.0, tuple(cell(v[0]) for v in values)))
        rows.append(Row(i, "matched", name, 31.0, 0.9, 8.0, tuple(cell(v[1]) for v in values)))
        others = {"random": random} if smooth is None else {"random": random, "smooth": smooth}
        for kind, distortion in others.items():
            rows.append(Row(i, kind, name, 30.0, 0.9, 8.0, tuple(cell((distortion,) * seeds) for _ in values)))
    return Report((name,), columns, tuple(range(seeds)), (64, 96), tuple(rows))


def test_survives_and_is_weakest():
    found = verdict(built({GRID: [(0.043, 0.01)], JPEG: [(0.01, 0.01)], AFTER: [(0.013, 0.01)]}))
    assert found == (
        "On this picture, gridpure10 with the denoiser bundled leaves 4.3 times what it leaves of noise with the same "
        "spectrum: the protection survives. Weakest after jpeg75+gridpure10: 1.3 times, hardly more than noise. "
        "Measured with one seed of the noise; other purifiers, and what a model learns, were not measured."
    )


def test_a_blur_that_does_as_much_is_said():
    close = verdict(built({GRID: [(0.04, 0.01)]}, smooth=0.036))
    assert (
        "survives. A mere blur within the same levels leaves 0.9 times as much: whether the protection does more than "
        "take detail away, only training a model on it can tell. Measured"
    ) in close
    far = verdict(built({GRID: [(0.05, 0.01)]}, smooth=0.01))
    assert "survives. A mere blur within the same levels leaves 0.2 times as much. Measured" in far
    assert "blur" not in verdict(built({GRID: [(0.04, 0.01)]})), "reports from before that control"
    assert "blur" not in verdict(built({JPEG: [(0.04, 0.01)]}, smooth=0.01)), "transforms judge nothing"
    assert "|   blur | ratio |" in markdown(built({GRID: [(0.04, 0.01)]}, smooth=0.036))
    assert "lur" not in markdown(built({GRID: [(0.04, 0.01)]}))


def test_no_more_than_noise_and_no_other_leaves_less():
    found = verdict(built({GRID: [(0.010, 0.01)], AFTER: [(0.02, 0.01)]}))
    assert "leaves 1.0 times what it leaves of noise with the same spectrum: no more than noise." in found
    assert "None of the 2 measured purifiers leaves less." in found


def test_the_control_that_says_less_decides():
    found = built({GRID: [(0.04, 0.01)]}, random=0.035)
    assert found.worst_of_all("mine").level == "no more than noise"
    assert (
        "4.0 times what it leaves of noise with the same spectrum, but only 1.1 times what it leaves of random noise "
        "of the same levels: hardly more than noise."
    ) in verdict(found)


def test_several_pictures_and_their_worst_case():
    found = built(
        {GRID: [(0.04, 0.01), (0.06, 0.01), (0.02, 0.01)], AFTER: [(0.03, 0.01), (0.011, 0.01), (0.03, 0.01)]}
    )
    assert [found.worst(i, "mine").column.name for i in range(3)] == [AFTER, AFTER, GRID]
    assert found.worst_of_all("mine").picture == 1
    text = verdict(found)
    assert "On these 3 pictures, gridpure10 with the denoiser bundled leaves 4.0 (2.0 to 6.0) times" in text
    assert "Weakest after jpeg75+gridpure10 on picture 2: 1.1 times, no more than noise." in text.replace(
        "hardly", "no"
    )
    assert "| 2       | mine       | jpeg75+gridpure10 |  1.10 |" in markdown(found)


def test_seeds_that_cover_the_difference_are_said():
    sure = verdict(built({GRID: [((0.04, 0.05), (0.01, 0.012))]}))
    unsure = verdict(built({GRID: [((0.04, 0.011), (0.01, 0.012))]}))
    assert "leaves 4.1 ± 0.1 times" in sure
    assert "covers" not in sure
    assert "survives in part, though the spread of the 2 seeds covers the difference." in unsure
    assert "Measured with 2 seeds" in sure


def test_what_it_was_made_against_is_said_when_it_was_told():
    table = {GRID: [(0.04, 0.01)], HELD_OUT: [(0.02, 0.01)]}
    assert "made against" not in verdict(built(table))
    text = verdict(built(table, made_against=GRID))
    assert "gridpure10 with the denoiser bundled (made against it) leaves" in text
    assert "Weakest after held_out:gridpure10 with the denoiser bundled_held_out (not made against it): 2.0" in text


def test_transforms_judge_only_where_there_is_no_purifier():
    alone = built({JPEG: [(0.01, 0.01)]})
    assert [c.name for c in alone.judging] == [JPEG]
    assert "Only transforms were measured" in verdict(alone)
    assert [c.name for c in built({JPEG: [(0.01, 0.01)], GRID: [(0.04, 0.01)]}).judging] == [GRID]


@pytest.mark.parametrize(
    ("ratio", "level"),
    [(0.2, "no more than noise"), (1.49, "no more than noise"), (1.5, "partly"), (2.99, "partly"), (3, "survives")],
)
def test_levels(ratio, level):
    assert level_of(ratio) == level


# Texts and sheet ---------------------------------------------------------------------------------------------


def test_json_holds_every_number(report):
    read = json.loads(to_json(report))
    assert read == to_dict(report)
    assert (read["format"], read["version"]) == ("antipure-robustness", 2)
    assert (read["protections"], read["seeds"], read["size"]) == (["blocks", "noise"], [3, 9], [24, 36])
    assert read["purifiers"] == [dataclasses.asdict(column) for column in report.columns]
    assert read["curve"] == {"of": report.curve_of, "iterations": list(report.iterations)}
    assert len(read["rows"]) == len(report.rows)
    for found, row in zip(read["rows"], report.rows, strict=True):
        assert [found[name] for name in ("picture", "kind", "protection")] == [row.picture, row.kind, row.protection]
        assert found["psnr"] == (row.psnr if math.isfinite(row.psnr) else None)
        assert (found["ssim"], found["levels"], found["curve"]) == (row.ssim, row.levels, list(row.curve))
        for column, cell in zip(report.columns, row.cells, strict=True):
            psnr = [value if math.isfinite(value) else None for value in cell.psnr]
            expected = {"distortion": list(cell.distortion), "detail": list(cell.detail), "psnr": psnr, "latent": {}}
            assert found["cells"][column.name] == expected
    assert read["rows"][0]["psnr"] is None
    assert read["worst"][0]["ratio"] == min(report.ratio(0, "blocks", c) for c in report.judging)


def test_markdown_holds_the_numbers(report):
    text = markdown(report)
    assert verdict(report).split("\n")[0] in text
    column = report.columns[1]
    row = next(line for line in text.split("## noise after")[0].split("\n") if "gridpure3, made against" in line)
    values = [sum(report.cell(i, "protection", "blocks", column).mean for i in range(2)) / 2,
              report.mean_ratio("blocks", column)]  # fmt: skip
    assert f"{values[0]:.4f}" in row
    assert f"{values[1]:.2f} ±" in row
    assert "(jpeg60)" in text
    tables = [block.split("\n") for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5  # cost, one for each protection, worst cases, curves
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert "a\\|b after" in markdown(built({GRID: [(0.04, 0.01)]}, name="a|b"))


def test_the_sheet_is_a_picture_that_follows_the_numbers(report):
    sheet = robustness_sheet(report)
    assert sheet.shape[:2] == (1, 3)
    assert sheet.shape[3] == 1480
    assert 0 <= sheet.min() < sheet.max() <= 1
    assert torch.equal(sheet, robustness_sheet(report))
    rows = [
        dataclasses.replace(row, cells=tuple(dataclasses.replace(c, distortion=(0.5, 0.5)) for c in row.cells))
        if row.kind == "protection" else row
        for row in report.rows
    ]  # fmt: skip
    other = robustness_sheet(dataclasses.replace(report, rows=tuple(rows)))
    assert not (other.shape == sheet.shape and torch.equal(other, sheet))
    one = robustness_sheet(report, ("gridpure1",))
    assert one.shape[2] < sheet.shape[2]


@pytest.mark.parametrize("count", [1, 12, 30])
def test_the_sheet_takes_any_number_of_purifiers_and_pictures(count):
    table = {f"gridpure{i + 1}": [(0.04, 0.01)] * count for i in range(count)}
    assert robustness_sheet(built(table, name="a $name$ of _any_ length " * 4)).shape[3] == 1480


def test_names_that_the_sheets_font_lacks_are_numbered_and_told(report, recwarn):
    """They were boxes, with matplotlib's warnings on stderr."""

    def named(first: str, second: str) -> Report:
        new = {"blocks": first, "noise": second}
        return dataclasses.replace(
            report,
            protections=(first, second),
            rows=tuple(dataclasses.replace(row, protection=new.get(row.protection, "")) for row in report.rows),
            examples={(p, new.get(name, "")): shown for (p, name), shown in report.examples.items()},
        )

    first, second = robustness_sheet(named("日本", "中文")), robustness_sheet(named("日本", "中国"))
    assert not torch.equal(first, second)
    assert first.shape[2] > robustness_sheet(report).shape[2]  # a line for each
    robustness_sheet(named("写真\t1", "protection 1"))
    assert [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)] == []
    renamed, told = sheet._drawable(named("日本_1", "protection 1"))
    assert renamed.protections == ("protection 1 (of 2)", "protection 1")
    assert told == ["protection 1 (of 2) is \\u65e5\\u672c_1: the font has no such letters."]
    assert sheet._drawable(named("Ärger", "Ψ")) == (named("Ärger", "Ψ"), [])


def test_a_denoisers_name_on_the_sheet_is_escaped_where_it_has_to_be(report, recwarn):
    columns = tuple(dataclasses.replace(column, denoiser="模型.safetensors") for column in report.columns)
    robustness_sheet(dataclasses.replace(report, columns=columns))
    assert [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)] == []
    assert escaped("模型 ä\t", SANS, BOLD) == "\\u6a21\\u578b ä\\u0009"


def test_large_pictures_are_shown_by_their_middle():
    original = pictures(1, SHOWN + 40, SHOWN + 60)
    found = measure(original, {"a": 1 - original}, parse_purifiers("jpeg60", {}))
    assert torch.equal(found.examples["", ""], original[..., 20:-20, 30:-30])
    assert set(found.examples) == {("", ""), ("", "a"), ("jpeg60", ""), ("jpeg60", "a")}
