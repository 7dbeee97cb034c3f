"""What published weights expect of the image, and where torchvision's ImageNet weights are found."""

import re
import socket
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

from dilated_seg import UserError
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
    dilatednet,
    resnet,
    vgg,
)
from dilated_seg.weights.files import Weights

RGB = tuple[float, float, float]

# What ImageNet's networks subtract from the image (RGB, 0 to 255) and divide it by.
VGG_MEAN: RGB = (123.68, 116.779, 103.939)  # VGG's authors'; Caffe's weights, and torchvision's copy of their features
ONE: RGB = (1.0, 1.0, 1.0)
TORCHVISION: tuple[RGB, RGB] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

# What the released networks subtract: by class, and DilatedNet's by data set, told by classes and context layers.
ILSVRC: RGB = (122.67892, 116.66877, 104.00699)
RELEASED: dict[type[nn.Module], tuple[RGB, RGB]] = {
    FCN: (ILSVRC, ONE),
    FCNAlexNet: (ILSVRC, ONE),
    DeconvNet: (ILSVRC, ONE),
    DeepLabV1: ((122.675, 116.669, 104.008), ONE),
    SegNet: ((0.0, 0.0, 0.0), ONE),
    SegNetBasic: ((0.0, 0.0, 0.0), ONE),
    FCDenseNet: ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}
DILATED: dict[tuple[int, int], RGB] = {
    (21, 8): (116.52, 111.36, 102.93),  # VOC
    (11, 8): (105.41212523, 108.77808759, 110.70313206),  # CamVid
    (11, 7): (91.34692262, 95.55136972, 96.19429688),  # KITTI
    (19, 10): (73.16, 82.91, 72.39),  # Cityscapes
}


def normalisation(file: Weights, net: nn.Module, start: bool) -> tuple[RGB | None, RGB | None]:
    """What the weights expect to be subtracted from the image and to divide it by; None where nobody knows.

    Args:
        file: The weights.
        net: The network they are put into.
        start: Whether they are a classifier's to start from, and not all that the network has.
    """
    if file.mean and file.std:
        return file.mean, file.std
    if file.kind == "torch":
        torchvision = any(name.startswith("features.") for name in file.layers) or "layer1.0.conv1" in file.layers
        classifier = [tensor for name, part in file.layers.items() if name.startswith("classifier") for tensor in part.values()]
        features = "features.0" in file.layers and all(bool(tensor.isnan().all()) for tensor in classifier)
        if features:  # the convolutions of VGG's authors
            return VGG_MEAN, ONE
        return TORCHVISION if torchvision else (None, None)
    if file.kind == "safetensors":
        return None, None
    if start:  # a classifier's weights
        return (VGG_MEAN if "conv1_1" in file.layers else ILSVRC), ONE
    if isinstance(net, DilatedNet | FrontEnd):
        return dilated_mean(net), ONE
    return RELEASED.get(type(net), (None, None))


def dilated_mean(net: DilatedNet | FrontEnd) -> RGB | None:
    """The mean of the data set that this DilatedNet was released for."""
    front_end = net.front_end if isinstance(net, DilatedNet) else net
    context = net.context if isinstance(net, DilatedNet) else None
    layers = (
        sum(isinstance(layer, nn.Conv2d) for layer in context.modules()) if isinstance(context, dilatednet.ContextModule) else 8
    )
    return DILATED.get((front_end.final.out_channels, layers))


def imagenet(net: nn.Module) -> Path:
    """The ImageNet weights that torchvision has for the network's encoder, from torch's cache or downloaded into it.

    Raises:
        UserError: There are none for this network, or they are not in the cache and cannot be downloaded.
    """
    import torchvision.models as published

    encoders = [layer for layer in net.modules() if isinstance(layer, vgg.Encoder | resnet.Encoder)]
    if isinstance(net, FCNAlexNet) and not any(isinstance(layer, nn.LocalResponseNorm) for layer in net.modules()):
        chosen = published.AlexNet_Weights.IMAGENET1K_V1
    elif not encoders:
        raise UserError(
            f"model.weights: there are no ImageNet weights for {type(net).__name__} in torchvision; remove it, or name a file"
        )
    elif isinstance(encoders[0], resnet.Encoder):
        chosen = published.get_model_weights(f"resnet{encoders[0].depth}").IMAGENET1K_V1
    elif any(name.endswith("fc6") for name, _ in net.named_modules()):
        chosen = published.VGG16_Weights.IMAGENET1K_V1
    else:  # the authors' own convolutions; torchvision has their classifier not
        chosen = published.VGG16_Weights.IMAGENET1K_FEATURES
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / chosen.url.rpartition("/")[2]
    if not path.is_file():
        download(chosen.url, path)
    return path


def download(url: str, path: Path) -> None:
    """Fetch a file whose name ends in the start of its SHA-256; it appears whole or not at all."""
    expected = re.search(r"-([a-f0-9]{8,})\.", path.name)
    timeout = socket.getdefaulttimeout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(20)
        torch.hub.download_url_to_file(url, str(path), expected[1] if expected else None, progress=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"model.weights: cannot download {url} ({error}): fetch it where there is a network and put it into {path.parent}, "
            "or name a file of weights instead of imagenet"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
