"""Generators: each network against its equations restated over the state dict, and loading of authors' layouts."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from antipure.methods.errors import AntiPureError
from antipure.methods.generators import attgan as attgan_module
from antipure.methods.generators import load_generator
from antipure.methods.generators.attgan import AttGANNetwork
from antipure.methods.generators.hisd import HiSDNetwork
from antipure.methods.generators.loading import generator_from_state
from antipure.methods.generators.stargan import StarGANNetwork
from antipure.methods.pictures import random_stream
from safetensors.torch import save_file
from torch import nn

SMALL_HISD = {
    "attributes": (2, 3),
    "encoder": (4, 6, 8),
    "translators": (5, 6, 7),
    "extractors": (4, 6, 8),
    "pre": (8, 9, 10),
    "post": (10, 11, 12),
    "style": 7,
    "noise": 3,
}


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor off its initial value, so that a forgotten scale, shift or statistic shows."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=g)
                tensor.copy_(0.5 + noise if "running_var" in name else tensor + 0.4 * (noise - 0.5))
    return network.eval()


def build(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "StarGAN":
        return randomised(StarGANNetwork(4, 5, 2), seed)
    if kind == "AttGAN":
        return randomised(AttGANNetwork((4, 6, 8), (8, 6), 13, 1, 1), seed)
    return randomised(HiSDNetwork(**SMALL_HISD), seed)


KINDS = ("StarGAN", "AttGAN", "HiSD")


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9)) * 2 - 1


# The networks, restated over the authors' names.


def stargan_by_hand(s, x, labels, blocks):
    def norm(y, i):
        scale, shift = s[f"main.{i}.weight"], s[f"main.{i}.bias"]
        mean, var = y.mean((2, 3), keepdim=True), y.var((2, 3), keepdim=True, unbiased=False)
        return (y - mean) / (var + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]

    y = torch.cat([x, labels[:, :, None, None] * torch.ones_like(x[:, :1])], 1)
    y = norm(F.conv2d(y, s["main.0.weight"], padding=3), 1).relu()
    y = norm(F.conv2d(y, s["main.3.weight"], stride=2, padding=1), 4).relu()
    y = norm(F.conv2d(y, s["main.6.weight"], stride=2, padding=1), 7).relu()
    for i in range(9, 9 + blocks):
        z = norm(F.conv2d(y, s[f"main.{i}.main.0.weight"], padding=1), f"{i}.main.1").relu()
        y = y + norm(F.conv2d(z, s[f"main.{i}.main.3.weight"], padding=1), f"{i}.main.4")
    i = 9 + blocks
    y = norm(F.conv_transpose2d(y, s[f"main.{i}.weight"], stride=2, padding=1), i + 1).relu()
    y = norm(F.conv_transpose2d(y, s[f"main.{i + 3}.weight"], stride=2, padding=1), i + 4).relu()
    return F.conv2d(y, s[f"main.{i + 6}.weight"], padding=3).tanh()


def attgan_by_hand(s, x, a, layers=3):
    def norm(y, name):
        statistics = s[f"{name}.1.running_mean"], s[f"{name}.1.running_var"]
        return F.batch_norm(y, *statistics, s[f"{name}.1.weight"], s[f"{name}.1.bias"])

    def inject(z):
        return torch.cat([z, a[:, :, None, None].expand(-1, -1, *z.shape[2:])], 1)

    codes = []
    for i in range(layers):
        name = f"enc_layers.{i}.layers"
        x = F.leaky_relu(norm(F.conv2d(x, s[f"{name}.0.weight"], stride=2, padding=1), name), 0.01)
        codes.append(x)
    z = norm(
        F.conv_transpose2d(inject(x), s["dec_layers.0.layers.0.weight"], stride=2, padding=1), "dec_layers.0.layers"
    )
    z = inject(torch.cat([z.relu(), codes[1]], 1))
    z = norm(
        F.conv_transpose2d(z, s["dec_layers.1.layers.0.weight"], stride=2, padding=1), "dec_layers.1.layers"
    ).relu()
    last = s["dec_layers.2.layers.0.weight"], s["dec_layers.2.layers.0.bias"]
    return F.conv_transpose2d(z, *last, stride=2, padding=1).tanh()


def hisd_by_hand(s, x, tag, attribute, noise):
    def conv(y, name, padding=0):
        return F.conv2d(y, s[f"{name}.weight"], s.get(f"{name}.bias"), padding=padding)

    def norm(y, scale, shift):
        mean, std = y.mean((2, 3), keepdim=True), y.std((2, 3), keepdim=True)
        return (y - mean) / (std + 1e-5) * scale[..., None] + shift[..., None]

    def own(y, name):
        return norm(y, s[f"{name}.weight"], s[f"{name}.bias"])

    def lrelu(y):
        return torch.where(y > 0, y, 0.2 * y)

    def double(y):
        return y.repeat_interleave(2, -1).repeat_interleave(2, -2)

    style = F.linear(noise, s[f"mappers.{tag}.pre_model.0.weight"], s[f"mappers.{tag}.pre_model.0.bias"])
    post = f"mappers.{tag}.post_models.{attribute}"
    for name in (*(f"mappers.{tag}.pre_model.{i}.linear" for i in (1, 2)), *(f"{post}.{i}.linear" for i in (0, 1))):
        style = F.linear(style.relu(), s[f"{name}.weight"], s[f"{name}.bias"])
    style = F.linear(style, s[f"{post}.2.weight"], s[f"{post}.2.bias"])

    y = conv(x, "encoder.0")
    for name in ("encoder.1", "encoder.2"):
        z = F.avg_pool2d(conv(lrelu(own(y, f"{name}.in1")), f"{name}.conv1", 1), 2)
        z = conv(lrelu(own(z, f"{name}.in2")), f"{name}.conv2", 1)
        y = (z + F.avg_pool2d(conv(y, f"{name}.sc"), 2)) / math.sqrt(2)
    code, t = y, f"translators.{tag}"
    p = F.linear(style, s[f"{t}.style_to_params.weight"], s[f"{t}.style_to_params.bias"])
    y = conv(y, f"{t}.model.0")
    for i in (1, 2):
        z, name = y, f"{t}.model.{i}"
        for j in (1, 2):
            width = z.shape[1]
            shift, scale, p = p[:, :width, None], p[:, width : 2 * width, None] + 1, p[:, 2 * width :]
            z = conv(lrelu(norm(z, scale, shift)), f"{name}.conv{j}", 1)
        y = (z + conv(y, f"{name}.sc")) / math.sqrt(2)
    assert p.shape[1] == 0
    mask = conv(y, f"{t}.masks.0").sigmoid()
    y = conv(y, f"{t}.features.0") * mask + code * (1 - mask)
    for name in ("decoder.0", "decoder.1"):
        z = conv(double(lrelu(own(y, f"{name}.in1"))), f"{name}.conv1", 1)
        z = conv(lrelu(own(z, f"{name}.in2")), f"{name}.conv2", 1)
        y = (z + double(conv(y, f"{name}.sc"))) / math.sqrt(2)
    return conv(y, "decoder.2")


def test_stargan_equals_its_equations(pixels):
    network = build("StarGAN")
    generator = generator_from_state(network.state_dict())
    expected = stargan_by_hand(network.state_dict(), pixels, torch.tensor([[0.0, 1, 0, 0, 1]] * 2), 2)
    torch.testing.assert_close(generator.edit(pixels, "Blond_Hair"), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


def test_attgan_equals_its_equations(pixels):
    network = build("AttGAN")
    generator = generator_from_state({"G": network.state_dict(), "D": {}})
    labels = torch.full((2, 13), -0.5)
    labels[:, 10] = labels[:, 12] = 0.5  # a picture without labels: no beard, young
    labels[:, 6] = 1
    expected = attgan_by_hand(network.state_dict(), pixels, labels)
    torch.testing.assert_close(generator.edit(pixels, "Eyeglasses"), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


def test_hisd_equals_its_equations(pixels):
    network = build("HiSD")
    generator = generator_from_state({"gen": build("HiSD", 1).state_dict(), "gen_test": network.state_dict()})
    noise = torch.randn(1, 3, generator=random_stream(0)).expand(2, -1)
    expected = hisd_by_hand(network.state_dict(), pixels, 1, 2, noise)
    torch.testing.assert_close(generator.edit(pixels, "tag 1: 2"), expected.clamp(-1, 1), rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    style = network.extracted_style(pixels, 1)
    assert style.shape == (2, 7)


@pytest.mark.parametrize(
    ("network", "millions", "count"),
    [(StarGANNetwork, 8.43, 8_430_528), (AttGANNetwork, 43.35, 43_352_707), (HiSDNetwork, 19.04, 19_043_939)],
)
def test_the_published_sizes(network, millions, count):
    with torch.device("meta"):
        parameters = sum(p.numel() for p in network().parameters())
    assert parameters == count
    assert round(parameters / 1e6, 2) == millions


# Loading.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["zip", "legacy", "data parallel", "safetensors", "half"])
def test_every_form_of_file_gives_the_same_generator(kind, form, pixels, tmp_path):
    state = build(kind).state_dict()
    expected = generator_from_state(build(kind).state_dict())
    path = tmp_path / ("g.safetensors" if form == "safetensors" else "200000-G.ckpt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "half":
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    elif form == "data parallel":
        torch.save({"module." + key: value for key, value in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    generator = load_generator(path, size=128)
    assert (generator.name, generator.size) == (kind, 128)
    assert generator.fingerprint == expected.fingerprint
    edit = generator.edits[1]
    atol = 2e-2 if form == "half" else 1e-5  # weights lie differently in memory
    torch.testing.assert_close(generator.edit(pixels, edit), expected.edit(pixels, edit), rtol=0, atol=atol)


def test_stargan_ignores_running_statistics(pixels):
    """The published file has them; its authors never leave training mode, where they are not used."""
    state = build("StarGAN").state_dict()
    expected = generator_from_state(state).edit(pixels, "Male")
    for key in [key for key in state if key.endswith(".bias")]:
        prefix = key.removesuffix("bias")
        state[prefix + "running_mean"] = torch.ones_like(state[key])
        state[prefix + "running_var"] = 5 * torch.ones_like(state[key])
        state[prefix + "num_batches_tracked"] = torch.tensor(3)
    assert torch.equal(generator_from_state(state).edit(pixels, "Male"), expected)


@pytest.mark.parametrize(("shortcuts", "injections"), [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)])
def test_attgan_variants_are_told_apart(shortcuts, injections):
    with torch.device("meta"):
        state = AttGANNetwork((64, 128, 256), (256, 128), 13, shortcuts, injections).state_dict()
    state = {key: torch.zeros(value.shape) for key, value in state.items()}
    network = generator_from_state(state).network
    assert (network.shortcuts, network.injections, network.n_attributes) == (shortcuts, injections, 13)


@pytest.mark.parametrize("kind", KINDS)
def test_broken_states_are_refused_by_name(kind):
    state = build(kind).state_dict()
    # Not a first layer: those tell the architectures apart.
    victim = [k for k in state if k.endswith("weight") and state[k].ndim == 4 and "_layers.0" not in k][2]
    missing = {key: value for key, value in state.items() if key != victim}
    with pytest.raises(AntiPureError, match="has no '|which has no place|where its other keys"):
        generator_from_state(missing)
    with pytest.raises(AntiPureError, match="surplus.weight"):
        generator_from_state(state | {"surplus.weight": torch.zeros(1)})
    with pytest.raises(AntiPureError, match="NaN"):
        generator_from_state(state | {victim: state[victim] * math.nan})
    with pytest.raises(AntiPureError, match=victim):
        generator_from_state(state | {victim: state[victim][:, :, :, :-1]})


@pytest.mark.parametrize("wrapped", [("ema",), ("state_dict", "gen"), ("model", "module."), ("gen_test", "module.")])
def test_wrapped_states_are_the_generator_inside(wrapped):
    state = content = build("StarGAN").state_dict()
    for name in reversed(wrapped):
        content = {name + k: v for k, v in content.items()} if name.endswith(".") else {name: content, "epoch": 3}
    found = generator_from_state(content).network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "layout",
    [
        lambda state: {"netG": state, "netD": {"a": torch.zeros(1)}},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"nets_ema": {"generator": state, "mapper": {"a": torch.zeros(1)}}, "nets": {}},
        lambda state: {"G." + k: v for k, v in state.items()} | {"D.main.0.weight": torch.zeros(2, 3, 4, 4)},
        lambda state: {
            **{"gen_test." + k: v for k, v in state.items()},
            **{"gen." + k: v + 1 for k, v in state.items()},
            "dis.conv.weight": torch.zeros(2, 2),
        },
        lambda state: {"state_dict": {"netG." + k: v for k, v in state.items()} | {"netD.a": torch.zeros(1)}},
        lambda state: {"G_ema": state, "G": {k: v + 1 for k, v in state.items()}},
    ],
    ids=["netG", "model", "nets_ema", "G.", "gen_test.", "state_dict netG.", "G_ema"],
)
def test_checkpoints_as_people_have_them(tmp_path, kind, layout):
    state = build(kind).state_dict()
    torch.save(layout(state), tmp_path / "g.pth")
    found = load_generator(tmp_path / "g.pth")
    assert found.name == kind
    loaded = found.network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items() if "num_batches" not in key)


class PlainAttGAN(nn.Module):
    """The authors' layers written down again, for any normalisation: names enc_layers.N.layers.M as in their files."""

    def __init__(self, norm, encoder=(8, 16), decoder=(16,), attributes=13):
        super().__init__()

        def block(layer, width, activation):
            norms = {"batch": nn.BatchNorm2d, "instance": lambda n: nn.InstanceNorm2d(n, affine=True)}
            inner = [layer] + ([norms[norm](width)] if norm in norms else []) + [activation]
            holder = nn.Module()
            holder.layers = nn.Sequential(*inner)
            return holder

        bias = norm == "none"
        self.enc_layers, self.dec_layers = nn.ModuleList(), nn.ModuleList()
        width = 3
        for out in encoder:
            self.enc_layers.append(block(nn.Conv2d(width, out, 4, 2, 1, bias=bias), out, nn.LeakyReLU()))
            width = out
        width += attributes
        for out in decoder:
            self.dec_layers.append(block(nn.ConvTranspose2d(width, out, 4, 2, 1, bias=bias), out, nn.ReLU()))
            width = out
        last = nn.Module()
        last.layers = nn.Sequential(nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())
        self.dec_layers.append(last)

    def forward(self, x, labels):
        for layer in self.enc_layers:
            x = layer.layers(x)
        x = torch.cat([x, labels[..., None, None].expand(-1, -1, *x.shape[-2:])], 1)
        for layer in self.dec_layers:
            x = layer.layers(x)
        return x


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_attgan_with_other_normalisations(norm, tmp_path):
    torch.manual_seed(0)
    plain = PlainAttGAN(norm)
    for name, value in plain.named_buffers():
        if "running" in name:
            value.copy_(torch.rand(value.shape) + 0.5)
    torch.save({"G": plain.state_dict()}, tmp_path / "weights.0.pth")
    found = load_generator(tmp_path / "weights.0.pth", size=32)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    for edit in ("Bald", "Old"):
        labels = torch.tensor(found.labels[edit]).expand(2, -1)
        with torch.no_grad():
            torch.testing.assert_close(found.edit(x, edit), plain.eval()(x, labels), atol=1e-5, rtol=1e-5)


def test_a_normalisation_that_nobody_knows_is_said():
    state = PlainAttGAN("none").state_dict()
    state |= {"enc_layers.0.layers.1.mean_weight": torch.zeros(3), "enc_layers.0.layers.1.weight": torch.zeros(8)}
    with pytest.raises(AntiPureError, match="switchable normalisation"):
        generator_from_state(state)


@pytest.mark.parametrize("size", [0, 7, 1025, -128, 10**9, 128.0, "128", True])
def test_absurd_sizes_are_refused(tmp_path, size):
    save_file(build("StarGAN").state_dict(), tmp_path / "g.safetensors")
    if size:  # none given: 256
        with pytest.raises(AntiPureError, match=r"g.safetensors cannot be used. Its size is .* from 8 to 1024"):
            load_generator(tmp_path / "g.safetensors", size=size)
    labels = {edit: [0.0] * 5 for edit in ("a", "b")}
    metadata = {"format": "antipure-stargan", "config": json.dumps({"labels": labels, "size": size})}
    save_file(build("StarGAN").state_dict(), tmp_path / "own.safetensors", metadata=metadata)
    with pytest.raises(AntiPureError, match=r"own.safetensors cannot be used. Its size is .* from 8 to 1024"):
        load_generator(tmp_path / "own.safetensors")


@pytest.mark.parametrize("kind", ["StarGAN", "AttGAN"])
def test_a_model_of_128_pixels_edits_at_128_pixels(tmp_path, kind):
    """The node's input; what comes out at that side is the edit itself, unscaled."""
    from antipure.nodes.generators import LoadGenerator

    save_file(build(kind).state_dict(), tmp_path / "g.safetensors")
    path = str(tmp_path / "g.safetensors")
    (unknown,), (published,) = LoadGenerator().load(path), LoadGenerator().load(path, size=128)
    assert (unknown.size, published.size) == (256, 128)
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    edit = published.edits[0]
    with torch.no_grad():
        expected = (published.edit(x * 2 - 1, edit) + 1) / 2
        torch.testing.assert_close(published.edit_picture(x, edit), expected, rtol=0, atol=1e-5)
        assert not torch.allclose(unknown.edit_picture(x, edit), expected, rtol=0, atol=1e-2)


class Payload:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/antipure-payload-ran",)


def test_files_that_are_no_generator_are_refused(tmp_path):
    with pytest.raises(AntiPureError, match="There is no generator"):
        load_generator(tmp_path / "none.ckpt")
    path = tmp_path / "g.ckpt"
    for content in ({"conv.weight": torch.zeros(2, 2)}, [1, 2], {"G": {"epoch": 3}}, {}):
        torch.save(content, path)
        with pytest.raises(AntiPureError, match="give a StarGAN, AttGAN or HiSD"):
            load_generator(path)
    torch.save(build("StarGAN").state_dict() | {"x": Payload()}, path)
    with pytest.raises(AntiPureError, match="could run code"):
        load_generator(path)
    torch.save(build("StarGAN").state_dict(), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(AntiPureError, match="g.ckpt"):
        load_generator(path)
    short = tmp_path / "g.safetensors"
    save_file(build("StarGAN").state_dict(), short)
    short.write_bytes(short.read_bytes()[:-40])
    with pytest.raises(AntiPureError, match="not a complete safetensors"):
        load_generator(short)
    save_file({"a": torch.zeros(1)}, short, metadata={"format": "antipure-stargan", "config": "{"})
    with pytest.raises(AntiPureError, match="cannot be read as a generator"):
        load_generator(short)


def test_an_exported_program_is_refused(tmp_path, pixels):
    path = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(nn.Conv2d(3, 3, 3, padding=1).eval(), (pixels,)), path)
    with pytest.raises(AntiPureError, match="can run code"):
        load_generator(path)


# The interface.


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_pixels_and_weights(kind, pixels):
    generator = generator_from_state(build(kind).state_dict())
    assert not any(p.requires_grad for p in generator.network.parameters())
    generator.network.requires_grad_(True)
    pixels.requires_grad_()
    generator.edit(pixels, generator.edits[0]).square().sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert next(generator.network.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_any_size_is_edited_and_edits_differ(kind):
    generator = generator_from_state(build(kind).state_dict(), size=32)
    odd = torch.rand(1, 3, 37, 45, generator=torch.Generator().manual_seed(1)) * 2 - 1
    first, second = (generator.edit(odd, edit) for edit in generator.edits[:2])
    assert first.shape == odd.shape
    assert first.abs().max() <= 1
    assert (first - second).abs().max() > 1e-3
    picture = generator.edit_picture((odd + 1) / 2, generator.edits[0])
    assert picture.shape == odd.shape
    assert 0 <= picture.min() <= picture.max() <= 1
    state = torch.get_rng_state()
    assert torch.equal(generator.edit(odd, generator.edits[0]), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_edit_picture_at_the_trained_size_is_the_edit(pixels):
    generator = generator_from_state(build("StarGAN").state_dict(), size=32)
    expected = (generator.edit(pixels, "Male") + 1) / 2
    torch.testing.assert_close(generator.edit_picture((pixels + 1) / 2, "Male"), expected, rtol=0, atol=1e-5)


def test_bad_requests_are_refused(pixels):
    generator = generator_from_state(build("StarGAN").state_dict())
    with pytest.raises(AntiPureError, match="no edit 'Bald'; choose one of Black_Hair"):
        generator.edit(pixels, "Bald")
    for bad in (pixels[:, :1], pixels[0], (pixels * 100).byte(), pixels[:0], pixels[..., :9]):
        with pytest.raises(AntiPureError, match="give"):
            generator.edit(bad, "Male")


def test_the_fingerprint_is_of_the_architecture():
    prints = [generator_from_state(build(kind, seed).state_dict()).fingerprint for kind in KINDS for seed in (0, 1)]
    assert prints[0::2] == prints[1::2]
    assert len(set(prints)) == 3
    assert len(prints[0]) == 64
    other = generator_from_state(StarGANNetwork(4, 5, 3).state_dict())
    assert other.fingerprint not in prints


def test_default_labels_of_the_published_models():
    stargan = generator_from_state(build("StarGAN").state_dict())
    assert stargan.labels["Black_Hair"] == (1, 0, 0, 0, 1)
    assert stargan.labels["Old"] == (0, 0, 0, 0, 0)
    assert stargan.labels["Male"] == (0, 0, 0, 1, 1)
    labels = attgan_module.default_labels(13)
    assert len(labels) == 13
    assert labels["Beard"][10] == -1
    assert labels["Beard"][12] == 0.5
    with torch.device("meta"):
        other = StarGANNetwork(8, 3, 1).state_dict()
    other = generator_from_state({k: torch.zeros(v.shape) for k, v in other.items()})
    assert other.edits == ("label 0", "label 1", "label 2")
