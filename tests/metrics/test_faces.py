"""FDFR and ISM with tiny ONNX models of the right signature, alignment against skimage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from antipure.methods.customization.demo_model import portraits
from antipure.methods.errors import AntiPureError
from antipure.methods.metrics.faces import TEMPLATE, Face, FaceModels, align, face_scores, similarity
from antipure.nodes import NODE_CLASS_MAPPINGS
from PIL import Image
from skimage.transform import SimilarityTransform, warp

SIZE = 64  # of the tiny detector; strides 8, 16, 32 with 2 anchors


def estimated(points, target) -> SimilarityTransform:
    """scikit-image's fit; before 0.26, the newest for Python 3.10, by its older name."""
    if hasattr(SimilarityTransform, "from_estimate"):
        return SimilarityTransform.from_estimate(points, target)
    found = SimilarityTransform()
    assert found.estimate(points, target)
    return found


def landmarks(seed: int = 0, scale: float = 0.4) -> torch.Tensor:
    """The template turned, scaled and shifted, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    turn = 0.5 * torch.randn((), generator=generator)
    rotation = torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]])
    return scale * torch.tensor(TEMPLATE) @ rotation.T + 20 + torch.randn(5, 2, generator=generator)


@pytest.mark.parametrize("seed", range(4))
def test_similarity_is_skimages(seed):
    points = landmarks(seed)
    expected = estimated(points.double().numpy(), np.array(TEMPLATE))
    found = similarity(points, torch.tensor(TEMPLATE))
    np.testing.assert_allclose(found.numpy(), expected.params[:2], rtol=1e-4, atol=1e-4)


def test_alignment_is_skimages_warp():
    picture = torch.rand(1, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    points = landmarks(2)
    tform = estimated(points.double().numpy(), np.array(TEMPLATE))
    array = picture[0].permute(1, 2, 0).double().numpy()
    # cval's own interpolation at the border differs: compare where all four neighbours lie inside
    expected = warp(array, tform.inverse, output_shape=(112, 112), order=1, cval=np.nan)
    found = align(picture, points)[0].permute(1, 2, 0).numpy()
    inside = ~np.isnan(expected)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)


def write_models(folder, faces: list[tuple[int, int, float, float]]):
    """A detector that looks for bright pixels, and a recogniser of mean colours.

    faces: (stride's number, row, score at full brightness, half side in strides): each is seen with a score that is
    multiplied with the brightness of the picture's top left pixel.
    """
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    nodes, constants, outputs = [], [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    # brightness: (mean of the pixel's normalised values · 128 + 127.5) / 255
    nodes += [
        helper.make_node("Slice", ["x", constant("from", [0, 0]), constant("to", [1, 1]), constant("axes", [2, 3])],
                         ["pixel"]),
        helper.make_node("ReduceMean", ["pixel"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", constant("scale", np.float32(128 / 255))], ["scaled"]),
        helper.make_node("Add", ["scaled", constant("half", np.float32(0.5))], ["bright"]),
    ]  # fmt: skip
    offsets = (np.array(TEMPLATE) - 56) / 56
    for kind, columns in (("score", 1), ("box", 4), ("marks", 10)):
        for number, stride in enumerate((8, 16, 32)):
            rows = np.zeros((2 * (SIZE // stride) ** 2, columns), np.float32)
            for at, row, score, half in faces:
                if at == number:
                    rows[row] = {"score": score, "box": half, "marks": (half * offsets).flatten()}[kind]
            name = f"{kind}{stride}"
            constant(f"{name}_rows", rows)
            source = [f"{name}_rows", "bright"] if kind == "score" else [f"{name}_rows"]
            nodes.append(helper.make_node("Mul" if kind == "score" else "Identity", source, [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(rows.shape)))
    save(onnx, folder / "det_tiny.onnx", nodes, ["x", [1, 3, SIZE, SIZE]], outputs, constants)
    nodes = [helper.make_node("ReduceMean", ["x"], ["embedding"], axes=[2, 3], keepdims=0)]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 3])
    save(onnx, folder / "w600k_tiny.onnx", nodes, ["x", [1, 3, 112, 112]], [output], [])
    return folder


def save(onnx, path, nodes, source, outputs, constants):
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])
    graph = helper.make_graph(nodes, "tiny", [value], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


# stride 8: row 2·(8·3 + 4) lies at (32, 24); stride 16: row 2·(4·1 + 2) + 1 at (32, 16)
FACES = [(0, 56, 0.9, 1.5), (1, 13, 0.8, 1.5), (0, 57, 0.7, 1.4)]


@pytest.fixture
def models(tmp_path) -> FaceModels:
    return FaceModels(write_models(tmp_path / "tiny", FACES))


def coloured(*colour: float, height: int = 128, width: int = 96) -> torch.Tensor:
    x = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, height, width).clone()
    x[..., : height // 16, : width // 16] = 1  # bright: a face is seen
    return x


def test_detections_are_decoded_suppressed_and_brought_back_to_the_picture(models):
    """The picture is 128×96: halved to 64×48, so that everything comes back doubled."""
    faces = models.detect(coloured(0.5, 0.5, 0.5))
    assert [round(face.score, 4) for face in faces] == [0.8, 0.9], "largest first; the third overlaps the second"
    assert faces[0].box.tolist() == pytest.approx([2 * (32 - 24), 2 * (16 - 24), 2 * (32 + 24), 2 * (16 + 24)])
    assert faces[1].box.tolist() == pytest.approx([2 * (32 - 12), 2 * (24 - 12), 2 * (32 + 12), 2 * (24 + 12)])
    marks = torch.tensor([64.0, 48.0]) + 24 * (torch.tensor(TEMPLATE) - 56) / 56
    torch.testing.assert_close(faces[1].landmarks, marks, rtol=1e-4, atol=1e-4)
    assert [round(f.score, 4) for f in models.detect(coloured(0.5, 0.5, 0.5), 0.85)] == [0.9]
    dark = torch.zeros(1, 3, 128, 96)
    assert models.detect(dark) == []


def test_the_embedding_is_of_the_aligned_face(models):
    picture = coloured(0.2, 0.6, 0.9)
    face = Face(torch.tensor([30.0, 40.0, 70.0, 90.0]), landmarks(1, 0.3) + 20, 1.0)
    levels = torch.tensor([0.2, 0.6, 0.9]) * 255
    expected = (levels.round() - 127.5) / 127.5
    torch.testing.assert_close(models.embed(picture, face), expected, rtol=1e-4, atol=1e-4)


def test_ism_and_fdfr_are_counted_together(models):
    clean = torch.cat([coloured(0.8, 0.6, 0.4), coloured(0.6, 0.8, 0.4), torch.zeros(1, 3, 128, 96)])
    dark = torch.zeros(1, 3, 128, 96)
    pictures = torch.cat([coloured(0.8, 0.6, 0.4), dark, coloured(0.1, 0.1, 0.9), dark])
    scores = face_scores(pictures, clean, models)
    assert scores.clean_faces == 2
    assert scores.fdfr == 0.5
    found = [models.embed(x, models.detect(x)[0]) for x in clean[:2].split(1)]
    reference = (found[0] + found[1]).double().numpy() / 2
    expected = []
    for i in (0, 2):
        e = models.embed(pictures[i : i + 1], models.detect(pictures[i : i + 1])[0]).double().numpy()
        expected.append(e @ reference / np.linalg.norm(e) / np.linalg.norm(reference))
    assert scores.ism == pytest.approx(np.mean(expected), abs=1e-4)  # 8-bit rounding
    assert [math.isnan(s) for s in scores.similarities] == [False, True, False, True]
    assert expected[0] > 0.5 > expected[1]
    nothing = face_scores(dark, clean, models)
    assert nothing.fdfr == 1
    assert math.isnan(nothing.ism)
    with pytest.raises(AntiPureError, match="No clean picture"):
        face_scores(pictures, dark, models)


@pytest.mark.parametrize("kind", ["real", "random"])
def test_ism_and_fdfr_of_pictures_are_those_of_scikit_images_faces(models, kind):
    """The tiny models see the largest face at a known place, and take its mean colour for an embedding."""
    paths = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "pictures").glob("*.png"))[:6]
    if kind == "real":
        arrays = [np.asarray(Image.open(path).convert("RGB")) / 255 for path in paths]
    else:
        rng = np.random.default_rng(0)
        arrays = [rng.random((128, 128, 3)) ** (0.2 + 3 * rng.random(3)) for _ in paths]
    assert {array.shape for array in arrays} == {(128, 128, 3)}
    arrays = [np.rint(array * 255) / 255 for array in arrays]
    for i, array in enumerate(arrays):
        array[:8, :8] = i not in (2, 4)  # no face is seen in a picture with a dark corner
    points = np.array([64, 32]) + 48 * (np.array(TEMPLATE) - 56) / 56
    embeddings = []
    for array in arrays:
        move = estimated(points, np.array(TEMPLATE))
        face = warp(array, move.inverse, output_shape=(112, 112), order=1)
        embeddings.append((np.rint(face * 255).mean((0, 1)) - 127.5) / 127.5)
    reference = (embeddings[0] + embeddings[1]) / 2
    seen = [embeddings[i] for i in (3, 5)]
    expected = [e @ reference / np.linalg.norm(e) / np.linalg.norm(reference) for e in seen]
    batch = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float()
    scores = face_scores(batch[2:], batch[:2], models)
    assert scores.ism == pytest.approx(np.mean(expected), abs=1e-4)
    assert [s for s in scores.similarities if s == s] == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-3
    assert scores.fdfr == 0.5
    assert scores.clean_faces == 2


def test_missing_and_damaged_files_are_named(tmp_path, models):
    pack = tmp_path / "tiny"
    (tmp_path / "empty").mkdir()
    with pytest.raises(AntiPureError, match="no detector.*det_"):
        FaceModels(tmp_path / "empty")
    (pack / "w600k_tiny.onnx").write_bytes(b"no model")
    with pytest.raises(AntiPureError, match="cannot be read as an ONNX"):
        FaceModels(pack)
    (pack / "w600k_tiny.onnx").unlink()
    with pytest.raises(AntiPureError, match="no recognition model.*w600k_"):
        FaceModels(pack)


def test_without_onnxruntime_one_sentence_says_what_to_install(models, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(AntiPureError, match="need the package 'onnxruntime'; install it"):
        FaceModels(tmp_path / "tiny")


def test_the_node_reports_both(models, tmp_path):
    node = NODE_CLASS_MAPPINGS["AntiPureFaceMetrics"]()
    clean = coloured(0.8, 0.6, 0.4).permute(0, 2, 3, 1)
    both = torch.cat([clean, torch.zeros_like(clean)])
    with torch.inference_mode():
        result = node.measure(image=both.clone(), clean=clean.clone(), pack=str(tmp_path / "tiny"), threshold=0.5)
    ism, fdfr, report = result["result"]
    assert ism == pytest.approx(1, abs=1e-5)
    assert fdfr == 0.5
    assert "ISM 1.0000 over 1 of 2 pictures" in report
    assert "FDFR 0.5000" in report
    assert "tiny" in report


def test_the_node_measures_drawn_portraits_without_a_pack(tmp_path):
    node = NODE_CLASS_MAPPINGS["AntiPureFaceMetrics"]()
    offered = node.INPUT_TYPES()["required"]["pack"][0]
    assert offered[-1] == "bundled_portraits"
    assert offered[0] != "bundled_portraits", "what was chosen by itself before stays so"
    pictures = portraits().permute(0, 2, 3, 1)
    both = torch.cat([pictures[3:], torch.full_like(pictures[:2], 0.4)])
    with torch.inference_mode():
        result = node.measure(image=both.clone(), clean=pictures[:3].clone(), pack="bundled_portraits", threshold=0.5)
    ism, fdfr, report = result["result"]
    assert fdfr == 0.5
    assert ism > 0.5
    assert "bundled portrait judge (drawn portraits only)" in report
    assert "picture 4: no face" in report
