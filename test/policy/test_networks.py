import json

import pytest
import torch
from torch import nn

from onedp_ros.policy.networks import FilmBlock, ImageEncoder, NetworkConfig, SpatialSoftmax, UNet

SMALL = NetworkConfig(encoder_width=16, unet_channels=(8, 16, 32), step_dim=8)


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize(("channels", "size"), [((256, 512, 1024), 66.92), ((512, 1024, 2048), 255.61)])
def test_unet_has_the_papers_number_of_parameters(channels, size):
    with torch.device("meta"):
        unet = UNet(10, 2 * 137, NetworkConfig(unet_channels=channels))
    assert round(millions(unet), 2) == size


def test_encoder_is_a_resnet18_with_group_norm():
    with torch.device("meta"):
        encoder = ImageEncoder(NetworkConfig())
    assert 11.1 < millions(encoder) < 11.3
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    norms = [m for m in encoder.modules() if isinstance(m, nn.GroupNorm)]
    assert {m.num_channels // m.num_groups for m in norms} == {16}


def test_shapes():
    encoder, unet = ImageEncoder(SMALL), UNet(10, 21, SMALL)
    assert encoder(torch.rand(2, 3, 108, 144)).shape == (2, 64)
    assert unet(torch.randn(3, 16, 10), torch.tensor([0, 50, 99]), torch.randn(3, 21)).shape == (3, 16, 10)


def test_spatial_softmax_returns_the_place_of_a_bright_spot():
    pool = SpatialSoftmax(1, 1)
    nn.init.constant_(pool.conv.weight, 100.0)
    image = torch.zeros(1, 1, 5, 9)
    image[0, 0, 4, 2] = 1.0
    torch.testing.assert_close(pool(image), torch.tensor([[-0.5, 1.0]]))


def test_film_multiplies_by_the_scale_itself():
    """scale * h + bias: with scale and bias zero nothing of the hidden layer is left (with 1 + scale it would be)."""
    block = FilmBlock(8, 8, 3, 5)
    for parameter in block.film.parameters():
        nn.init.zeros_(parameter)
    one, other = (block(x, torch.randn(1, 3)) - x for x in torch.randn(2, 1, 8, 16))
    torch.testing.assert_close(one, other)


def test_step_and_condition_change_the_output():
    torch.manual_seed(0)
    unet = UNet(10, 21, SMALL)
    x, c = torch.randn(1, 16, 10), torch.randn(1, 21)
    out = unet(x, torch.tensor([10]), c)
    assert not torch.allclose(out, unet(x, torch.tensor([11]), c))
    assert not torch.allclose(out, unet(x, torch.tensor([10]), c + 1))


def test_config_survives_json():
    assert NetworkConfig.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder_width": 20}, "encoder_width"),
        ({"unet_channels": [12]}, "unet_channels"),
        ({"kernel": 4}, "kernel"),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_bad_config_names_the_field(change, named):
    with pytest.raises(ValueError, match=named):
        NetworkConfig.from_dict({**SMALL.to_dict(), **change})
