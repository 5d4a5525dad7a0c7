"""The host's UPSCALE_MODEL as an upscaler: in tiles as in one piece, and given back after its session."""

import pytest
import torch
from antipure.methods.errors import AntiPureError
from antipure.methods.purification.purifiers import parse_purifier
from antipure.nodes.upscale_model import OVERLAP, TILE, ModelUpscaler
from torch import nn


class Descriptor:
    """What spandrel gives, with random weights: two convolutions and a pixel shuffle."""

    scale, input_channels, output_channels = 2, 3, 3

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.Sigmoid(), nn.PixelShuffle(2))
        self.devices, self.largest, self.room = [], 0, TILE

    def to(self, device):
        self.devices.append(torch.device(device))
        return self

    def __call__(self, picture):
        self.largest = max(self.largest, *picture.shape[-2:])
        if self.largest > self.room:
            self.largest = 0
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        with torch.no_grad():
            return self.model(picture)


@pytest.mark.parametrize("room", [TILE, TILE // 4])
def test_tiles_are_the_whole_but_for_their_borders(room):
    descriptor = Descriptor()
    descriptor.room = room
    picture = torch.rand(1, 3, 200, 530, generator=torch.Generator().manual_seed(1))
    upscaler = ModelUpscaler(descriptor)
    with upscaler.session():
        found = upscaler.enlarge(picture)
    with torch.no_grad():
        whole = descriptor.model(picture)
    apart = (found - whole).abs()
    assert descriptor.largest <= room
    # A tile's outermost pixel sees zeros beyond it, where it counts least.
    assert apart.max() < 2 / OVERLAP
    assert (apart > 1e-5).float().mean() < 0.05
    assert descriptor.devices[-1] == torch.device("cpu")


def test_it_is_a_purifier_of_the_list():
    purifier = parse_purifier("noise8+upscale", {}, upscalers={"upscale_model": ModelUpscaler(Descriptor())})
    picture = torch.rand(2, 3, 20, 31)
    with purifier.session():
        assert purifier(picture).shape == picture.shape


def test_grey_ones_are_refused():
    descriptor = Descriptor()
    descriptor.input_channels = 1
    with pytest.raises(AntiPureError, match="RGB"):
        ModelUpscaler(descriptor)
