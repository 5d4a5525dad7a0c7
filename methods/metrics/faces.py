"""Face metrics of the protection literature: FDFR and ISM, through the user's own insightface ONNX models.

FDFR: share of pictures without a detected face. ISM: cosine between the ArcFace embedding of a picture's largest face
and the mean embedding of the clean pictures, over pictures with a face (Anti-DreamBooth, Van Le et al. 2023). Always
report the two together: where no face is found, there is no ISM. Their detector is RetinaFace; here it is SCRFD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AntiPureError
from ..pictures import check_picture, round_8bit
from ..progress import Progress, silent

FACE_SIZE = 112
# Where ArcFace wants eyes, nose and mouth corners in its 112×112 faces: x, y (insightface's `arcface_dst`).
TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
DETECTORS, RECOGNISERS = ("det_*.onnx", "scrfd_*.onnx"), ("w600k_*.onnx", "glintr*.onnx")
_DETECTION_SIZE = 640
_OVERLAP = 0.4


@dataclass(frozen=True)
class Face:
    """box: x1, y1, x2, y2 and landmarks: 5×2 (x, y), in pixels of the picture; score 0..1."""

    box: Tensor
    landmarks: Tensor
    score: float

    @property
    def area(self) -> float:
        x1, y1, x2, y2 = self.box.tolist()
        return max(x2 - x1, 0) * max(y2 - y1, 0)


def similarity(points: Tensor, targets: Tensor) -> Tensor:
    """The rotation, scale and shift that brings points to targets best in least squares: 2×3.

    points, targets: N×2 (x, y), N >= 2. With complex numbers z -> a z + b, so no reflection can arise.
    """
    z, w = (torch.view_as_complex(p.double().contiguous()) for p in (points, targets))
    centred = z - z.mean()
    a = (centred.conj() * (w - w.mean())).sum() / centred.abs().square().sum().clamp(min=1e-12)
    b = w.mean() - a * z.mean()
    return torch.stack([torch.stack([a.real, -a.imag, b.real]), torch.stack([a.imag, a.real, b.imag])])


def align(picture: Tensor, landmarks: Tensor) -> Tensor:
    """The face at ArcFace's landmarks: 1×3×112×112 of a 1×3×H×W picture, bilinear, black outside.

    landmarks: 5×2 (x, y) in pixels.
    """
    h, w = picture.shape[-2:]
    forward = similarity(landmarks, landmarks.new_tensor(TEMPLATE))
    turn = torch.linalg.inv(forward[:, :2])
    inverse = torch.cat([turn, -turn @ forward[:, 2:]], 1)
    axis = torch.arange(FACE_SIZE, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    where = torch.stack([x, y, torch.ones_like(x)], -1) @ inverse.T
    scale = torch.tensor([max(w, 1), max(h, 1)], dtype=torch.float64)
    grid = (where * 2 + 1) / scale - 1
    return F.grid_sample(picture.double(), grid[None], mode="bilinear", align_corners=False).to(picture)


class FaceModels:
    """An insightface pack: SCRFD detector and ArcFace recogniser as ONNX files in one folder, run by onnxruntime.

    name: the folder's, for reports. Raises `AntiPureError` when onnxruntime or a file is missing or unreadable, or
    has another signature: a detector gives scores, boxes and five landmarks for three strides.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.name = folder.name
        self.detector = _session(_one(folder, DETECTORS, "detector"))
        self.recogniser = _session(_one(folder, RECOGNISERS, "recognition model"))
        if len(self.detector.get_outputs()) != 9:
            raise AntiPureError(
                f"The detector in {folder} has {len(self.detector.get_outputs())} outputs; an SCRFD with landmarks "
                "has 9 (such as det_10g.onnx)."
            )
        size = self.detector.get_inputs()[0].shape[-1]
        self.size = size if isinstance(size, int) else _DETECTION_SIZE

    def detect(self, picture: Tensor, threshold: float = 0.5) -> list[Face]:
        """Faces of one picture (1×3×H×W in 0..1), largest first; score >= threshold, non-maximum suppression."""
        h, w = picture.shape[-2:]
        ratio = self.size / max(h, w)
        height, width = max(round(h * ratio), 1), max(round(w * ratio), 1)
        small = F.interpolate(picture.float(), (height, width), mode="bilinear", antialias=ratio < 1)
        # Top left, black below or beside it.
        square = F.pad(small, (0, self.size - width, 0, self.size - height))
        outputs = _run(self.detector, ((square * 255).round() - 127.5) / 128)
        scores, boxes, landmarks = (_rows(outputs[i : i + 3], columns) for i, columns in ((0, 1), (3, 4), (6, 10)))
        found = []
        for stride, score, box, points in zip(_strides(self.size, scores), scores, boxes, landmarks, strict=True):
            cells = self.size // stride
            anchors = len(score) // cells**2
            y, x = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
            centres = (
                (torch.stack([x, y], -1).float() * stride).reshape(-1, 1, 2).expand(-1, anchors, -1).reshape(-1, 2)
            )
            for i in (score[:, 0] >= threshold).nonzero()[:, 0].tolist():
                c, d = centres[i], box[i] * stride
                corners = torch.cat([c - d[:2], c + d[2:]])
                marks = c + points[i].view(5, 2) * stride
                back = torch.tensor([w / width, h / height])
                found.append(Face(corners * back.repeat(2), marks * back, float(score[i, 0])))
        return sorted(_suppress(found), key=lambda face: -face.area)

    def embed(self, picture: Tensor, face: Face) -> Tensor:
        """ArcFace embedding of a face: D values, not normalised. picture: 1×3×H×W in 0..1."""
        aligned = (align(picture.float(), face.landmarks) * 255).round().clamp(0, 255)
        return _run(self.recogniser, (aligned - 127.5) / 127.5)[0].flatten()


class FaceFinder(Protocol):
    """What `face_scores` asks of models: `FaceModels`, or the judge of drawn portraits (`portrait_judge`)."""

    name: str

    def detect(self, picture: Tensor, threshold: float = 0.5) -> list[Face]: ...

    def embed(self, picture: Tensor, face: Face) -> Tensor: ...


@dataclass(frozen=True)
class FaceScores:
    """ism: -1..1, NaN without any face. fdfr: 0..1. similarities: one per picture, NaN where no face was found."""

    ism: float
    fdfr: float
    similarities: list[float]
    clean_faces: int


def face_scores(
    picture: Tensor,
    clean: Tensor,
    models: FaceFinder,
    *,
    threshold: float = 0.5,
    progress: Progress = silent,
) -> FaceScores:
    """ISM and FDFR of pictures B×3×H×W against clean pictures N×3×H×W of the same person, both in 0..1.

    The reference is the mean of the clean pictures' embeddings as ArcFace gives them.
    Raises `AntiPureError` when no clean picture has a face.
    """
    check_picture(picture)
    check_picture(clean, "clean picture")
    total, done = len(picture) + len(clean), 0

    def largest(one: Tensor) -> Tensor | None:
        nonlocal done
        one = round_8bit(one)
        faces = models.detect(one, threshold)
        done += 1
        progress(done, total)
        return models.embed(one, faces[0]) if faces else None

    known = [e for e in map(largest, clean.split(1)) if e is not None]
    if not known:
        raise AntiPureError("No clean picture has a face that the detector finds; lower the threshold or give others.")
    reference = torch.stack(known).mean(0)
    similarities = [
        math.nan if embedding is None else float(F.cosine_similarity(embedding, reference, dim=0))
        for embedding in map(largest, picture.split(1))
    ]
    seen = [s for s in similarities if not math.isnan(s)]
    ism = sum(seen) / len(seen) if seen else math.nan
    return FaceScores(ism, 1 - len(seen) / len(similarities), similarities, len(known))


def _one(folder: Path, patterns: tuple[str, ...], what: str) -> Path:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if not found:
        raise AntiPureError(
            f"There is no {what} in {folder}; put {' or '.join(patterns)} of an insightface pack there, or run: "
            "antipure fetch-models buffalo_l"
        )
    return found[0]


def _session(path: Path):
    try:
        import onnxruntime
    except ImportError as error:
        raise AntiPureError("Face metrics need the package 'onnxruntime'; install it.") from error
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise AntiPureError(f"{path} cannot be read as an ONNX model; copy it again from its pack.") from error


def _run(session, x: Tensor) -> list[Tensor]:
    outputs = session.run(None, {session.get_inputs()[0].name: x.float().numpy()})
    return [torch.from_numpy(output) for output in outputs]


def _rows(outputs: list[Tensor], columns: int) -> list[Tensor]:
    for output in outputs:
        if output.shape[-1] != columns:
            raise AntiPureError(
                f"The face detector gives rows of {output.shape[-1]} values instead of {columns}; use an SCRFD with "
                "landmarks, such as det_10g.onnx."
            )
    return [output.reshape(-1, columns).float() for output in outputs]


def _strides(size: int, scores: list[Tensor]) -> list[int]:
    """8, 16, 32, if the numbers of rows fit them."""
    strides = [8, 16, 32]
    for stride, score in zip(strides, scores, strict=True):
        if len(score) == 0 or len(score) % (size // stride) ** 2:
            raise AntiPureError("The face detector's rows do not fit strides of 8, 16 and 32; use an SCRFD.")
    return strides


def _suppress(faces: list[Face]) -> list[Face]:
    """Best scores first; a box that overlaps a kept one by more than `_OVERLAP` of their union is left out."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -f.score):
        if all(_intersection_over_union(face, other) <= _OVERLAP for other in kept):
            kept.append(face)
    return kept


def _intersection_over_union(a: Face, b: Face) -> float:
    low, high = torch.maximum(a.box[:2], b.box[:2]), torch.minimum(a.box[2:], b.box[2:])
    common = float((high - low).clamp(min=0).prod())
    return common / max(a.area + b.area - common, 1e-12)
