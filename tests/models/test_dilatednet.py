"""What Yu and Koltun say of front end and context module."""

import pytest
import torch
from torch import nn

from dilated_seg.commands.objects import parse_network
from dilated_seg.models import ContextModule, DilatedNet, FrontEnd
from dilated_seg.models.layers import reflect
from tests.support.released_layers import AUTHORS, PUBLISHED, rows


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


def test_a_front_end_score_has_a_receptive_field_of_380_pixels():
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
def test_identity_initialization_passes_scores_through(size):
    torch.manual_seed(1)
    scores = torch.rand(1, 4, 40, 40) * 5
    passed = ContextModule(4, size)(scores)
    if size == "basic":
        torch.testing.assert_close(passed, scores)
    else:  # Equation 5 adds noise, so that channels of one class can come to differ
        assert 0 < (passed - scores).abs().mean() < 0.2 * scores.mean()


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


@pytest.mark.parametrize("name", ["context_basic_c21", "context_large_c21", "context_basic7_c11", "context_basic10_c19"])
def test_center_taps_start_as_the_released_filler_sets_them(name):
    call, _ = PUBLISHED[name]
    module = parse_network(call, "cpu")
    classes = AUTHORS[name]["num_classes"]
    for layer, row in zip((c for c in module.layers if isinstance(c, nn.Conv2d)), rows(name), strict=True):
        centre = layer.weight[:, :, layer.kernel_size[0] // 2, layer.kernel_size[0] // 2]
        for group in range(classes):
            outs, ins = row["out"] // classes, row["in"] // classes
            block = centre[group * outs : (group + 1) * outs, group * ins : (group + 1) * ins]
            assert torch.equal(block, torch.full_like(block, classes / row["out"]))
        assert not layer.bias.any()


def test_noise_of_the_large_module_is_the_release_rule():
    module = parse_network("ContextModule(21, 'large')", "cpu")
    convolutions = [c for c in module.layers if isinstance(c, nn.Conv2d)]
    expected = [0.01, 0.01, 0.01 / 4, 0.01 / 8, 0.01 / 16, 0.01 / 32, 0.01 / 32, 0.01 / 32]
    for layer, std in zip(convolutions, expected, strict=True):
        off_centre = layer.weight[:, :, 0, 0] if layer.kernel_size[0] == 3 else layer.weight[0, 32:, 0, 0]
        assert off_centre.std().item() == pytest.approx(std, rel=0.1)


def test_an_image_smaller_than_the_margin_is_reflected_as_often_as_it_takes():
    row = torch.arange(4.0).view(1, 1, 1, 4)
    assert reflect(row, 7)[0, 0, 7].tolist() == [1, 0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2]
    torch.testing.assert_close(reflect(torch.rand(1, 1, 30, 40), 20).shape, torch.Size((1, 1, 70, 80)))
    image = torch.rand(1, 3, 30, 40)
    torch.testing.assert_close(reflect(image, 20), nn.functional.pad(image, [20] * 4, mode="reflect"))
