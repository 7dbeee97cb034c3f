"""Receptive fields: what the theory says of every layer is what gradients reach, and what is measured of trained networks."""

import copy

import pytest
import torch
from torch import nn

from dilated_seg.analysis import describe, receptive_field
from dilated_seg.analysis.receptive_field.trace import NOTHING
from dilated_seg.build import network
from dilated_seg.models.layers import Upsample

MOVERS = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d, nn.MaxUnpool2d, Upsample)  # other layers move no column


class AllOfTheWindow(nn.Module):
    """A pooling whose gradient reaches all of its window, where a maximum's would reach one place of it."""

    def __init__(self, pool):
        super().__init__()
        self.pool, self.mean = pool, nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)

    def forward(self, maps):
        return (self.mean(maps), None) if self.pool.return_indices else self.mean(maps)


class AllOfTheCell(nn.Module):
    """An unpooling that fills its window, where a maximum would go to one place of it."""

    def forward(self, maps, indices, output_size):
        return maps.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., : output_size[0], : output_size[1]]


def positive(net):
    """The network with weights, biases and poolings through which every gradient is above zero, so that none cancels."""
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.requires_grad:
            nn.init.uniform_(layer.weight, 0.5 / layer.weight[0].numel(), 1.5 / layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.1)
        if isinstance(layer, nn.MaxPool2d | nn.MaxUnpool2d):
            parent, _, leaf = name.rpartition(".")
            replaced = AllOfTheWindow(layer) if isinstance(layer, nn.MaxPool2d) else AllOfTheCell()
            net.get_submodule(parent)._modules[leaf] = replaced
    return net


def maps_of(net, image, names):
    """What the layers of these names give for an image."""
    found = {}
    for name in names:
        net.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
    found["logits"] = net(image)
    return {name: out[0] if isinstance(out, tuple) else out for name, out in found.items()}


def reached(maps, image, column):
    """The first and last image column that the gradient of a column of some maps reaches."""
    (gradient,) = torch.autograd.grad(maps[..., column].sum(), image, retain_graph=True)
    columns = gradient.abs().sum((0, 1, 2)).nonzero()
    return (int(columns.min()), int(columns.max())) if len(columns) else NOTHING


@pytest.mark.parametrize(
    ("call", "height", "width"),
    [
        ("FCNAlexNet(2, width=0.02, one_tower=True)", 33, 531),
        ("FCNAlexNet(2, width=0.02, one_tower=True, form=authors)", 33, 331),
        ("FCN(2, stride=32, width=0.02)", 33, 600),
        ("FCN(2, stride=16, width=0.02)", 33, 599),
        ("FCN(2, stride=8, width=0.02)", 33, 601),
        ("FCN(2, stride=8, width=0.02, form=authors)", 33, 401),
        ("FCN(2, stride=8, width=0.02, resnet=18)", 33, 500),
        ("DeepLabV1(2, width=0.02)", 33, 601),
        ("DeepLabV1(2, width=0.02, form=authors)", 33, 601),
        ("DeepLabV1(2, width=0.02, msc=True)", 33, 601),
        ("DeconvNet(2, width=0.02)", 33, 901),
        ("DeconvNet(2, width=0.02, form=authors)", 224, 224),
        ("UNet(2, width=0.02)", 33, 333),
        ("UNet(2, width=0.02, form=authors)", 188, 252),
        ("SegNetBasic(2, width=0.05)", 33, 333),
        ("SegNetBasic(2, width=0.05, form=authors)", 33, 333),
        ("SegNet(2, width=0.02)", 33, 555),
        ("DilatedNet(2, context=None, width=0.02)", 33, 600),
        ("DilatedNet(2, width=0.02)", 33, 1100),
        ("DilatedNet(2, context='large', width=0.02)", 33, 1100),
        ("DilatedNet(2, context='large', padding='reflect', width=0.02)", 1, 501),
        ("DilatedNet(2, context_layers=10, padding='reflect', width=0.01)", 1, 501),
        ("DilatedNet(2, resnet=18, width=0.02)", 33, 1100),
        ("FCDenseNet(2, depth=56, width=0.03)", 33, 800),
        ("FCDenseNet(2, depth=67, width=0.03)", 33, 800),
        ("FCDenseNet(2, depth=103, width=0.03)", 33, 1300),
    ],
)  # fmt: skip
def test_every_cell_sees_what_its_gradient_reaches(call, height, width):
    net = network(call, "cpu").double().eval()
    names = [name for name, layer in net.named_modules() if isinstance(layer, MOVERS)]
    image = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad(), receptive_field.Trace(image) as trace:
        theory = {
            name: trace.field(maps) for name, maps in maps_of(copy.deepcopy(net).to("meta").float(), image, names).items()
        }
    image = torch.ones(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    gradients = maps_of(positive(net), image, names)
    assert len(names) >= 7
    for name, (first, last) in theory.items():
        n = len(first)
        for column in {n // 2, n - 1}:
            assert reached(gradients[name], image, column) == (first[column], last[column]), (name, column)


@pytest.mark.parametrize(
    ("call", "layer", "stride", "side", "centre"),
    [
        ("FCN(21)", "encoder.stages.0.conv1_1", 1, 3, 0),
        ("FCN(21)", "encoder.pools.pool1", 2, 6, 0.5),  # even: between two pixels
        ("FCN(21)", "encoder.pools.pool5", 32, 212, 15.5),
        ("FCN(21, form=authors)", "encoder.stages.0.conv1_1", 1, 3, -99),  # a border of 100 pixels
        ("FCN(21, form=authors)", "decoder.upscore", 1, 436, -19),  # which its crop makes up for
        ("DeepLabV1(21)", "encoder.pools.pool3", 8, 51, 0),  # poolings of 3 x 3 with padding 1, ceil mode
        ("FrontEnd(21)", "final", 8, 380, 3.5),
        ("FrontEnd(21, padding='valid')", "final", 8, 380, 189.5),  # the first cell sees the first 380 pixels
        ("ContextModule(21)", "layers.ctx_final", 1, 67, 0),
        ("ContextModule(21, padding='valid')", "layers.ctx_final", 1, 67, 33),
    ],
)
def test_fields_lie_where_kernels_strides_and_borders_put_them(call, layer, stride, side, centre):
    found = {row.name: row for row in describe.describe(call).layers}[layer]
    assert (found.output_stride, found.receptive_field, found.centre) == (stride, side, centre)


@pytest.mark.parametrize("call", describe.FAMILY)
def test_a_pixels_logits_look_at_that_pixel_from_the_middle(call):
    field = receptive_field.of_logits(network(call).eval(), 5004)
    shifted = {
        "padding='reflect'": 3.5,
        "FCDenseNet": -15.5,
    }  # trained on the corner of a cell; transposed convolutions of 3 x 3
    assert receptive_field.stride(field) == 1
    assert receptive_field.centre(field) == pytest.approx(sum(v for k, v in shifted.items() if k in call), abs=0.5)
