"""Labels of pictures: read in CelebA's layouts, and what StarGAN and AttGAN are told with them."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.errors import AntiPureError
from antipure.methods.generators import attgan, hisd, stargan
from antipure.methods.generators.labels import read_labels
from antipure.methods.generators.loading import load_generator
from antipure.methods.lora_patching.defence_report import defence_report
from antipure.methods.lora_patching.disrupting import disrupt
from antipure.methods.lora_patching.training import TrainingConfig, train_patch
from antipure.methods.pictures import round_8bit

LIST = """3
Young Black_Hair Blond_Hair Brown_Hair Smiling Male
000001.jpg -1  1 -1 -1  1 -1
000002.jpg  1 -1  1 -1 -1  1
000003.jpg  1 -1 -1 -1 -1  1
"""
CSV = "image_id," + ",".join(LIST.splitlines()[1].split()) + "\n" + "\n".join(
    ",".join(line.split()) for line in LIST.splitlines()[2:]
)  # fmt: skip


def told(network):
    """The label vectors that a network was called with."""
    seen = []
    network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1].clone()))
    return seen


@pytest.fixture
def star():
    torch.manual_seed(0)
    network = stargan.StarGANNetwork(4, 5, 1)
    return stargan.StarGAN(network, stargan.default_labels(5), size=16)


@pytest.fixture
def att():
    torch.manual_seed(0)
    return attgan.AttGAN(attgan.AttGANNetwork((4, 8), (8,), 13), size=16)


@pytest.fixture
def pictures():
    return round_8bit(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("text", [LIST, CSV, LIST.split("\n", 1)[1], CSV.replace("-1", "0"), CSV.replace("\n", "\r\n")])
def test_both_layouts_say_the_same(text):
    labels = read_labels(text)
    assert labels.files == ("000001.jpg", "000002.jpg", "000003.jpg")
    assert labels.attributes == ("Young", "Black_Hair", "Blond_Hair", "Brown_Hair", "Smiling", "Male")
    expected = [[1, 0, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 1, 1]]
    assert labels.columns(stargan.ATTRIBUTES).tolist() == expected
    assert labels.of(["000003.jpg", "000001.jpg"]).columns(["Male", "Young"]).tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no labels of any picture"),
        ("Young Male", "no labels of any picture"),
        (LIST.replace("000002.jpg  1 -1", "000002.jpg  1"), r"Line 4 of the labels .000002.jpg. has 5 values for 6"),
        (LIST.replace("000003.jpg  1", "000003.jpg  2"), "Line 5 of the labels .000003.jpg. has the value '2'"),
        (LIST.replace("000003", "000002"), "one file's name"),
        (LIST.replace("Smiling", "Young"), "Two attributes"),
    ],
)
def test_labels_that_do_not_fit_are_named(text, message):
    with pytest.raises(AntiPureError, match=message) as caught:
        read_labels(text)
    assert "\n" not in str(caught.value)
    labels = read_labels(LIST)
    with pytest.raises(AntiPureError, match="no line for '9.jpg'"):
        labels.of(["9.jpg"])
    with pytest.raises(AntiPureError, match="nothing about Bald"):
        labels.columns(["Bald"])


def test_stargan_flips_what_each_picture_has(star, pictures):
    """By hand: hair is set, the other colours go; everything else becomes its opposite."""
    own = read_labels(LIST).columns(star.attributes)
    known, seen = star.labelled(own), told(star.network)
    for edit, expected in (
        ("Male", [[1, 0, 0, 1, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 1]]),
        ("Old", [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 0, 1, 0]]),
        ("Brown_Hair", [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]),
        ("Black_Hair", [[1, 0, 0, 0, 0], [1, 0, 0, 1, 1], [1, 0, 0, 1, 1]]),
    ):
        known.edit(pictures * 2 - 1, edit)
        assert seen[-1].tolist() == expected
    star.edit(pictures * 2 - 1, "Male")  # the generator itself still guesses
    assert seen[-1].tolist() == [[0, 0, 0, 1, 1]] * 3


def test_attgan_flips_and_keeps_apart_what_excludes_each_other(att, pictures):
    names = attgan.ATTRIBUTES
    own = torch.zeros(3, 13)
    for row, has in enumerate((["Bangs", "Black_Hair", "No_Beard"], ["Bald", "Male", "Mustache"], ["Blond_Hair"])):
        own[row, [names.index(name) for name in has]] = 1
    known, seen = att.labelled(own), told(att.network)
    for edit, expected in (
        ("Bald", [["Bald", "Black_Hair", "No_Beard"], ["Male", "Mustache"], ["Bald", "Blond_Hair"]]),
        ("Bangs", [["Black_Hair", "No_Beard"], ["Bangs", "Male", "Mustache"], ["Bangs", "Blond_Hair"]]),
        ("Blond_Hair", [["Bangs", "Blond_Hair", "No_Beard"], ["Bald", "Blond_Hair", "Male", "Mustache"], []]),
        ("Beard", [["Bangs", "Black_Hair"], ["Bald", "Male", "No_Beard"], ["Blond_Hair", "No_Beard"]]),
        ("Male", [["Bangs", "Black_Hair", "Male", "No_Beard"], ["Bald", "Mustache"], ["Blond_Hair", "Male"]]),
    ):
        known.edit(pictures * 2 - 1, edit)
        place = list(att.edits).index(edit)
        for row, has in zip(seen[-1], expected, strict=True):
            wanted = [0.5 if name in has else -0.5 for name in names]
            wanted[place] *= 2
            assert row.tolist() == wanted


def test_pictures_are_disrupted_under_their_own_labels(star, pictures):
    """Picture by picture the same as that picture alone, and not as without labels."""
    own = read_labels(LIST).columns(star.attributes)
    settings = AttackSettings(levels=6, steps=3, seeds=[1, 2, 3])
    together = disrupt(star.labelled(own), pictures, ["Male", "Old"], settings)
    for i in range(3):
        one = AttackSettings(levels=6, steps=3, seeds=i + 1)
        alone = disrupt(star.labelled(own[i : i + 1]), pictures[i : i + 1], ["Male", "Old"], one)
        assert torch.equal(together[i : i + 1], alone)
    assert not torch.equal(together, disrupt(star, pictures, ["Male", "Old"], settings))
    with pytest.raises(AntiPureError, match="labels for 2 pictures, not for 3"):
        disrupt(star.labelled(own[:2]), pictures, ["Male"], settings)
    with pytest.raises(AntiPureError, match="labels for 2 pictures, not for 3"):
        star.labelled(own[:2]).edit(pictures, "Male")


def test_training_and_report_see_each_face_with_its_labels(star, pictures):
    own = read_labels(LIST).columns(star.attributes)
    wanted = {tuple(face.flatten().tolist()): tuple(row.tolist()) for face, row in zip(pictures, own, strict=True)}
    seen = []
    star.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    config = TrainingConfig(mode="evaluation", batch=2, inner_steps=1, rank=1, epochs=2)
    patch = train_patch(star, pictures, config, edits=("Male",), labels=own).patch
    plain = 0
    for pixels, labels in seen:
        for face, label in zip((pixels + 1) / 2, labels, strict=True):
            if (row := wanted.get(tuple(round_8bit(face).flatten().tolist()))) and len(pixels) % 2 == 0:
                assert label.tolist() == [row[0], row[1], row[2], 1 - row[3], row[4]]
                plain += 1
    assert plain > 8
    assert patch.metadata["labels"] == "of each picture"
    reports = [
        defence_report(star, patch, pictures, edits=["Male"], labels=labels, strong=False, batch=2).data()
        for labels in (own, None)
    ]
    assert reports[0] != reports[1]
    with pytest.raises(AntiPureError, match="labels for 2 pictures, not for 3"):
        defence_report(star, patch, pictures, labels=own[:2])
    with pytest.raises(AntiPureError, match="labels for 2 pictures, not for 3"):
        train_patch(star, pictures, config, labels=own[:2])


def test_networks_that_are_told_of_no_attributes():
    toy = load_generator()
    assert toy.attributes == ()
    with pytest.raises(AntiPureError, match="takes no labels of pictures"):
        toy.labelled(torch.zeros(1, 5))
    assert toy.labelled(None) is toy
    network = hisd.HiSDNetwork((2, 2, 3), (4, 8, 8), (4, 4), (4, 4), (4, 4), (4, 4), 4, 2)
    with pytest.raises(AntiPureError, match="HiSD"):
        hisd.HiSD(network).labelled(torch.zeros(1, 5))


def test_the_nodes_run_the_papers_protocol(star, pictures, tmp_path):
    """From the file to the edits: every attribute flipped."""
    from antipure.nodes import NODE_CLASS_MAPPINGS as NODES

    file = tmp_path / "list_attr_celeba.txt"
    file.write_text(LIST, encoding="utf-8")
    reader = NODES["AntiPureFaceLabels"]()
    labels, report = reader.read(str(file), "000003.jpg, 000001.jpg")
    assert report == "2 pictures, 6 attributes"
    assert reader.read(LIST, "")[0].files == ("000001.jpg", "000002.jpg", "000003.jpg")
    state = reader.IS_CHANGED(labels=str(file))
    assert state != reader.IS_CHANGED(labels=LIST) == ""
    seen = told(star.network)
    image = pictures[:2].permute(0, 2, 3, 1)
    NODES["AntiPureEditFace"]().edit(star, image, "Male, Old", labels=labels)
    assert [value.tolist() for value in seen[-2:]] == [
        [[0, 0, 0, 0, 1], [1, 0, 0, 1, 0]],
        [[0, 0, 0, 1, 0], [1, 0, 0, 0, 1]],
    ]
    NODES["AntiPureDisruptProtect"]().protect(image, star, "Male", 6.0, 1, 1.0, 0, labels=labels)
    with pytest.raises(AntiPureError, match="labels for 2 pictures, not for 3"):
        NODES["AntiPureEditFace"]().edit(star, pictures.permute(0, 2, 3, 1), "Male", labels=labels)
    with pytest.raises(AntiPureError, match="There is no none.txt"):
        reader.read(str(tmp_path / "none.txt"), "")
