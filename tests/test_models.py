"""The contract that every network keeps."""

import json
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from dilated_seg import models
from dilated_seg.models import FCN, ContextModule, DeconvNet, DeepLabV1, DilatedNet, FrontEnd, SegNet

AUTHORS = json.loads((Path(__file__).parent / "authors_layers.json").read_text())
NETWORKS = {
    "fcn32s": lambda c, **kw: FCN(c, 32, **kw),
    "fcn16s": lambda c, **kw: FCN(c, 16, **kw),
    "fcn8s": lambda c, **kw: FCN(c, 8, **kw),
    "deconvnet": DeconvNet,
    "segnet": SegNet,
    "deeplab": DeepLabV1,
    "frontend": lambda c, **kw: DilatedNet(c, None, **kw),
    "dilatednet": DilatedNet,
    "dilatednet_large": lambda c, **kw: DilatedNet(c, "large", **kw),
}
PUBLISHED = {
    "dilated_frontend_voc": FrontEnd,
    "context_basic_c21": ContextModule,
    "context_large_c21": lambda c: ContextModule(c, "large"),
    "dilation8_voc_basic": DilatedNet,
    "fcn32s_voc": NETWORKS["fcn32s"],
    "fcn16s_voc": NETWORKS["fcn16s"],
    "fcn8s_voc": NETWORKS["fcn8s"],
    "deconvnet_voc": DeconvNet,
    "segnet_vgg16_camvid": SegNet,
    "deeplab_largefov_voc": DeepLabV1,
}


def test_every_exported_network_is_under_contract():
    covered = {type(build(2, width=1 / 64)).__name__ for build in NETWORKS.values()} | {"FrontEnd", "ContextModule"}
    assert covered == set(models.__all__)


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (31, 2), (64, 64), (65, 83), (7, 200), (33, 32)])
def test_logits_have_the_size_of_the_image(build, size):
    net = build(5, width=1 / 16).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
def test_every_parameter_gets_a_gradient(build):
    net = build(3, width=1 / 16)
    for score in getattr(net, "score_pool", {}).values():  # start at zero, which would hide what lies before them
        nn.init.normal_(score.weight)
    if isinstance(net, FCN):
        nn.init.normal_(net.score_fr.weight)
    net(torch.randn(2, 3, 72, 88)).square().mean().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
def test_a_grey_image_is_refused(build):
    with pytest.raises(TypeCheckError):
        build(3, width=1 / 16)(torch.randn(2, 1, 32, 32))


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
def test_evaluation_does_not_depend_on_the_rest_of_the_batch(build):
    net, image = build(4, width=1 / 16).eval(), torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(net(image)[1:2], net(image[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("published", list(PUBLISHED))
def test_layers_and_parameters_are_the_authors(published):
    facts = AUTHORS[published]
    with torch.device("meta"):
        net = PUBLISHED[published](facts["num_classes"])
    assert sum(parameter.numel() for parameter in net.parameters()) == facts["learnt"]
    ours = [row(layer) for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    theirs = [layer[1:] for layer in facts["layers"]]
    assert sorted(ours) == sorted(theirs) if "fcn" in published else ours == theirs


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
def test_full_size_networks_keep_the_image_size(build):
    with torch.device("meta"):
        net, image = build(21).eval(), torch.empty(1, 3, 375, 500)
        assert net(image).shape == (1, 21, 375, 500)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_output_stride_of_fcn_is_that_of_its_last_scores(stride):
    assert FCN(2, stride, width=1 / 64).output_stride == stride


def row(layer):
    kind = "deconv" if isinstance(layer, nn.ConvTranspose2d) else "conv"
    return [
        kind, layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.dilation[0], layer.bias is not None,
    ]  # fmt: skip
