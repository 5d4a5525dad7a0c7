"""The list of purifiers and transforms against the functions they name."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.diffusion.checkpoints import load_denoiser
from antipure.methods.errors import AntiPureError
from antipure.methods.purification.diffpure import diffpure
from antipure.methods.purification.gridpure import gridpure
from antipure.methods.purification.purifiers import parse_purifier, parse_purifiers
from antipure.methods.purification.transforms import jpeg, parse_transform, resize


@pytest.fixture(scope="module")
def denoisers():
    return {"first": load_denoiser(None), "second": load_denoiser(None)}


@pytest.fixture(scope="module")
def picture():
    return torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(3)).mul(255).round() / 255


def run(text, denoisers, picture, seed=5):
    purifier = parse_purifier(text, denoisers, seed)
    with purifier.session():
        return purifier(picture)


def test_each_name_is_the_function_it_names(denoisers, picture):
    d = denoisers["first"]
    assert torch.equal(run("gridpure2", denoisers, picture), gridpure(picture, d, iterations=2, seed=5))
    light = gridpure(picture, d, iterations=1, timestep=4, seed=5)
    assert torch.equal(run("gridpure1@4", denoisers, picture), light)
    assert torch.equal(run("diffpure3", denoisers, picture), diffpure(picture, d, timestep=3, seed=5))
    sparse = gridpure(picture, d, iterations=1, timestep=4, substeps=2, seed=5)
    assert torch.equal(run("gridpure1@4/2", denoisers, picture), sparse)
    assert not torch.equal(sparse, light)
    sparse = diffpure(picture, d, timestep=3, substeps=1, seed=5)
    assert torch.equal(run("diffpure3 / 1", denoisers, picture), sparse)
    resized = diffpure(picture, d, timestep=3, resize=True, seed=5)
    assert torch.equal(run("diffpure_resized3", denoisers, picture), resized)
    assert torch.equal(run("jpeg60", denoisers, picture), jpeg(picture, 60))
    assert torch.equal(run("none", denoisers, picture), picture)


def test_compositions_run_from_left_to_right(denoisers, picture):
    expected = gridpure(resize(jpeg(picture, 75), 0.5), denoisers["first"], iterations=1, seed=5)
    assert torch.equal(run("jpeg75 + resize0.5 + gridpure1", denoisers, picture), expected)
    other = resize(gridpure(picture, denoisers["first"], iterations=1, seed=5), 0.5)
    assert torch.equal(run("gridpure1+resize0.5", denoisers, picture), other)


def test_the_view_is_what_the_size_changing_steps_alone_do(denoisers, picture):
    purifier = parse_purifier("jpeg75+shrink0.5+gridpure1+crop0.5", denoisers, 5)
    assert purifier.changes_size
    assert torch.equal(purifier.view(picture), parse_transform("shrink0.5+crop0.5")(picture))
    found = run("jpeg75+shrink0.5+gridpure1+crop0.5", denoisers, picture)
    assert found.shape == purifier.view(picture).shape == (1, 3, 16, 20)
    small = parse_transform("jpeg75+shrink0.5")(picture)
    pure = gridpure(small, denoisers["first"], iterations=1, seed=5)
    assert torch.equal(found, parse_transform("crop0.5")(pure))
    stays = parse_purifier("jpeg75+resize0.5+gridpure1", denoisers, 5)
    assert not stays.changes_size
    assert stays.view(picture) is picture


def test_neighbouring_transforms_draw_their_own_noise(denoisers, picture):
    assert torch.equal(run("noise8+noise8", denoisers, picture), parse_transform("noise8+noise8", 5)(picture))
    assert not torch.equal(run("noise8", denoisers, picture, 5), run("noise8", denoisers, picture, 6))


def test_iterations_of_one_run_are_those_of_shorter_runs(denoisers, picture):
    seen = []
    purifier = parse_purifier("gridpure4@3", denoisers, seed=7)
    taken = purifier.after_iterations(picture, (1, 3, 4), lambda *step: seen.append(step[:2]))
    assert sorted(taken) == [1, 3, 4]
    for count, found in taken.items():
        assert torch.equal(found, parse_purifier(f"gridpure{count}@3", denoisers, seed=7)(picture))
    assert seen[-1][0] == seen[-1][1]


def test_a_name_in_front_picks_the_denoiser(denoisers, picture):
    used = []

    def spied(name, denoiser):
        predict = denoiser.predict
        return lambda x, t: (used.append(name), predict(x, t))[1]

    try:
        for name, denoiser in denoisers.items():
            denoiser.predict = spied(name, denoiser)
        for text, expected in (("second:gridpure1@1", {"second"}), ("gridpure1@1", {"first"})):
            used.clear()
            run(text, denoisers, picture)
            assert set(used) == expected
    finally:
        for denoiser in denoisers.values():
            del denoiser.predict


@pytest.mark.parametrize(
    "text",
    ["gridpure20", "second:gridpure10@30/5", "gridpure5/2", "diffpure100/10", "jpeg75+resize0.5+gridpure10"],
)
def test_texts_come_back(denoisers, text):
    assert str(parse_purifier(text, denoisers)) == text
    assert str(parse_purifier("gridpure10/10", denoisers)) == "gridpure10", "all of the timesteps"


def test_lists(denoisers):
    found = parse_purifiers("gridpure5, jpeg75+resize0.5\n# a comment, with a comma\n\ngridpure5\nmedian", denoisers)
    assert [str(p) for p in found] == ["gridpure5", "jpeg75+resize0.5", "median3"]
    assert [p.is_transform for p in found] == [False, True, True]
    assert str(found[0].with_iterations(40)) == "gridpure40"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gridpur5", "no purifier or transform"),
        ("third:gridpure5", "no denoiser 'third'"),
        ("gridpure0", "at least 1"),
        ("diffpure2000", "1..1000"),
        ("diffpure50@3", "only gridpure"),
        ("gridpure5/11", "substeps is 11"),
        ("vae1/1", "behind /"),
        ("vae", "works on pixels"),
        ("jpeg0", "quality"),
        ("", "no purifier or transform"),
    ],
)
def test_mistakes_are_refused_before_work(denoisers, text, words):
    with pytest.raises(AntiPureError, match=words):
        parse_purifier(text, denoisers)


def test_purifiers_without_a_denoiser_are_refused():
    assert str(parse_purifier("jpeg75", {})) == "jpeg75"
    with pytest.raises(AntiPureError, match="needs a denoiser"):
        parse_purifier("gridpure5", {})
    with pytest.raises(AntiPureError, match="at least one"):
        parse_purifiers("# nothing\n", {})


EVERY_KIND = ["none", "jpeg75", "median3", "gridpure1@1", "diffpure1", "diffpure_resized1"]


@pytest.mark.parametrize("text", EVERY_KIND)
def test_values_are_looked_at_on_the_way_in_and_out_of_a_model_alone(denoisers, picture, text, monkeypatch):
    """A look waits for a GPU."""
    purifier = parse_purifier(text, denoisers, 5)
    looked, isfinite = [], torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda x: looked.append(x.shape) or isfinite(x))
    with purifier.session():
        purifier(picture)
    assert looked == [picture.shape] * (2 if "pure" in text else 1)


@pytest.mark.parametrize("text", [*EVERY_KIND, "jpeg75+gridpure1@1", "gridpure1@1+jpeg75"])
def test_bad_pictures_are_refused_whatever_comes_first(denoisers, text):
    broken = torch.rand(1, 3, 16, 16)
    broken[0, 0, 3, 3] = float("nan")
    with pytest.raises(AntiPureError, match="The picture holds NaN"):
        run(text, denoisers, broken)
    with pytest.raises(AntiPureError, match="B×3×H×W"):
        run(text, denoisers, broken[:, :1])
