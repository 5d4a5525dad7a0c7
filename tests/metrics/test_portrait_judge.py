"""The identity judge of the demo model: what it must tell apart, and its scores against sums written out in numpy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from antipure.methods.customization.demo_model import portraits
from antipure.methods.errors import AntiPureError
from antipure.methods.files import write_safetensors
from antipure.methods.metrics import portrait_judge
from antipure.methods.metrics.faces import face_scores
from antipure.methods.metrics.portrait_judge import DIMENSIONS, JudgeNetwork, PortraitJudge, d_prime, fdfr, ism
from antipure.methods.pictures import round_8bit
from PIL import Image
from safetensors.torch import load_file

PERSONS, SHOTS = 5, 3


@pytest.fixture(scope="module")
def judge() -> PortraitJudge:
    return portrait_judge.load_judge()


_DRAWN: dict[str, torch.Tensor] = {}  # drawn once: a tenth of a second each


@pytest.fixture
def people(tool) -> torch.Tensor:
    """PERSONS×SHOTS×3×80×80: held-out persons, each in other poses, lights and styles every time; coarsely drawn."""
    if not _DRAWN:
        who = torch.arange(PERSONS).repeat_interleave(SHOTS) + 1_000_000 + 7_000
        styles = torch.tensor([1, 2, 4]).repeat(PERSONS)  # studio, oil, pastel
        shots = torch.arange(SHOTS).repeat(PERSONS)
        draw = tool("portraits").draw_portraits
        for i, (one, shot, style) in enumerate(zip(who.split(1), shots.split(1), styles.split(1), strict=True)):
            _DRAWN[str(i)] = draw(one, shot, style=style, side=80, supersampling=1).pictures
        _DRAWN["people"] = torch.cat(list(_DRAWN.values())).view(PERSONS, SHOTS, 3, 80, 80)
    return _DRAWN["people"]


def nobody() -> dict[str, torch.Tensor]:
    """Eight pictures without a portrait of each kind, 3×128×128."""
    stream = torch.Generator().manual_seed(5)
    fine = torch.rand(8, 3, 128, 128, generator=stream)
    coarse = F.interpolate(torch.rand(8, 3, 16, 16, generator=stream), (128, 128), mode="bicubic").clamp(0, 1)
    colour = torch.rand(8, 3, 1, 1, generator=stream).expand(-1, -1, 128, 128)
    ramp = torch.lerp(colour, colour.flip(0), torch.linspace(0, 1, 128))
    return {"noise": fine, "coarse noise": coarse, "empty": colour, "ramp": ramp}


def test_embeddings_are_unit_vectors_of_any_picture(judge):
    for size in ((1, 1), (40, 70), (80, 80), (300, 200)):
        pictures = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
        embeddings, seen = judge.look(pictures)
        assert embeddings.shape == (3, DIMENSIONS)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
        assert ((seen >= 0) & (seen <= 1)).all()


def test_a_picture_is_judged_alike_in_any_batch_and_as_it_would_be_saved(judge):
    pictures = portraits()
    together = judge.embed_all(pictures)
    alone = torch.cat([judge.embed_all(one) for one in pictures.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    many = judge.embed_all(pictures.repeat(30, 1, 1, 1))  # more than go through the network at once
    torch.testing.assert_close(many[-5:], together, rtol=0, atol=1e-5)
    assert torch.equal(judge.embed_all(pictures + 0.3 / 255), judge.embed_all(round_8bit(pictures)))


def test_held_out_persons_are_nearer_to_themselves_than_to_others(judge, people):
    """Other poses, lights and styles of one person against other persons: none of them was trained on."""
    embedded = judge.embed_all(people.flatten(0, 1)).view(PERSONS, SHOTS, -1)
    own, others, nearest = [], [], 0
    for i in range(PERSONS):
        for j in range(SHOTS):
            rest = [k for k in range(SHOTS) if k != j]
            means = [F.normalize(embedded[p][rest].mean(0), dim=0) for p in range(PERSONS)]
            cosines = torch.stack([embedded[i, j] @ m for m in means])
            own.append(cosines[i])
            others += [cosines[p] for p in range(PERSONS) if p != i]
            nearest += int(cosines.argmax()) == i
    assert d_prime(torch.stack(own), torch.stack(others)) > 2
    assert nearest >= 0.85 * PERSONS * SHOTS


def test_the_demo_models_own_person_is_told_from_others(judge, people):
    pictures = portraits()
    scores = ism(pictures[3:], pictures[:3], people, judge)
    assert scores.d_prime > 2
    assert min(scores.similarities) > max(max(row) for row in scores.impostors)
    assert scores.ism > 0.5 > scores.impostor


def test_portraits_are_seen_and_nobody_is_where_nobody_is(judge, people):
    assert fdfr(portraits(), judge) == 0
    assert fdfr(people.flatten(0, 1), judge) <= 1 / (PERSONS * SHOTS)
    for kind, pictures in nobody().items():
        assert fdfr(pictures, judge) == 1, kind
    both = torch.cat([portraits()[:3], nobody()["noise"][:1]])
    assert fdfr(both, judge) == 0.25


def test_scores_are_the_sums_of_the_papers(judge, people):
    """Cosines to mean embeddings, in numpy; the sample without a portrait is left out."""
    pictures, noise = portraits(), nobody()["noise"][:1]
    samples = torch.cat([pictures[3:], noise])
    scores = ism(samples, torch.cat([pictures[:3], noise]), [people[0], people[1, :2]], judge)

    def embedded(p: torch.Tensor) -> np.ndarray:
        return judge.embed_all(p).double().numpy()

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    means = [embedded(p).mean(0) for p in (pictures[:3], people[0], people[1, :2])]
    expected = [[cosine(e, m) for m in means] for e in embedded(pictures[3:])]
    own, others = [row[0] for row in expected], [v for row in expected for v in row[1:]]
    assert scores.similarities[:2] == pytest.approx(own, abs=1e-5)
    assert scores.impostors[0] == pytest.approx(expected[0][1:], abs=1e-5)
    assert math.isnan(scores.similarities[2])
    assert all(map(math.isnan, scores.impostors[2]))
    assert scores.ism == pytest.approx(np.mean(own), abs=1e-5)
    assert scores.impostor == pytest.approx(np.mean(others), abs=1e-5)
    spread = math.sqrt((np.var(own, ddof=1) + np.var(others, ddof=1)) / 2)
    assert scores.d_prime == pytest.approx((np.mean(own) - np.mean(others)) / spread, rel=1e-3)
    everything = ism(samples, pictures[:3], people[:2], judge, threshold=0)
    assert not any(map(math.isnan, everything.similarities))
    nothing = ism(noise, pictures[:3], people[:2], judge)
    assert all(map(math.isnan, (nothing.ism, nothing.impostor, nothing.d_prime)))


def test_d_prime_of_bells_is_the_distance_of_their_middles():
    stream = torch.Generator().manual_seed(0)
    genuine = 1.5 + 0.5 * torch.randn(20_000, generator=stream)
    impostor = 0.5 * torch.randn(20_000, generator=stream)
    assert d_prime(genuine, impostor) == pytest.approx(3, abs=0.05)
    assert d_prime(impostor, genuine) == -d_prime(genuine, impostor)
    assert d_prime(torch.ones(3), torch.zeros(3)) == math.inf
    assert math.isnan(d_prime(torch.ones(3), torch.ones(3)))
    with pytest.raises(AntiPureError, match="at least two values of each kind"):
        d_prime(torch.ones(1), torch.zeros(3))


def test_it_serves_face_metrics_in_place_of_a_pack(judge):
    pictures = portraits()
    both = torch.cat([pictures[3:], nobody()["empty"][:2]])
    scores = face_scores(both, pictures[:3], judge)
    assert scores.fdfr == 0.5
    assert scores.clean_faces == 3
    assert scores.ism == pytest.approx(ism(pictures[3:], pictures[:3], [pictures], judge).ism, abs=1e-4)


def test_errors_say_what_to_do(judge, people):
    pictures = portraits()
    with pytest.raises(AntiPureError, match="no impostors; give pictures of at least one other person"):
        ism(pictures, pictures, [], judge)
    with pytest.raises(AntiPureError, match="No picture of the subject shows a portrait"):
        ism(pictures, nobody()["empty"], people, judge)
    with pytest.raises(AntiPureError, match="No picture of the impostor 2 shows a portrait"):
        ism(pictures, pictures, [people[0], nobody()["noise"]], judge)
    with pytest.raises(AntiPureError, match="The samples has shape 3×128×128"):
        fdfr(pictures[0], judge)
    with pytest.raises(AntiPureError, match="NaN"):
        fdfr(torch.full((1, 3, 8, 8), math.nan), judge)
    for threshold in (-0.1, 1.5, math.nan):
        with pytest.raises(AntiPureError, match="no probability; give one in 0..1"):
            fdfr(pictures, judge, threshold=threshold)


def test_a_missing_or_foreign_file_is_named(tmp_path):
    path = tmp_path / "judge.safetensors"
    with pytest.raises(AntiPureError, match="judge.safetensors is missing; install the pack again"):
        portrait_judge.read_judge(path)
    state = JudgeNetwork().state_dict()
    write_safetensors(path, {k: v for k, v in state.items() if k != "identity.bias"}, {})
    with pytest.raises(AntiPureError, match="holds no portrait judge. It is incomplete: it has no 'identity.bias'"):
        portrait_judge.read_judge(path)
    write_safetensors(path, state, {})
    embeddings, _ = portrait_judge.read_judge(path).look(torch.rand(1, 3, 20, 20))
    assert embeddings.shape == (1, DIMENSIONS)


def test_the_file_is_small_and_half_precise():
    assert portrait_judge.BUNDLED.stat().st_size < 1_500_000
    assert {v.dtype for v in load_file(portrait_judge.BUNDLED).values()} == {torch.float16}


def test_a_photograph_of_a_thing_is_no_portrait(judge):
    skimage = pytest.importorskip("skimage")
    with Image.open(Path(skimage.__file__).parent / "data" / "grass.png") as photo:
        array = np.asarray(photo.convert("RGB").resize((128, 128)))
    assert fdfr(torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255, judge) == 1
