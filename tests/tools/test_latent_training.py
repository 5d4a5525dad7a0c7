"""What the demo latent model is trained with: the pool of drawings, the path of colour, going on from weights."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn


@pytest.fixture
def pools(tool):
    return tool("draw_pool")


def test_a_pool_is_the_same_however_it_was_drawn(pools):
    whole = pools.drawn(0, 4, seed=0, side=32)
    parts = [pools.drawn(first, 2, seed=0, side=32) for first in (0, 2)]
    assert whole["pictures"].shape == (16, 3, 32, 32)
    for name in ("pictures", "labels"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))


def test_heads_are_the_renderers_own(pools, tool):
    """One head in several styles: labels that belong to the person are equal, and those of the plain renderer."""
    who, shots = pools.numbered(0, 2, 0)
    pictures, labels = pools.painted_often(who, shots, 32)
    plain = tool("portraits").draw_portraits(who, shots, side=32)
    slots = list(tool("portraits").SLOTS)
    person = [i for i, name in enumerate(slots) if name != "style"]
    for variant in range(pools.VARIANTS):
        assert torch.equal(labels[2 * variant : 2 * variant + 2, person], plain.labels[:, person])
    styles = labels[::2, slots.index("style")]
    assert len(set(styles.tolist())) == pools.VARIANTS
    assert not torch.equal(pictures[0], pictures[2])


def test_nobody_held_out_is_drawn(pools, tool):
    who, _ = pools.numbered(0, 100_000, 3)
    pool = tool("latent_pool")
    assert who.max() < pool.HELD_OUT
    assert (who[::6] < pool.KNOWN).all()


def test_drawing_goes_on_where_it_was_stopped(pools, tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pools, "drawn", lambda first, *_: {"pictures": torch.full((2, 3, 8, 8), first).byte(),
                                                           "labels": torch.zeros(2, 10).byte()})  # fmt: skip
    monkeypatch.setattr("sys.argv", ["draw_pool", "--out", str(tmp_path), "--count", "90"])
    pools.main()
    (tmp_path / "pool-00000.safetensors").unlink()
    before = (tmp_path / "pool-00001.safetensors").stat().st_mtime_ns
    pools.main()
    assert (tmp_path / "pool-00001.safetensors").stat().st_mtime_ns == before
    pictures, labels = tool("latent_pool").read_pool(tmp_path)
    assert pictures[:, 0, 0, 0].tolist() == [0, 0, 12, 12]
    assert labels.dtype == torch.int64
    with pytest.raises(SystemExit, match="draw some"):
        tool("latent_pool").read_pool(tmp_path / "empty")


def test_colour_loss_sees_colour_alone(tool):
    training = tool("latent_training")
    truth = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert training.colour_loss(truth + 0.2, truth) < 1e-6
    red = truth + torch.tensor([0.2, 0, 0]).view(1, 3, 1, 1)
    # R - G off by .2, (R + G) / 2 - B by .1: mean .15, once over 2 pixels and three times over 8.
    assert float(training.colour_loss(red, truth)) == pytest.approx(0.15 * 4, abs=1e-5)


def test_the_path_carries_the_mean_colour_of_each_place(tool):
    """The two latents are opponent colours of 8×8 pixels, worked out here by hand; flat colours come back."""
    torch.manual_seed(0)
    tools_colour, network = tool("latent_colour"), tool("latent_networks").Autoencoder(width=16)
    flat = torch.rand(6, 3, 1, 1) * 0.5 + 0.25
    pictures = (flat + 0.1 * torch.randn(6, 3, 32, 32)).clamp(0, 1)
    carriers = tools_colour.give_colour(network, pictures)
    with torch.no_grad():
        latents = network.taesd_encoder(pictures)[:, carriers]
        red, green, blue = F.avg_pool2d(pictures, 8).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], 1)
        expected = (opponents - opponents.mean((0, 2, 3), keepdim=True)) / opponents.std((0, 2, 3)).view(1, 2, 1, 1)
        assert torch.allclose(latents, expected, atol=1e-4)

        plain = flat.expand(-1, -1, 64, 64)
        back = network.decode(network.taesd_encoder(plain))[..., 28:36, 28:36]
        r, g, b = back.unbind(1)
        soft = 3 * torch.tanh(network.taesd_encoder(plain)[:, carriers, 4, 4] / 3)  # the decoder clamps softly
        spread, mean = opponents.std((0, 2, 3)), opponents.mean((0, 2, 3))
        for seen, i in ((r - g, 0), ((r + g) / 2 - b, 1)):
            assert torch.allclose(seen, (soft[:, i] * spread[i] + mean[i]).view(-1, 1, 1).expand_as(seen), atol=1e-4)


def test_the_transformer_knows_nothing_of_the_new_latents(tool):
    torch.manual_seed(0)
    model = tool("latent_networks").MMDiT(width=64)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    tool("latent_colour").forget(model, torch.tensor([3, 7]))
    x = torch.randn(1, 16, 4, 4)
    other = x.clone()
    other[:, [3, 7]] += 1
    told = torch.tensor([0.5]), torch.randn(1, 5, 64), torch.randn(1, 64)
    with torch.no_grad():
        out = model(x, *told)
        assert torch.equal(out, model(other, *told))
        assert (out[:, [3, 7]] == 0).all()
        assert (out[:, 0] != 0).any()


def test_what_is_written_is_read_again(tool, tmp_path):
    torch.manual_seed(0)
    networks, train = tool("latent_networks"), tool("train_latent_model")
    sizes = tool("latent_pool").SIZES
    both = nn.ModuleDict({"model": networks.MMDiT(), "conditions": networks.Conditions(sizes)})
    network = networks.Autoencoder()
    save_file(network.exported(), tmp_path / "autoencoder.safetensors")
    train.write_files(both, tmp_path)
    sizes_of = [path.stat().st_size for path in sorted(tmp_path.glob("model-*.safetensors"))]
    assert len(sizes_of) == 4
    assert max(sizes_of) < 6_000_000
    again, other = (
        nn.ModuleDict({"model": networks.MMDiT(), "conditions": networks.Conditions(sizes)}),
        networks.Autoencoder(),
    )
    tool("latent_training").read_autoencoder(tmp_path, other)
    assert tool("latent_training").read_model(tmp_path, again["model"], again["conditions"])
    for key, value in both.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float()), key
    with torch.no_grad():
        z = torch.randn(1, 16, 4, 4)
        torch.testing.assert_close(other.decode(z), network.decode(z), rtol=1e-2, atol=1e-2)


def test_training_the_decoder_alone_leaves_the_latents_as_they_are(tool, tmp_path, monkeypatch):
    torch.manual_seed(0)
    networks = tool("latent_networks")
    start, out = tmp_path / "start", tmp_path / "out"
    start.mkdir()
    out.mkdir()
    save_file(networks.Autoencoder().exported(), start / "autoencoder.safetensors")
    args = argparse.Namespace(
        out=out, start=start, decoder_only=True, ae_minutes=1.0, ae_batch=2, ae_rate=1e-3, crop=16, colour=1.0,
        near=0.0, report=99.0, save=99.0, seed=0,
    )  # fmt: skip

    class Pool:
        device = torch.device("cpu")

        def batch(self, size: int):
            return torch.rand(size, 3, 32, 32), torch.zeros(size, 10)

    class Steps:
        """Three steps, in place of a clock: however busy the machine is."""

        before, spent, done = 0.0, 0.0, 0

        def __init__(self, *_):
            pass

        @property
        def share(self) -> float:
            return self.done / 3

        def rate(self, peak: float) -> float:
            self.done += 1
            return peak

    trainer = tool("train_latent_autoencoder")
    monkeypatch.setattr(trainer, "Clock", Steps)
    trainer.train_autoencoder(args, Pool(), torch.device("cpu"))
    before, after = (load_file(folder / "autoencoder.safetensors") for folder in (start, out))
    encoder = [key for key in before if key.startswith("taesd_encoder")]
    assert all((before[key].float() - after[key].float()).abs().max() < 2e-3 for key in encoder)
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("taesd_decoder"))
