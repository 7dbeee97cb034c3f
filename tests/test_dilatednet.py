"""What Yu and Koltun say of front end and context module."""

import pytest
import torch
from torch import nn

from dilated_seg.models import ContextModule, DilatedNet, FrontEnd


def receptive_field(layers: nn.Module, channels: int, side: int) -> int:
    """The width of what one output sees, by gradient, with weights that cannot cancel."""
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 0.1)
            nn.init.constant_(layer.bias, 0.1)
    maps = torch.ones(1, channels, side, side, requires_grad=True)
    output = layers(maps)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    seen = maps.grad.abs().sum((0, 1, 2)).nonzero()
    return int(seen.max() - seen.min()) + 1


@pytest.mark.parametrize(("layers", "expected"), [*enumerate((3, 5, 9, 17, 33, 65, 67, 67), start=1)])
def test_receptive_field_of_the_context_module_after_each_layer_is_table_1(layers, expected):
    convolutions = [layer for layer in ContextModule(2).layers if isinstance(layer, nn.Conv2d)][:layers]
    assert receptive_field(nn.Sequential(*convolutions), 2, 99) == expected


def test_without_dilation_the_context_module_sees_15_cells():
    assert receptive_field(ContextModule(2, dilated=False), 2, 41) == 15


def test_a_front_end_score_sees_380_pixels():
    front_end = FrontEnd(2, width=1 / 64).double().eval()
    for layer in front_end.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 0.1)
    image = torch.rand(1, 3, 8, 800, dtype=torch.float64, requires_grad=True)
    # max pooling sends a gradient to one pixel in two: over many images the union is the whole field
    seen = torch.zeros(800, dtype=torch.bool)
    for _ in range(12):
        image = torch.rand(1, 3, 16, 800, dtype=torch.float64, requires_grad=True)
        front_end(image)[0, 0, 0, 50].backward()
        seen |= image.grad.abs().sum((0, 1, 2)) > 0
    columns = seen.nonzero()
    assert int(columns.max() - columns.min()) + 1 == 380


@pytest.mark.parametrize("size", ["basic", "large"])
def test_identity_initialisation_passes_scores_through(size):
    torch.manual_seed(1)
    scores = torch.rand(1, 4, 40, 40) * 5
    passed = ContextModule(4, size)(scores)
    if size == "basic":
        torch.testing.assert_close(passed, scores)
    else:  # Equation 5 adds noise, so that channels of one class can come to differ
        assert (passed - scores).abs().mean() < 0.1 * scores.mean()


def test_negative_scores_are_cut_off_by_the_context_module():
    assert not ContextModule(3)(-torch.rand(1, 3, 20, 20)).any()


def test_the_basic_context_module_has_64_c_squared_weights():
    c = 21
    weights = [p for name, p in ContextModule(c).named_parameters() if name.endswith("weight")]
    assert sum(weight.numel() for weight in weights) == 64 * c * c


def test_the_large_module_widens_as_table_1_says():
    widths = [layer.out_channels for layer in ContextModule(3, "large").layers if isinstance(layer, nn.Conv2d)]
    assert widths == [6, 6, 12, 24, 48, 96, 96, 3]


def test_the_context_module_starts_without_changing_what_the_front_end_predicts():
    torch.manual_seed(0)
    net = DilatedNet(5, width=1 / 16).eval()
    nn.init.normal_(net.front_end.final.weight, std=0.05)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = net.front_end(image)
        assert (maps > 0).all()
        torch.testing.assert_close(net.context(maps), maps)
