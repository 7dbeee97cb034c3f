"""What the papers and their reimplementations choose differently, as arguments; the defaults are in test_released.py."""

import pytest
import torch
from torch import nn

from dilated_seg.analysis.summary import summarize
from dilated_seg.models import FCN, ContextModule, DeepLabV1, DilatedNet, FrontEnd
from dilated_seg.models.upsampling import build_upsampling
from tests.models.test_dilatednet import receptive_field

TINY = {"width": 1 / 16, "dropout": 0.0}
NETWORKS = {
    "FCN-32s": lambda **kw: FCN(5, 32, **TINY, **kw),
    "FCN-8s": lambda **kw: FCN(5, 8, **TINY, **kw),
    "FCN-8s, ResNet": lambda **kw: FCN(5, 8, resnet=18, **TINY, **kw),
    "DeepLab": lambda **kw: DeepLabV1(5, **TINY, **kw),
    "DeepLab-MSc": lambda **kw: DeepLabV1(5, msc=True, **TINY, **kw),
    "DilatedNet": lambda **kw: DilatedNet(5, **TINY, **kw),
    "DilatedNet, reflected": lambda **kw: DilatedNet(5, padding="reflect", **TINY, **kw),
    "DilatedNet, 10 layers": lambda **kw: DilatedNet(5, context_layers=10, padding="reflect", **TINY, **kw),
    "front end, ResNet": lambda **kw: DilatedNet(5, None, resnet=18, **TINY, **kw),
}
WITH_TIMM = {
    "FCN-8s, timm": lambda **kw: FCN(5, 8, encoder="convnext_atto", dropout=0.0, **kw),
    "front end, timm": lambda **kw: DilatedNet(5, None, encoder="resnet18", dropout=0.0, **kw),
    "DeepLab, timm": lambda **kw: DeepLabV1(5, encoder="resnet18", dropout=0.0, **kw),
}
KINDS = ("bilinear", "aligned", "transposed", "transposed_full", "fixed")


def build(name, like=None, **kwargs):
    """A network whose scores are not zero, with the weights of another one where both have them."""
    torch.manual_seed(0)
    net = (NETWORKS | WITH_TIMM)[name](**kwargs).eval()
    for path, layer in net.named_modules():
        if "score" in path and isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.1)
    if like is not None:
        missing, unexpected = net.load_state_dict(like.state_dict(), strict=False)
        assert not unexpected and all("ups" in path for path in missing)
    return net


@pytest.mark.parametrize("name", NETWORKS | WITH_TIMM)
@pytest.mark.parametrize("kind", ["transposed", "transposed_full", "fixed"])
def test_transposed_convolutions_start_as_bilinear_interpolation(name, kind):
    if name in WITH_TIMM:
        pytest.importorskip("timm")
    interpolated = build(name, upsampling="bilinear")
    transposed = build(name, like=interpolated, upsampling=kind)
    image = torch.randn(1, 3, 256, 288)
    with torch.no_grad():
        expected, logits = interpolated(image), transposed(image)
    border = 64 if "FCN-8s" in name else transposed.output_stride  # FCN-8s upsamples in three steps, the first from stride 32
    inside = (..., slice(border, -border), slice(border, -border))
    assert expected[inside].std() > 1e-3
    assert (logits - expected)[inside].abs().max() < 1e-6 * max(1.0, expected.abs().max().item())
    assert not logits.equal(expected)  # the border differs


@pytest.mark.parametrize("name", WITH_TIMM)
def test_encoders_of_timm_take_spatial_dropout_and_refuse_pooling(name):
    pytest.importorskip("timm")
    modules = WITH_TIMM[name](spatial_dropout=True).named_modules()
    layers = [type(layer) for path, layer in modules if "encoder" not in path]
    assert nn.Dropout2d in layers and nn.Dropout not in layers
    with pytest.raises(ValueError, match="pooling='average' needs VGG-16"):
        WITH_TIMM[name](pooling="average")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (37, 70)])
def test_any_upsampling_keeps_the_size_of_the_image(name, kind, size):
    with torch.device("meta"):
        assert NETWORKS[name](upsampling=kind)(torch.empty(2, 3, *size)).shape == (2, 5, *size)


def test_only_transposed_upsampling_learns():
    parameters = {kind: list(build_upsampling(kind, 3, 8).parameters()) for kind in KINDS}
    assert not parameters["bilinear"] and not parameters["aligned"]
    assert [p.numel() for p in parameters["transposed"]] == [3 * 16 * 16]
    assert [p.numel() for p in parameters["transposed_full"]] == [3 * 3 * 16 * 16]
    assert [p.requires_grad for kind in KINDS[2:] for p in parameters[kind]] == [True, True, False]


@pytest.mark.parametrize(("name", "kind"), [("FCN-8s", "bilinear"), ("FCN-8s, ResNet", "aligned"), ("DeepLab", "aligned"),
                                            ("DilatedNet", "bilinear"), ("DilatedNet, reflected", "aligned"),
                                            ("DilatedNet, 10 layers", "fixed"), ("front end, ResNet", "aligned")])  # fmt: skip
def test_the_default_upsampling_is_the_documented_one(name, kind):
    image = torch.randn(1, 3, 70, 90)
    default = build(name)
    with torch.no_grad():
        assert default(image).equal(build(name, like=default, upsampling=kind)(image))


def test_the_released_form_learns_its_upsampling_on_request():
    fixed, learned = FCN(3, 8, "authors", **TINY), FCN(3, 8, "authors", upsampling="transposed_full", **TINY)
    assert {name: tuple(p.shape) for name, p in fixed.named_parameters()} == {
        name: tuple(p.shape) for name, p in learned.named_parameters()
    }
    assert not any(p.requires_grad for name, p in fixed.named_parameters() if "upscore" in name)
    assert all(p.requires_grad for p in learned.parameters())
    with pytest.raises(ValueError, match="choose one of 'fixed', 'transposed', 'transposed_full', or form='any_size'"):
        FCN(3, 8, "authors", upsampling="bilinear", **TINY)


@pytest.mark.parametrize("name", ["FCN-8s", "FCN-8s, ResNet", "DeepLab-MSc", "DilatedNet", "front end, ResNet"])
def test_spatial_dropout_drops_whole_maps(name):
    net = NETWORKS[name](spatial_dropout=True)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Dropout | nn.Dropout2d)]
    assert layers and all(isinstance(layer, nn.Dropout2d) for layer in layers)
    layers[0].p = 0.5
    dropped = layers[0].train()(torch.ones(1, 64, 5, 7))
    assert set(dropped.mean((2, 3)).unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("name", ["FCN-8s", "DeepLab", "DilatedNet"])
def test_average_pooling_has_the_sizes_and_weights_of_max_pooling(name):
    highest, mean = build(name), build(name, pooling="average")
    mean.load_state_dict(highest.state_dict())
    image = torch.randn(1, 3, 61, 83)
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in mean.modules())
    with torch.no_grad():
        assert mean(image).shape == highest(image).shape and not mean(image).equal(highest(image))


def test_average_pooling_with_a_resnet_is_refused():
    for network in (FCN, DilatedNet):
        with pytest.raises(ValueError, match="pooling='average' needs VGG-16"):
            network(3, resnet=18, pooling="average", **TINY)


def test_deeplab_without_pool5a_sees_less_and_its_fc6_has_any_dilation():
    def field(**kwargs):
        with torch.device("meta"):
            return summarize(DeepLabV1(3, width=1 / 32, **kwargs), "DeepLabV1").receptive_field

    assert field() - field(pool5a=False) == 2 * 8  # one cell of stride 8 on each side
    assert field(fc6_dilation=24) - field() == 2 * 12 * 8


def test_noise_of_the_basic_module_is_the_release_filler_s():
    module = ContextModule(21, noise=0.01)
    for layer in module.layers[:-1:2]:
        assert layer.weight[:, :, 0, 0].std().item() == pytest.approx(0.01, rel=0.1)
        assert layer.weight[:, :, 1, 1].diagonal().tolist() == [1.0] * 21
    assert not any(layer.weight[:, :, 0, 0].any() for layer in ContextModule(21).layers[:-1:2])


@pytest.mark.parametrize("layers", [7, 8, 10])
def test_the_dilations_of_table_1_as_a_sequence_are_the_module_itself(layers):
    dilations = {7: (1, 1, 2, 4, 8, 1), 8: (1, 1, 2, 4, 8, 16, 1), 10: (1, 1, 2, 4, 8, 16, 32, 64, 1)}[layers]
    torch.manual_seed(0)
    table = ContextModule(2, "large", layers)
    torch.manual_seed(0)
    free = ContextModule(2, "large", dilations=dilations)
    assert [str(layer) for layer in table.layers] == [str(layer) for layer in free.layers]
    assert all(value.equal(free.state_dict()[key]) for key, value in table.state_dict().items())


def test_the_order_of_dilations_does_not_change_the_receptive_field():
    for dilations in ((1, 16, 8, 4, 2, 1, 1), (16, 8, 4, 2, 1, 1, 1)):
        assert receptive_field(ContextModule(2, dilations=dilations), 2, 99) == 67
    assert receptive_field(ContextModule(2, dilations=(2, 2, 2)), 2, 41) == 13


@pytest.mark.parametrize("size", ["basic", "large"])
def test_a_parallel_context_module_starts_as_the_identity(size):
    scores = torch.rand(1, 4, 40, 40) * 5
    torch.testing.assert_close(ContextModule(4, size, arrangement="parallel", noise=0.0)(scores), scores)


def test_a_parallel_context_module_sees_as_far_as_its_largest_dilation():
    module = ContextModule(2, arrangement="parallel")
    assert receptive_field(module, 2, 99) == 33
    sequential = {name: p.numel() for name, p in ContextModule(2).named_parameters() if "final" not in name}
    assert {name: p.numel() for name, p in module.named_parameters() if "final" not in name} == sequential
    with torch.device("meta"):
        net = DilatedNet(3, "large", padding="reflect", arrangement="parallel", width=1 / 32)
        assert net(torch.empty(1, 3, 40, 50)).shape == (1, 3, 40, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dilations": ()}, r"dilations=\(\) is not a sequence of 1 to 9 integers"),
        ({"dilations": (1, 0)}, r"dilations=\(1, 0\) is not a sequence"),
        ({"dilations": (1, 2), "dilated": False}, "write dilations of 1 instead"),
        ({"arrangement": "parallel", "padding": "valid"}, "with 'parallel' use padding='zeros'"),
        ({"noise": -1.0}, "noise=-1.0 is not a number of at least 0"),
    ],
)
def test_a_context_module_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContextModule(3, **arguments)


def test_the_front_end_takes_the_choices_of_its_layers():
    front_end = FrontEnd(3, width=1 / 32, spatial_dropout=True, pooling="average")
    assert any(isinstance(layer, nn.AvgPool2d) for layer in front_end.modules())
    assert any(isinstance(layer, nn.Dropout2d) for layer in front_end.modules())
