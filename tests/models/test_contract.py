"""The contract that every network keeps."""

import re
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import nn
from torchvision.models import get_weight

from dilated_seg import models
from dilated_seg.errors import UserError
from dilated_seg.models import (
    FCN,
    DeconvNet,
    DeepLabV1,
    DilatedNet,
    FCDenseNet,
    FCNAlexNet,
    FrontEnd,
    SegNet,
    SegNetBasic,
    UNet,
    build,
)
from dilated_seg.weights.normalization import CHECKSUMS
from tests.conftest import ROOT
from tests.support.tolerance import assert_equal_but_for_rounding

PARTS = ("FrontEnd", "ContextModule")  # of DilatedNet, which have other inputs or outputs than networks

# Every network as it is built without options, and in every other practical form.
NETWORKS = {name: getattr(models, name) for name in models.__all__ if name not in PARTS} | {
    "fcn16s": lambda c, **kw: FCN(c, 16, **kw),
    "fcn8s": lambda c, **kw: FCN(c, 8, **kw),
    "fcn8s_atonce": lambda c, **kw: FCN(c, 8, at_once=True, **kw),
    "fcn8s_resnet18": lambda c, **kw: FCN(c, 8, resnet=18, **kw),
    "fcn32s_resnet50": lambda c, **kw: FCN(c, 32, resnet=50, **kw),
    "fcn_alexnet_one_tower": lambda c, **kw: FCNAlexNet(c, one_tower=True, **kw),
    "fc_densenet56": lambda c, **kw: FCDenseNet(c, 56, **kw),
    "deeplab_msc": lambda c, **kw: DeepLabV1(c, msc=True, **kw),
    "frontend": lambda c, **kw: DilatedNet(c, None, **kw),
    "dilatednet_large": lambda c, **kw: DilatedNet(c, "large", **kw),
    "dilatednet_10": lambda c, **kw: DilatedNet(c, context_layers=10, **kw),
    "dilatednet_resnet18": lambda c, **kw: DilatedNet(c, resnet=18, **kw),
    "dilatednet_resnet50": lambda c, **kw: DilatedNet(c, resnet=50, **kw),
    "dilatednet_reflect": lambda c, **kw: DilatedNet(c, "large", padding="reflect", **kw),
    "dilatednet_reflect_7": lambda c, **kw: DilatedNet(c, context_layers=7, padding="reflect", **kw),
    "dilatednet_reflect_10": lambda c, **kw: DilatedNet(c, context_layers=10, padding="reflect", **kw),
}


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (31, 2), (64, 64), (65, 83), (7, 200), (33, 32)])
def test_logits_have_the_size_of_the_image(build, size):
    net = build(5, width=1 / 16).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
@given(st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=15, deadline=None)
def test_any_image_from_1_to_200_pixels_gives_logits_of_its_size(build, height, width):
    with torch.device("meta"), torch.no_grad():
        net = build(3, width=1 / 16).eval()
        assert net(torch.empty(1, 3, height, width)).shape == (1, 3, height, width)


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
def test_every_parameter_gets_a_gradient(build):
    net = build(3, width=1 / 16)
    for name, layer in net.named_modules():  # scores that start at zero would hide what lies before them
        if "score" in name and isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight)
    net(torch.randn(2, 3, 72, 88)).square().mean().backward()
    learnt = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in learnt.items() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
def test_a_gray_image_is_refused(build):
    with pytest.raises(TypeCheckError):
        build(3, width=1 / 16)(torch.randn(2, 1, 32, 32))


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
def test_evaluation_does_not_depend_on_the_rest_of_the_batch(build):
    net, image = build(4, width=1 / 16).double().eval(), torch.randn(3, 3, 40, 56, dtype=torch.float64)
    with torch.no_grad():  # batches of another size may be summed in another order
        assert_equal_but_for_rounding(net(image)[1:2], net(image[1:2]))


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
def test_full_size_networks_keep_the_image_size(build):
    with torch.device("meta"):
        net, image = build(21).eval(), torch.empty(1, 3, 375, 500)
        assert net(image).shape == (1, 21, 375, 500)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_output_stride_of_fcn_is_that_of_its_last_scores(stride):
    assert FCN(2, stride, width=1 / 64).output_stride == stride


@pytest.mark.parametrize("build", [DeconvNet, SegNet, SegNetBasic, FCDenseNet], ids=lambda build: build.__name__)
def test_a_single_value_per_channel_cannot_be_normalized_in_training(build):
    net = build(2, width=1 / 16).train()
    with pytest.raises(UserError, match="batch_size or use larger images"):
        net(torch.randn(1, 3, 1, 1))
    assert net.eval()(torch.randn(1, 3, 1, 1)).shape == (1, 2, 1, 1)
    assert net.train()(torch.randn(2, 3, 64, 64)).shape == (2, 2, 64, 64)


@pytest.mark.parametrize(
    "build",
    [FCN, FCNAlexNet, UNet, DeepLabV1, DilatedNet, lambda c, **kw: DilatedNet(c, "large", padding="reflect", **kw)],
)
def test_networks_without_batch_norm_train_on_one_pixel(build):
    net = build(2, width=1 / 16)
    net(torch.randn(1, 3, 1, 1)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("build", "size", "sentence"),
    [
        (lambda: DeconvNet(2, "authors", width=1 / 64), (193, 192), "at least 193 x 193 pixels, not 193 x 192"),
        (lambda: FrontEnd(2, "valid", width=1 / 64), (372, 500), "at least 373 x 373 pixels, not 372 x 500"),
        (lambda: UNet(2, "authors", width=1 / 64), (200, 204), "not 200: pad or crop to 204"),
    ],
)
def test_forms_without_padding_name_the_sizes_that_they_accept(build, size, sentence):
    with pytest.raises(UserError, match=sentence):
        build()(torch.randn(1, 3, *size))


def test_released_forms_work_on_the_smallest_images_that_they_accept():
    assert DeconvNet(2, "authors", width=1 / 64).eval()(torch.randn(1, 3, 193, 193)).shape == (1, 2, 193, 193)
    assert FrontEnd(2, "valid", width=1 / 64)(torch.randn(1, 3, 373, 373)).shape == (1, 2, 1, 1)
    assert UNet(2, "authors", width=1 / 64)(torch.randn(1, 3, 188, 204)).shape == (1, 2, 4, 20)


@pytest.mark.parametrize(
    "build", [lambda **kw: FCN(2, form="authors", resnet=50, **kw), lambda **kw: DilatedNet(2, padding="reflect", resnet=50)]
)
def test_a_resnet_has_no_authors_form(build):
    with pytest.raises(ValueError, match="leave it out with resnet"):
        build(width=1 / 16)


def test_a_dense_network_by_batch_statistics_normalizes_evaluation_by_the_batch():
    net = FCDenseNet(3, 56, width=1 / 6, dropout=0.0, batch_statistics=True).double()
    image = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    assert_equal_but_for_rounding(net.eval()(image), net.train()(image))
    assert not any("running" in key for key in net.state_dict())


@pytest.mark.parametrize("build", list(NETWORKS.values()), ids=list(NETWORKS))
def test_a_training_step_is_the_same_to_the_last_bit_when_repeated(build):
    net, image = build(3, width=1 / 16), torch.randn(2, 3, 40, 56)
    start, steps = {key: value.clone() for key, value in net.state_dict().items()}, []
    torch.use_deterministic_algorithms(True)  # raises where an operation has no deterministic form on this device
    try:
        for _ in range(2):
            net.load_state_dict(start)
            net.zero_grad()
            torch.manual_seed(0)
            net(image).square().mean().backward()
            steps.append([parameter.grad for parameter in net.parameters() if parameter.grad is not None])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))


# Every network with every argument that lists its values or has a range, given a wrong one; without types that are checked.
WRONG = """
import inspect
from typing import Literal, get_args, get_origin, get_type_hints
from dilated_seg import models
from dilated_seg.models import resnet
tried = 0
for network in [*(getattr(models, name) for name in models.__all__), resnet.Encoder]:
    hints = get_type_hints(network.__init__)
    listed = {n: h for n, h in hints.items() if any(get_origin(part) is Literal for part in (h, *get_args(h)))}
    assert set(hints) >= {"width"} or network is models.ContextModule, network
    wrong = [(name, value) for name in listed for value in ("huge", 9, 3.5, True, [])]
    wrong += [(name, value) for name in ("num_classes", "width", "dropout", "in_channels") if name in hints
              for value in (-1, float("nan"), "8", None, False)]
    for name, value in wrong:
        first = {} if network is resnet.Encoder else {"num_classes": 3}
        try:
            network(**{"depth": 18} | first | {name: value} if network is resnet.Encoder else first | {name: value})
        except ValueError as error:
            assert f"{name}={value!r} is " in str(error), error
            assert name not in listed or all(
                repr(v) in str(error) for p in (listed[name], *get_args(listed[name])) if get_origin(p) is Literal
                for v in get_args(p)), error
        else:
            raise AssertionError(f"{network.__name__} took {name}={value!r}")
        tried += 1
print(tried)
"""


def test_an_invalid_argument_is_a_value_error_that_lists_the_valid_ones():
    result = subprocess.run([sys.executable, "-c", WRONG], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 200


@pytest.mark.parametrize("name", models.__all__)
def test_the_optional_attributes_of_a_network_are_correct(name):
    network = getattr(models, name)
    for kwargs in getattr(network, "variants", ({},)):
        net = build.construct(name, [3], {"width": 1 / 64} | kwargs, name)
        paths = [path.rpartition(".")[2] for path, _ in net.named_modules()]
        assert set(getattr(net, "image_layers", ())) <= {*paths, "image_ms1"}
        stated = [value for part in net.modules() if (value := getattr(part, "imagenet", None))]
        assert all(get_weight(value).url.rpartition("/")[2] in CHECKSUMS for value in stated)
        published = [ours for part in net.modules() for _, ours in getattr(part, "published_names", ())]
        absent = set() if "fc6" in paths else {"fc6", "fc7"}  # the encoder names them for networks that have a classifier
        assert all(any(ours in path or "\\" in ours or ours == "ctx_" for path in paths) for ours in {*published} - absent)
    patterns = [release.layer for release in getattr(network, "releases", ())]
    assert all(re.compile(pattern) for pattern in patterns)


def test_a_warning_of_the_garbage_collector_is_not_an_error_of_the_network(monkeypatch):
    """Such as a temporary directory of another library, in a cycle that is collected while a network is built."""

    class Leaving(FCN):
        def __init__(self, num_classes):
            super().__init__(num_classes, width=0.05)
            warnings.warn("a directory is left", ResourceWarning, stacklevel=1)

    monkeypatch.setattr(build, "find_network", lambda path: Leaving)
    with warnings.catch_warnings(action="ignore"):
        assert build.construct("Leaving", [3], {}, "Leaving(3)").output_stride == 32
