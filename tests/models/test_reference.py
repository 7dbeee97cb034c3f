"""Same weights, same image: the outputs of an independent implementation, written with torch.nn.functional from the table.

Networks are narrow here, and in double precision; what the table says of a layer (stride, padding, dilation, groups, ReLU)
is the authors', the weights are ours.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dilated_seg.models import (
    FCN,
    ContextModule,
    DeconvNet,
    DeepLabV1,
    DilatedNet,
    FCDenseNet,
    FCNAlexNet,
    FrontEnd,
    SegNet,
    SegNetBasic,
    UNet,
)
from dilated_seg.models.layers import BatchNorm
from tests.support.released_layers import rows

NARROW = {"width": 1 / 32}


def randomised(net):
    """Weights that keep the signal alive, statistics that are not 0 and 1, biases that are not 0."""
    generator = torch.Generator().manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, BatchNorm):
            layer.running_mean.normal_(std=0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.requires_grad:
            fan_in = layer.in_channels // layer.groups * layer.kernel_size[0] ** 2
            layer.weight.data.normal_(std=(2 / fan_in) ** 0.5, generator=generator)
        if getattr(layer, "bias", None) is not None:
            layer.bias.data.normal_(std=0.3, generator=generator)
    return net.double().eval()


def weights(net):
    """The network's tensors by layer and kind, the layers by the last part of their names and by their whole names."""
    found = {}
    for key, tensor in net.state_dict().items():
        path, _, kind = key.rpartition(".")
        for name in (path, path.rpartition(".")[2]):
            found.setdefault(name, {})[kind] = tensor
    return found


ALIASES = {"fc-final": "final", "fc8_exper/voc12": "fc8", "seg-score-voc": "score"}


def layer(row, w, maps, indices):
    name = ALIASES.get(row["name"], row["name"]).replace("ct_", "ctx_")
    t = w.get(name, {})
    match row["type"]:
        case "conv":
            maps = F.conv2d(maps, t["weight"], t.get("bias"), row["stride"], row["padding"], row["dilation"], row["groups"])
        case "deconv":
            maps = F.conv_transpose2d(maps, t["weight"], t.get("bias"), row["stride"], row["padding"], groups=row["groups"])
        case "bn":
            eps = 1e-4 if "." in name else 1e-9
            shape = (1, -1, 1, 1)
            maps = (maps - t["running_mean"].view(shape)) / (t["running_var"].view(shape) + eps) ** 0.5
            maps = maps * t["weight"].view(shape) + t["bias"].view(shape)
        case "maxpool":
            ceil = row["padding"] > 0 or not name.startswith("pool_d")  # Caffe rounds up
            maps, indices[name] = F.max_pool2d(
                maps, row["kernel"], row["stride"], row["padding"], ceil_mode=ceil, return_indices=True
            )
        case "avgpool":  # Caffe's mean counts the padding
            maps = F.avg_pool2d(F.pad(maps, [row["padding"]] * 4), row["kernel"], row["stride"])
        case "max_unpool":
            taken = indices[f"pool{name[-1]}"]
            flat = torch.zeros(*maps.shape[:2], 4 * (taken.shape[-1] + 1) * (taken.shape[-2] + 1), dtype=maps.dtype)
            size = indices[f"size{name[-1]}"]
            flat = flat[..., : size[0] * size[1]].scatter(2, taken.flatten(2), maps.flatten(2))
            maps = flat.view(*maps.shape[:2], *size)
        case "scale":
            maps = maps * t["weight"].view(1, -1, 1, 1)
        case "lrn":
            squares = F.pad(maps.square(), (0, 0, 0, 0, 2, 2))
            maps = maps / (1 + 1e-4 / 5 * sum(squares[:, i : i + maps.shape[1]] for i in range(5))) ** 0.75
    return maps.relu() if row["relu"] else maps


def chain(name, net, maps, stop=None):
    """Layers one after another; gives all their outputs by name."""
    w, indices, outputs = weights(net), {}, {}
    for row in rows(name):
        if row["name"] == stop:
            break
        if row["type"] == "maxpool":
            indices[f"size{row['name'][-1]}"] = maps.shape[-2:]
        maps = outputs[row["name"]] = layer(row, w, maps, indices)
    outputs["last"] = maps
    return outputs


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < 1e-9
    assert theirs.std() > 1e-3 * theirs.abs().max()  # an image of one colour would prove nothing


@pytest.fixture
def image():
    return torch.randn(1, 3, 229, 260, dtype=torch.float64)


def test_front_end(image):
    net = randomised(FrontEnd(5, "valid", **NARROW))
    image = F.pad(image, [90] * 4)
    close(net(image), chain("dilated_frontend_voc", net, image)["last"])


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("context_basic_c21", lambda: ContextModule(4)),
        ("context_large_c21", lambda: ContextModule(3, "large", padding="once")),
        ("context_basic7_c11", lambda: ContextModule(4, layers=7)),
        ("context_basic10_c19", lambda: ContextModule(4, layers=10)),
    ],
)
def test_context_module(name, net):
    net = randomised(net())
    scores = torch.randn(1, net.layers[0].in_channels, 25, 31, dtype=torch.float64)
    close(net(scores), chain(name, net, scores)["last"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dilation8_voc_large", {"context": "large"}),
        ("dilation8_camvid_basic", {}),
        ("dilation7_kitti_basic", {"context_layers": 7}),
    ],
)
def test_dilatednet(name, arguments):
    net, image = randomised(DilatedNet(3, padding="reflect", width=1 / 64, **arguments)), torch.randn(1, 3, 41, 60).double()
    # Reflect-101, twice and more where the margin is larger than the image, then a score for the first of every 8 pixels.
    padded = image
    while padded.shape[-2] < 41 + 372 or padded.shape[-1] < 60 + 372:
        add = [min(186 - (padded.shape[i] - (60, 41)[3 - i]) // 2, padded.shape[i] - 1) for i in (3, 2)]
        padded = F.pad(padded, (add[0], add[0], add[1], add[1]), mode="reflect")
    scores = chain(name, net, padded)["last"]
    assert scores.shape[-2:] == (6, 8)
    logits = net(image)
    close(logits[..., ::8, ::8], scores)
    columns = torch.arange(57, dtype=torch.float64) / 8
    left = columns.floor().long().clamp(max=6)
    between = scores[..., left] * (1 - (columns - left)) + scores[..., left + 1] * (columns - left)
    close(logits[..., ::8, :57], between)
    assert logits.shape[-2:] == (41, 60)


def test_dilatednet_for_cityscapes_upsamples_by_its_fixed_deconvolution():
    net, image = (
        randomised(DilatedNet(19, context_layers=10, padding="reflect", width=1 / 64)),
        torch.randn(1, 3, 200, 208).double(),
    )
    close(net(image), chain("dilation10_cityscapes_basic", net, F.pad(image, [186] * 4, mode="reflect"))["last"])


def bilinear(kernel):
    """Weights of a bilinear deconvolution, tap by tap."""
    factor = (kernel + 1) // 2
    centre = factor - 1 if kernel % 2 == 1 else factor - 0.5
    return torch.tensor(
        [[(1 - abs(i - centre) / factor) * (1 - abs(j - centre) / factor) for j in range(kernel)] for i in range(kernel)]
    )


def test_fcn_32s(image):
    net = randomised(FCN(4, 32, "authors", **NARROW))
    close(net(image), chain("fcn32s_voc", net, image)["last"][..., 19 : 19 + 229, 19 : 19 + 260])


@pytest.mark.parametrize(
    ("stride", "at_once", "name"), [(16, False, "fcn16s_voc"), (8, False, "fcn8s_voc"), (8, True, "fcn8s_atonce_voc")]
)
def test_fcn_with_skips(image, stride, at_once, name):
    net = randomised(FCN(4, stride, "authors", at_once=at_once, **NARROW))
    table, w = {row["name"]: row for row in rows(name)}, weights(net)
    outputs = chain(name, net, image, stop="upscore2")
    scores = layer(table["upscore2"], w, outputs["last"], {})
    for pool, offset, following in (("pool4", 5, "upscore16" if stride == 16 else "upscore_pool4"), ("pool3", 9, "upscore8")):
        finer = outputs[pool] * {"pool4": 0.01, "pool3": 0.0001}[pool] if at_once else outputs[pool]
        finer = layer(table[f"score_{pool}"], w, finer, {})
        finer = finer[..., offset : offset + scores.shape[-2], offset : offset + scores.shape[-1]]
        scores = layer(table[following], w, scores + finer, {})
        if stride == 16:
            break
    offset = {16: 27, 8: 31}[stride]
    close(net(image), scores[..., offset : offset + 229, offset : offset + 260])


def test_fcn_alexnet(image):
    net = randomised(FCNAlexNet(4, "authors", width=1 / 8))
    close(net(image), chain("fcn_alexnet_voc", net, image)["last"][..., 18 : 18 + 229, 18 : 18 + 260])


@pytest.mark.parametrize(("kernel", "name", "stride"), [(64, "upscore", 32), (16, "upscore8", 8), (4, "upscore2", 8)])
def test_released_upsampling_starts_and_stays_bilinear_and_diagonal(kernel, name, stride):
    weight = FCN(3, stride, "authors", width=1 / 64).decoder[name].weight
    assert not weight.requires_grad
    for i in range(3):
        for j in range(3):
            torch.testing.assert_close(weight[i, j].detach(), bilinear(kernel) if i == j else torch.zeros(kernel, kernel))


def test_alexnets_upsampling_has_an_odd_kernel():
    weight = FCNAlexNet(2, "authors", width=1 / 64).upscore.weight
    torch.testing.assert_close(weight[1, 1].detach(), bilinear(63))


@pytest.mark.parametrize(
    ("name", "net", "size"),
    [
        ("deconvnet_voc", lambda: DeconvNet(4, "authors", **NARROW), (229, 260)),
        ("segnet_vgg16_camvid", lambda: SegNet(4, "authors", **NARROW), (45, 77)),
        ("segnet_basic_camvid", lambda: SegNetBasic(4, "authors", width=1 / 8), (45, 77)),
    ],
)
def test_unpooling_networks(name, net, size):
    net, image = randomised(net()), torch.randn(1, 3, *size, dtype=torch.float64) * 100
    close(net(image), chain(name, net, image)["last"])


def test_deeplab():
    net, image = randomised(DeepLabV1(4, "authors", **NARROW)), torch.randn(1, 3, 73, 97, dtype=torch.float64)
    scores = chain("deeplab_largefov_voc", net, image)["last"]
    assert scores.shape[-2:] == (10, 13)
    close(net(image), F.interpolate(scores, (73, 97), mode="bilinear", align_corners=True))


def test_deeplab_msc_adds_the_scores_of_image_and_poolings():
    net, image = randomised(DeepLabV1(4, msc=True, **NARROW)), torch.randn(1, 3, 73, 97, dtype=torch.float64)
    outputs, w = chain("deeplab_largefov_voc", net, image), weights(net)
    scores = outputs["last"]
    for source, stride in (("image", 8), ("pool1", 4), ("pool2", 2), ("pool3", 1), ("pool4", 1)):
        maps = image if source == "image" else outputs[source]
        maps = F.conv2d(maps, w[f"{source}_ms1"]["weight"], w[f"{source}_ms1"]["bias"], stride, 1).relu()
        maps = F.conv2d(maps, w[f"{source}_ms2"]["weight"], w[f"{source}_ms2"]["bias"]).relu()
        scores = scores + F.conv2d(maps, w[f"{source}_ms_score"]["weight"], w[f"{source}_ms_score"]["bias"])
    close(net(image), F.interpolate(scores, (73, 97), mode="bilinear", align_corners=True))


def test_unet():
    net, image = randomised(UNet(2, "authors", width=1 / 16)), torch.randn(1, 3, 188, 204, dtype=torch.float64)
    w, outputs, maps = weights(net), {}, image
    for row in rows("unet_paper"):
        if row["name"].startswith("conv_u") and row["name"].endswith("b-c"):
            skip = outputs[f"conv_d{row['name'][6]}b-c"]
            top, left = (skip.shape[2] - maps.shape[2]) // 2, (skip.shape[3] - maps.shape[3]) // 2
            maps = torch.cat([maps, skip[..., top : top + maps.shape[2], left : left + maps.shape[3]]], 1)
        maps = outputs[row["name"]] = layer(row, w, maps, {})
    assert maps.shape[-2:] == (4, 20)
    close(net(image), maps)


@pytest.mark.parametrize("depth", [56, 67, 103])
def test_fc_densenet(depth):
    net, image = randomised(FCDenseNet(4, depth, width=1 / 6)), torch.randn(1, 3, 45, 70, dtype=torch.float64)
    w, table = weights(net), rows(f"fc_densenet{depth}")
    maps, handed, new = image, [], []
    for row in table:
        block = row["name"].partition(".")[0]
        if block.startswith("pool"):
            handed.append(maps)
            maps = F.max_pool2d(outcome, 2)  # noqa: F821 - of the transition down, which comes before every pooling
            new = []
        elif block.startswith("tu"):
            skip = handed.pop()
            maps = layer(row, w, torch.cat(new, 1), {})[..., : skip.shape[2], : skip.shape[3]]
            maps, new = torch.cat([maps, skip], 1), []
        elif block in ("first", "score"):
            maps = layer(row, w, maps, {})
        elif row["type"] == "bn":
            outcome = layer(row, w, maps, {})
        else:
            outcome = layer(row, w, outcome, {})
            if not block.startswith("td"):
                new.append(outcome)
                maps = torch.cat([maps, outcome], 1)
    close(net(image), maps)


def test_zeros_around_every_convolution_change_nothing_far_from_the_border():
    padded, valid = (randomised(FrontEnd(3, padding, width=1 / 64)) for padding in ("zeros", "valid"))
    image = torch.randn(1, 3, 800, 760, dtype=torch.float64)
    with torch.no_grad():  # 186 pixels are no whole number of cells, so the unpadded form sees the image from pixel 6 on
        inside = padded(image)[..., 24:-24, 24:-24]
        other = valid(image[..., 6:, 6:])
    close(other[..., : inside.shape[-2], : inside.shape[-1]], inside)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "build", "size", "cut"),
    [
        ("fcn32s_voc", lambda: FCN(21, 32, "authors"), (97, 130), 19),
        ("fcn_alexnet_voc", lambda: FCNAlexNet(21, "authors"), (97, 130), 18),
        ("dilated_frontend_voc", lambda: FrontEnd(21, "valid"), (404, 396), 0),
    ],
)
def test_at_full_width_and_in_single_precision(name, build, size, cut):
    """Not for networks that unpool: there rounding may move a maximum between two nearly equal values, and all after it."""
    net, image = randomised(build()).float(), torch.randn(1, 3, *size) * 50
    with torch.no_grad():
        theirs = chain(name, net, image)["last"]
        theirs = theirs[..., cut : cut + size[0], cut : cut + size[1]] if cut else theirs
        assert ((net(image) - theirs).abs().max() / theirs.abs().max()).item() < 1e-4
