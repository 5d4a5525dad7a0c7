"""Training a patch: it learns what it is asked to, resumes to the same bytes, and leaves the generator alone."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from antipure.methods.architecture import fingerprint
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.errors import AntiPureError
from antipure.methods.lora_patching.disrupting import disruption_loss
from antipure.methods.lora_patching.mmfa import MMFA
from antipure.methods.lora_patching.patch import is_patched, patched
from antipure.methods.lora_patching.save_and_load import load_patch, save_patch
from antipure.methods.lora_patching.training import TrainingConfig, fit_faces, train_patch
from antipure.methods.lora_patching.warning import picture_warning, share_visible, text_warning, visibility, warned
from antipure.methods.metrics.encoders import Encoder
from antipure.methods.pictures import to_picture, to_pixels
from safetensors.torch import save_file
from torch import nn

SIDE = 16
QUICK = TrainingConfig(epochs=1, rank=4, inner_steps=2, batch=2, preview_every=1)


class Net(nn.Module):
    """A small editor that knows where it is and reacts strongly to its picture, so that an attack can steer it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(6, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.Tanh(),
            nn.Conv2d(12, 12, 4, 2, 1),
            nn.Tanh(),
            nn.ConvTranspose2d(12, 12, 4, 2, 1),
            nn.Tanh(),
            nn.Conv2d(12, 3, 3, padding=1),
        )

    def forward(self, pixels, label):
        shape = (len(pixels), -1, *pixels.shape[-2:])
        across = torch.linspace(-1, 1, pixels.shape[-1]).expand(shape[0], 1, *shape[2:])
        maps = label.view(1, -1, 1, 1).expand(shape)
        return torch.tanh(0.3 * pixels + 2 * self.body(torch.cat([10 * pixels, maps, across], 1)))


class Generator:
    """What the pack's generators look like from here."""

    name, edits, size, device = "tiny", ("hair", "glasses"), SIDE, torch.device("cpu")

    def __init__(self):
        torch.manual_seed(0)
        self.network = Net()
        self.fingerprint = fingerprint(self.network)

    def edit(self, pixels, edit):
        return self.network(pixels, torch.eye(2)[self.edits.index(edit)])


@pytest.fixture
def generator():
    return Generator()


def make_faces(count: int, seed: int = 0, side: int = SIDE) -> torch.Tensor:
    """Smooth colourful blobs."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)


def state_of(generator) -> list:
    network = generator.network
    return [
        (name, id(p), p.requires_grad, p.grad, p.detach().clone().tolist()) for name, p in network.named_parameters()
    ] + [
        [(name, id(m), m.training) for name, m in network.named_modules()],
        [(name, b.clone().tolist()) for name, b in network.named_buffers()],
        sorted(vars(network)),
    ]


def same_tensors(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def disturbed(generator, faces, patch) -> torch.Tensor:
    """Mean square between the edit of attacked faces and the untouched edit of clean ones, per edit."""
    distances = []
    for edit in generator.edits:
        with torch.no_grad():
            reference = generator.edit(to_pixels(faces), edit)
        with patched(generator, patch):
            attacked = pgd(
                faces,
                partial(disruption_loss, [partial(generator.edit, edit=edit)]),
                AttackSettings(levels=0.05 * 127.5, steps=10, seeds=77),
                step_levels=0.01 * 127.5,
                random_start=True,
                decay=False,
                together=True,
            )
            with torch.no_grad():
                distances.append((generator.edit(to_pixels(attacked), edit) - reference).square().mean())
    return torch.stack(distances)


def test_an_evaluation_patch_makes_the_generator_robust(generator):
    before = state_of(generator)
    config = TrainingConfig(mode="evaluation", epochs=8, learning_rate=5e-3, inner_steps=5, step_levels=2.55, batch=4)
    result = train_patch(generator, make_faces(16), config)
    assert state_of(generator) == before
    assert result.patch.config.rank == 8
    assert len(result.history) == 8 * 4 * 2
    first, last = (sum(row["total"] for row in rows) for rows in (result.history[:8], result.history[-8:]))
    assert last < 0.85 * first
    unseen = make_faces(6, seed=9)
    without, with_patch = disturbed(generator, unseen, None), disturbed(generator, unseen, result.patch)
    assert (with_patch < 0.85 * without).all()
    assert result.patch.metadata["mode"] == "evaluation"
    assert result.patch.metadata["mmfa"] == "off"
    assert result.patch.metadata["generator"] == "tiny"


@pytest.mark.parametrize("gate", ["none", "scalar"])
def test_a_defensive_patch_prints_the_warning(generator, gate):
    warning = torch.ones(1, 3, SIDE, SIDE)
    warning[..., : SIDE // 2] = -1
    config = TrainingConfig(epochs=6, learning_rate=1e-2, inner_steps=2, gate=gate)
    assert (config.mode, config.patch.rank) == ("defensive", 16)
    result = train_patch(generator, make_faces(16), config, warning=warning)
    unseen = to_pixels(make_faces(6, seed=9))
    with torch.no_grad():
        plain = generator.edit(unseen, "hair")
        with patched(generator, result.patch):
            printed = generator.edit(unseen, "hair")
    assert visibility(warned(plain, warning), plain, warning).min() > 0.9
    assert visibility(plain, plain, warning).abs().max() == 0
    assert share_visible(visibility(printed, plain, warning)) == 1
    assert result.history[-1]["total"] < 0.5 * result.history[0]["total"]


@pytest.mark.parametrize("gate", ["scalar", "channel"])
def test_resuming_equals_running_through(generator, tmp_path, gate):
    faces, config = make_faces(5), replace(QUICK, gate=gate, save_every=2, epochs=2)
    whole = train_patch(generator, faces, config)
    assert len(whole.history) == 2 * 3 * 2
    before, state = state_of(generator), tmp_path / "face.state"
    for stop in (1, 5):

        def cancel(done, total, picture=None, loss=None, stop=stop):
            if done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_patch(generator, faces, config, progress=cancel, state_file=state)
        assert state_of(generator) == before
    torch.manual_seed(123)
    seen = []
    resumed = train_patch(generator, faces, config, progress=lambda done, *_, **__: seen.append(done), state_file=state)
    assert seen == list(range(6, 13))
    assert same_tensors(resumed.patch.tensors, whole.patch.tensors)
    assert resumed.history == whole.history
    # Finished: nothing is left to do, and more epochs go on from here.
    again = train_patch(generator, faces, config, state_file=state)
    assert same_tensors(again.patch.tensors, whole.patch.tensors)
    longer = train_patch(generator, faces, replace(config, epochs=3), state_file=state)
    assert longer.history[:12] == whole.history
    assert len(longer.history) == 18
    with pytest.raises(AntiPureError, match="more than the 12 asked for"):
        train_patch(generator, faces, config, state_file=state)


class InterruptedAt:
    """Ctrl-C at the n-th line that Python is about to run of a step, its Adam included; None only notes the lines."""

    FILES = ("training.py", "training_state.py", "adam.py", "optimizer.py")

    def __init__(self, line: int | None, step: int):
        self.line, self.step, self.armed = line, step, False
        self.seen: list[str] = []  # the file of each line

    def __enter__(self):
        sys.settrace(self._called)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _called(self, frame, event, arg):
        name = frame.f_code.co_name
        if name == "_step" and "step" in frame.f_locals:
            self.armed = frame.f_locals["step"] == self.step
        if name == "_save":
            self.armed = False  # the step is over; that a file appears whole or not at all is tested elsewhere
        return self._line if frame.f_code.co_filename.endswith(self.FILES) else None

    def _line(self, frame, event, arg):
        if event == "line" and self.armed:
            self.seen.append(Path(frame.f_code.co_filename).name)
            if len(self.seen) - 1 == self.line:
                self.armed = False
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def test_ctrl_c_at_any_line_of_a_step_repeats_nothing(generator, tmp_path):
    """Also within Adam's update, and between it and the history."""
    faces, config = make_faces(1), replace(QUICK, inner_steps=1, preview_every=0, save_every=1, rank=1)
    whole = train_patch(generator, faces, config)
    assert len(whole.history) == 2
    state = tmp_path / "face.state"
    with InterruptedAt(None, 1) as run:
        train_patch(generator, faces, config, state_file=state)
    ours = [i for i, file in enumerate(run.seen) if file.startswith("training")]
    adams = [i for i, file in enumerate(run.seen) if not file.startswith("training")]
    assert len(ours) > 40
    assert len(adams) > 400
    kept = set()
    for line in [*ours, *adams[::37]]:
        state.unlink()
        with pytest.raises(KeyboardInterrupt), InterruptedAt(line, 1):
            train_patch(generator, faces, config, state_file=state)
        kept.add(len(torch.load(state, weights_only=True)["history"]))
        resumed = train_patch(generator, faces, config, state_file=state)
        assert same_tensors(resumed.patch.tensors, whole.patch.tensors), line
        assert resumed.history == whole.history, line
    assert kept == {1, 2}


def test_states_that_do_not_belong(generator, tmp_path):
    faces, state = make_faces(2), tmp_path / "face.state"
    train_patch(generator, faces, QUICK, state_file=state)
    before = state_of(generator)

    def refuse(message, faces=faces, config=QUICK, **arguments):
        with pytest.raises(AntiPureError, match=message):
            train_patch(generator, faces, config, state_file=state, **arguments)
        assert state_of(generator) == before

    refuse(r"different: seed\)", config=replace(QUICK, seed=1))
    refuse("different: faces", faces=make_faces(2, seed=4))
    refuse("different: edits", edits=("hair",))
    refuse("different: warning", warning=text_warning(SIDE, SIDE, "NO"))
    refuse("different: mmfa", mmfa=MMFA(lambda x: x.mean((2, 3)), None))
    content = state.read_bytes()
    state.write_bytes(content[:-5])
    refuse("not a complete checkpoint")
    saved = torch.load(io.BytesIO(content), weights_only=True)
    torch.save({**saved, "adam": {}}, state)
    refuse("is incomplete")
    torch.save({"weights": saved["parameters"]}, state)
    refuse("holds no state of a patch training")
    torch.save({**saved, "history": print}, state)
    refuse("could run code")
    save_file({"parameter.0": torch.zeros(1)}, state, metadata={"antipure_training": "{}"})
    refuse("give a training state of this version, or delete it to start anew")


def test_the_seed_decides_the_patch_and_nothing_else_does(generator):
    faces = make_faces(3)
    first = train_patch(generator, faces, QUICK)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same_tensors(train_patch(generator, faces, QUICK).patch.tensors, first.patch.tensors)
    assert torch.equal(state, torch.get_rng_state())
    with torch.inference_mode():
        inside = train_patch(generator, faces.clone(), QUICK)
    assert same_tensors(inside.patch.tensors, first.patch.tensors)
    other = train_patch(generator, faces, replace(QUICK, seed=1))
    assert not same_tensors(other.patch.tensors, first.patch.tensors)


def test_folding_the_patch_inside_the_attack_changes_nothing(generator, monkeypatch):
    faces = make_faces(2)
    folded = train_patch(generator, faces, QUICK)
    from contextlib import nullcontext

    from antipure.methods.lora_patching.patch import AppliedPatch

    monkeypatch.setattr(AppliedPatch, "folded", lambda self: nullcontext())
    plain = train_patch(generator, faces, QUICK)
    for name, value in folded.patch.tensors.items():
        torch.testing.assert_close(value, plain.patch.tensors[name], rtol=1e-3, atol=1e-4)


def test_the_outer_loss_is_the_papers(generator):
    """One step by hand: at step 0 a patch that starts as the identity leaves G' = G."""
    faces, warning = make_faces(2), text_warning(SIDE, SIDE)
    tiny = Encoder("mean", lambda x: x.mean((2, 3)) + 3)
    mmfa = MMFA(tiny, tiny)
    config = replace(QUICK, batch=2, initialisation="identity")
    result = train_patch(generator, faces, config, edits=("hair",), warning=warning, mmfa=mmfa)
    row = result.history[0]
    generator.network.eval()
    with torch.no_grad():
        output = generator.edit(to_pixels(faces), "hair")
        target = (2 * warning + output).clamp(-1, 1)
        assert row["clean"] == pytest.approx(F.mse_loss(output, target).item(), rel=1e-4)
        assert row["total"] == pytest.approx(row["clean"] + row["attacked"] + row["mmfa"], rel=1e-5)
        once = mmfa(output, mmfa.features(target)).item()
    assert once < row["mmfa"] < 4 * once
    assert row["attacked"] != row["clean"]
    assert result.patch.metadata["mmfa"]["backbone"] == "mean"


def test_progress_and_previews(generator):
    calls = []
    train_patch(
        generator,
        make_faces(3),
        replace(QUICK, preview_every=3),
        progress=lambda done, total, picture=None, loss=None: calls.append((done, total, picture, loss)),
    )
    assert [c[:2] for c in calls] == [(i, 4) for i in range(1, 5)]
    assert [c[2] is not None for c in calls] == [True, False, False, True]
    for _, _, picture, loss in calls:
        assert loss > 0
        if picture is not None:
            assert picture.shape == (1, 3, SIDE, 3 * SIDE)
            assert 0 <= picture.min() <= picture.max() <= 1


def test_mixed_precision_stays_close(generator):
    faces = make_faces(4)
    full = train_patch(generator, faces, QUICK)
    half = train_patch(generator, faces, replace(QUICK, precision="bf16"))
    for a, b in zip(full.history, half.history, strict=True):
        assert b["total"] == pytest.approx(a["total"], rel=0.05)
    assert all(value.dtype == torch.float32 for value in half.patch.tensors.values())


def test_a_trained_patch_survives_its_file(generator, tmp_path):
    result = train_patch(generator, make_faces(2), QUICK)
    loaded = load_patch(save_patch(result.patch, tmp_path / "patch"))
    assert same_tensors(loaded.tensors, result.patch.tensors)
    assert loaded.metadata == result.patch.metadata


def test_faces_are_cropped_and_resized():
    wide = torch.zeros(2, 3, 20, 40)
    wide[..., 10:30] = 1
    torch.testing.assert_close(fit_faces(wide, 16), torch.ones(2, 3, 16, 16))
    assert fit_faces(wide, None).shape == wide.shape
    assert fit_faces(wide[..., :20], 20) is not None
    assert fit_faces(make_faces(2, side=32), 16).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("faces", "arguments", "message"),
    [
        (torch.zeros(0, 3, 16, 16), {}, "no faces to train on"),
        (torch.zeros(2, 1, 16, 16), {}, "grayscale"),
        (torch.zeros(2, 16, 16, 3), {}, "B×3×H×W"),
        (torch.zeros(2, 3, 8, 30), {}, "faces are 8×30"),
        (torch.full((2, 3, 16, 16), 2.0), {}, "outside 0..1"),
        (torch.full((2, 3, 16, 16), -1.0), {}, "outside 0..1"),
        (torch.full((2, 3, 16, 16), float("nan")), {}, "NaN"),
        (None, {"edits": ("smile",)}, "no edit 'smile'"),
        (None, {"edits": ()}, "No edits were chosen"),
        (None, {"warning": torch.zeros(1, 3, 8, 8)}, "warning has shape"),
        (None, {"config": TrainingConfig(mode="evaluation"), "warning": torch.zeros(1, 3, 16, 16)}, "carries no warn"),
    ],
)
def test_bad_input_is_refused_before_work_starts(generator, faces, arguments, message):
    before = state_of(generator)
    faces = make_faces(2) if faces is None else faces
    with pytest.raises(AntiPureError, match=message):
        train_patch(generator, faces, **arguments)
    assert state_of(generator) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "attack"}, "no mode 'attack'"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"step_levels": 0.0}, "steps of 0"),
        ({"levels": 300.0}, "within 300 levels"),
        ({"learning_rate": 0.0}, "learning rate is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"gate": "open"}, "no gate 'open'"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(AntiPureError, match=message):
        TrainingConfig(**arguments)


def broken(change):
    """A generator whose edit is changed."""
    generator = Generator()
    edit = generator.edit
    generator.edit = lambda pixels, name: change(edit(pixels, name))
    return generator


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y.detach(), "pass no gradient"),
        (lambda y: y[..., 1:], "must keep the size"),
        (lambda y: y * float("nan"), "not finite|no longer finite"),
    ],
)
def test_generators_that_cannot_be_trained(change, message):
    generator = broken(change)
    before = state_of(generator)
    with pytest.raises(AntiPureError, match=message):
        train_patch(generator, make_faces(2), QUICK)
    assert state_of(generator) == before
    assert not is_patched(generator)


def test_out_of_memory_is_one_sentence(no_room):
    generator = broken(no_room)
    before = state_of(generator)
    whose = "The GPU has" if no_room.gpu else "There is"
    with pytest.raises(AntiPureError, match=f"^{whose} not enough memory for a training step"):
        train_patch(generator, make_faces(2), QUICK)
    assert state_of(generator) == before


@pytest.mark.parametrize("text", ["FAKE", "AI\nEDITED", "x", "Ünïcode!"])
@pytest.mark.parametrize("size", [(64, 64), (16, 48), (70, 33)])
def test_warnings_are_ink_with_an_outline_on_nothing(text, size):
    warning = text_warning(*size, text)
    assert warning.shape == (1, 3, *size)
    assert warning.min() >= -1
    assert warning.max() <= 1
    assert (warning < -0.5).any()
    assert (warning == 0).float().mean() > 0.25
    # Readable on any output: the ink ends light and the outline dark.
    for value in (-1.0, 0.0, 1.0):
        target = warned(torch.full((2, 3, *size), value), warning)
        assert target.amax() > 0.9 or (size[0] == 16 and target.amax() > value + 0.3)
        assert target.amin() < -0.9 or (size[0] == 16 and target.amin() < value - 0.3)
        assert torch.equal(target[:, warning[0] == 0], torch.full_like(target[:, warning[0] == 0], value))


@pytest.mark.parametrize(
    ("text", "other"), [("ВНИМАНИЕ", "ПОДДЕЛКА"), ("ΨΕΥΔΕΣ", "ΑΛΗΘΕΣ"), ("ÄÖ", "ÜÉ"), ("→", "←"), ("FÄKE", "FÖKE")]
)
def test_different_texts_are_different_pictures(text, other):
    """Both were the same boxes."""
    first, second = text_warning(64, 64, text), text_warning(64, 64, other)
    assert (first > 0.5).any()
    assert (first - second).abs().max() > 0.5


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("偽造された画像", "偽 (U+507D), 造 (U+9020)"),
        ("FAKE 한국", "characters 한 (U+D55C), 국 (U+AD6D) cannot be drawn"),
        ("مزيف", "U+0645"),  # DejaVu has the letters, but they have to be joined and run from the right
        ("FA\tKE", "characters U+0009 cannot"),
        ("FA\u200dKE", "characters U+200D cannot"),
        ("\ue000\u0301", "U+E000"),
        ("".join(map(chr, range(0x4E00, 0x4E20))), "(U+4E07), ... cannot be drawn"),
    ],
)
def test_characters_that_cannot_be_drawn_are_named(text, named):
    with pytest.raises(AntiPureError, match="use Latin, Greek or Cyrillic letters") as caught:
        text_warning(64, 64, text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_warnings_are_drawn_in_the_built_in_font_as_ever(monkeypatch):
    """Trained patches carry them: their bytes are not to change."""
    from antipure.methods.lora_patching import warning
    from PIL import Image, ImageDraw, ImageFont

    monkeypatch.setattr(warning, "lacking", lambda *_: pytest.fail("another font was looked at"))
    monkeypatch.setattr(warning, "_fitted", lambda ink, *_: ink)
    for text in ("FAKE", "AI\nEDITED", "~!{|}`", "“©”"):
        font = ImageFont.load_default(size=160)
        left, top, right, bottom = map(
            round, ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font, align="center")
        )
        image = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(image).multiline_text((-left, -top), text, font=font, align="center", fill=255)
        assert torch.equal(text_warning(64, 64, text)[0, 0], torch.tensor(list(image.tobytes())).view(
            image.height, image.width) / 255)  # fmt: skip
    assert torch.equal(text_warning(64, 64, "AI\r\nEDITED"), text_warning(64, 64, "AI\nEDITED"))


def test_letters_and_their_accents_may_come_apart():
    assert torch.equal(text_warning(64, 64, "U\u0308BER"), text_warning(64, 64, "ÜBER"))


def test_warnings_without_a_scalable_font(monkeypatch):
    from PIL import ImageFont

    bitmap = ImageFont.load_default

    def old(size=None):
        if size is not None:
            raise TypeError("load_default() got an unexpected keyword argument 'size'")
        return bitmap()

    monkeypatch.setattr(ImageFont, "load_default", old)
    assert (text_warning(64, 64, "FAKE") > 0.5).any()
    assert (text_warning(64, 64, "“FAKE”") > 0.5).any()
    monkeypatch.setattr(ImageFont, "truetype", lambda *_, **__: (_ for _ in ()).throw(ImportError("no _imagingft")))
    with pytest.raises(AntiPureError, match="only draw plain letters"):
        text_warning(64, 64, "FÄKE")


def test_a_users_picture_as_warning():
    paper = torch.ones(1, 3, 30, 60)
    paper[..., 10:20, 20:40] = 0
    warning = picture_warning(paper, 48, 48)
    assert warning.shape == (1, 3, 48, 48)
    assert (warning > 0.9).any()
    assert warning[..., :8, :].abs().max() == 0
    see_through = torch.zeros(1, 4, 30, 60)
    see_through[:, 3, 10:20, 20:40] = 1
    assert torch.equal(picture_warning(see_through, 48, 48), warning)


def test_warnings_that_cannot_be_drawn():
    for make, message in [
        (lambda: text_warning(64, 64, "FAKE " * 60), r"300 characters has letters of 0\.\d px at 64×64"),
        (lambda: text_warning(64, 64, " \n"), "no text"),
        (lambda: text_warning(8, 64), "cannot be read at 8×64"),
        (lambda: picture_warning(torch.ones(1, 3, 9, 9), 64, 64), "blank"),
        (lambda: picture_warning(torch.zeros(1, 1, 9, 9), 64, 64), "has shape"),
        (lambda: visibility(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 9, 9), torch.zeros(1, 3, 8, 8)), "differ"),
    ]:
        with pytest.raises(AntiPureError, match=message):
            make()


def test_visibility_is_a_correlation():
    warning = text_warning(32, 32)
    # Multiples of 1/256, which add up without rounding: noise of rounding correlates with anything.
    plain = torch.randint(-128, 128, (4, 3, 32, 32)) / 256
    values = visibility(plain + torch.tensor([1.0, 0.1, -1.0, 0.0]).view(-1, 1, 1, 1) * warning + 0.25, plain, warning)
    torch.testing.assert_close(values, torch.tensor([1.0, 1.0, -1.0, 0.0]), atol=2e-3, rtol=0)
    assert share_visible(values) == 0.5


def test_previews_are_pictures_of_the_generator(generator):
    shown = []
    faces = make_faces(1)
    config = replace(QUICK, initialisation="identity")
    train_patch(generator, faces, config, edits=("hair",), progress=lambda *told: shown.append(told[2]))
    generator.network.eval()
    with torch.no_grad():
        plain = to_picture(generator.edit(to_pixels(faces), "hair"))
    torch.testing.assert_close(shown[0][..., :SIDE], faces)
    torch.testing.assert_close(shown[0][..., SIDE : 2 * SIDE], plain, atol=1e-5, rtol=0)
