"""What the other papers say of their networks, and what our forms promise."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from dilated_seg.models import FCN, DeconvNet, DeepLabV1, FCDenseNet, SegNet, SegNetBasic, resnet
from dilated_seg.models.layers import Unpool, Upsample, scale_channels
from tests.support.tolerance import assert_equal_but_for_rounding


def randomised(net):
    """Statistics that are not 0 and 1."""
    for layer in net.eval().modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.3)
            layer.running_var.uniform_(0.5, 2)


def test_fcn_starts_from_zero_scores():
    assert not FCN(4, 8, width=1 / 16)(torch.randn(1, 3, 64, 64)).any()


def test_fcn_8s_with_silent_skips_is_fcn_32s():
    fine, coarse = FCN(3, 8, width=1 / 16).eval(), FCN(3, 32, width=1 / 16).eval()
    nn.init.normal_(coarse.score_fr.weight)
    fine.load_state_dict(coarse.state_dict(), strict=False)
    image = torch.randn(1, 3, 256, 256)
    inside = (slice(None), slice(None), slice(64, -64), slice(64, -64))
    with torch.no_grad():  # two doublings and one by 8 against one by 32: both are piecewise linear, not the same pieces
        assert F.mse_loss(fine(image)[inside], coarse(image)[inside]) < 0.05 * coarse(image)[inside].var()


def test_upsampling_keeps_every_score_over_the_pixels_it_came_from():
    ramp = torch.arange(9.0).view(1, 1, 1, 9) * 8 + 3.5  # the centre of each cell of 8 pixels
    pixels = Upsample(8)(ramp)[0, 0, 0, :70]
    torch.testing.assert_close(pixels[4:66], torch.arange(70.0)[4:66])
    ramp = torch.arange(9.0).view(1, 1, 1, 9) * 8  # DeepLab's poolings: the first pixel
    pixels = Upsample(8, corners=True)(ramp)[0, 0, 0]
    torch.testing.assert_close(pixels[:65], torch.arange(65.0))
    assert pixels[65:].tolist() == [64.0] * 7  # no score beyond the last one: it is repeated


def test_segnet_unpools_to_the_positions_of_the_maxima():
    net, image = SegNet(2, width=1 / 16), torch.randn(1, 4, 10, 14)
    pooled, indices = net.encoder.pools["pool1"](image)
    restored = F.max_unpool2d(pooled, indices, 2, 2, output_size=image.shape[-2:])
    assert torch.equal(restored[restored != 0], image[restored != 0])
    assert int((restored != 0).sum()) == pooled.numel()


def test_segnet_decoder_mirrors_its_encoder():
    net = SegNet(11, width=1 / 8)
    encoder = [c for stage in net.encoder.stages for c in stage if isinstance(c, nn.Conv2d)]
    decoder = [c for stage in net.decoder for c in stage if isinstance(c, nn.Conv2d)] + [net.conv1_1_D]
    assert [c.out_channels for c in encoder[:-1]][::-1] == [c.out_channels for c in decoder[:-1]]


def test_deconvnet_bottleneck_is_one_cell_at_224():
    net = DeconvNet(2, width=1 / 64).eval()
    shapes = []
    net.bottleneck.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[-2:]))
    with torch.no_grad():
        net(torch.randn(1, 3, 224, 224))
    assert shapes == [(7, 7)]


def test_deeplab_scores_have_the_released_sizes():
    net, shapes = DeepLabV1(21, width=1 / 64).eval(), []
    net.fc8.register_forward_hook(lambda _, args, output: shapes.append(tuple(output.shape[-2:])))
    for size in ((321, 321), (97, 129), (100, 130)):
        with torch.no_grad():
            net(torch.randn(1, 3, *size))
    assert shapes == [(41, 41), (13, 17), (14, 18)]


def test_width_scales_hidden_layers_and_never_to_nothing():
    assert [scale_channels(64, width) for width in (1, 0.5, 1 / 64, 1 / 1000)] == [64, 32, 1, 1]


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_is_torchvisions(depth):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(
        f"resnet{depth}", replace_stride_with_dilation=[False, True, True] if depth > 34 else None
    )
    randomised(theirs.double())
    ours = resnet.Encoder(depth, output_stride=8 if depth > 34 else 32).double().eval()
    state = {key: tensor for key, tensor in theirs.state_dict().items() if not key.startswith("fc.")}
    ours.load_state_dict(state)
    image = torch.randn(1, 3, 65, 90, dtype=torch.float64)
    maps = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
    with torch.no_grad():
        for stage, got in zip((1, 2, 3, 4), ours(image)[1:], strict=True):
            maps = theirs.get_submodule(f"layer{stage}")(maps)
            assert_equal_but_for_rounding(got, maps)


def test_a_dilated_resnet_of_basic_blocks_dilates_what_follows_the_lost_stride():
    stages = resnet.Encoder(18, 1 / 16, output_stride=8)
    found = [[block.conv1.dilation[0], block.conv2.dilation[0]] for stage in (stages.layer3, stages.layer4) for block in stage]
    assert found == [[1, 2], [2, 2], [2, 4], [4, 4]]


def test_released_batch_norm_has_its_epsilon_and_first_shift():
    for net in (
        SegNet(2, "authors", width=1 / 32),
        SegNetBasic(2, "authors", width=1 / 8),
        DeconvNet(2, "authors", width=1 / 64),
    ):
        norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert {layer.eps for layer in norms} == {1e-9}
        assert all(torch.equal(layer.bias, torch.full_like(layer.bias, 0.001)) for layer in norms)


def test_fc_densenet_starts_from_hes_uniform_distribution():
    weight = FCDenseNet(2, 56).get_parameter("down4.3.conv.weight")
    bound = (6 / (276 * 9)) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("size", [(10, 14), (9, 13), (1, 1), (7, 8)])
def test_deterministic_unpooling_is_torchs(size):
    image = torch.randn(2, 3, *size)
    pooled, indices = F.max_pool2d(image, 2, 2, ceil_mode=True, return_indices=True)
    unpool = Unpool()
    expected = unpool(pooled, indices, output_size=list(size))
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(unpool(pooled, indices, output_size=list(size)), expected)
    finally:
        torch.use_deterministic_algorithms(False)
