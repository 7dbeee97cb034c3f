"""What published weights expect of the image, and where torchvision's ImageNet weights are found."""

import re
import socket
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from dilated_seg import UserError
from dilated_seg.models import FCNAlexNet, resnet, vgg
from dilated_seg.weights.files import Weights, sha256

RGB = tuple[float, float, float]

# What ImageNet's networks subtract from the image (RGB, 0 to 255) and divide it by.
VGG_MEAN: RGB = (123.68, 116.779, 103.939)  # VGG's authors'; Caffe's weights, and torchvision's copy of their features
ONE: RGB = (1.0, 1.0, 1.0)
TORCHVISION: tuple[RGB, RGB] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

# What the released networks subtract, by layers that only they have, the first that is found; DilatedNet's by data set.
ILSVRC: RGB = (122.67892, 116.66877, 104.00699)
NOTHING: RGB = (0.0, 0.0, 0.0)
RELEASED = (
    (r"conv1(_1)?_bn", NOTHING),  # SegNet
    (r"bnfc6", ILSVRC),  # DeconvNet
    (r"fc8_.*", (122.675, 116.669, 104.008)),  # DeepLab
    (r"conv1_1", VGG_MEAN),  # VGG-16, fully convolutional or not
    (r"conv1", ILSVRC),  # CaffeNet
)
DILATED: dict[tuple[int, int], RGB] = {
    (21, 8): (116.52, 111.36, 102.93),  # VOC
    (11, 8): (105.41212523, 108.77808759, 110.70313206),  # CamVid
    (11, 7): (91.34692262, 95.55136972, 96.19429688),  # KITTI
    (19, 10): (73.16, 82.91, 72.39),  # Cityscapes
}


# The starts of the SHA-256 of torchvision's files that we know what to do with.
CHECKSUMS = (
    "397923af", "88682ab5", "6c64b313", "7be5be79", "f37072fd", "b627a593", "0676ba61", "11ad3fa6", "63fe2227", "cd907fc2",
    "394f9c45", "f82ba261",
)  # fmt: skip


def normalisation(file: Weights) -> tuple[RGB | None, RGB | None]:
    """What the weights expect to be subtracted from the image and to divide it by, told by what is in the file.

    None where nobody wrote it down.
    """
    if file.mean and file.std:
        return file.mean, file.std
    if file.kind in ("torch", "safetensors"):
        return torchvisions(file)
    if any("." in name for name in file.layers):  # ours: the authors' names have no path
        return None, None
    if "final" in file.layers or "fc-final" in file.layers:
        mean = released_dilatednet(file)
        return mean, ONE if mean else None
    if fcn := file.layers.get("score_fr") or file.layers.get("score-fr"):
        return (ILSVRC, ONE) if classes_of(fcn) == 21 else (None, None)  # of other data sets' releases it is another
    for pattern, mean in RELEASED:
        if any(re.fullmatch(pattern, name) for name in file.layers):
            return mean, ONE
    return None, None


def classes_of(scores: dict[str, Tensor]) -> int:
    """How many classes a layer of scores has."""
    return next((n for n in next(iter(scores.values())).shape if n > 1), 1)


def torchvisions(file: Weights) -> tuple[RGB | None, RGB | None]:
    """Of torchvision's own files, told by their checksums; VGG's original convolutions have a classifier of only NaN there.

    The same names are in files that were converted from Caffe, whose image is another.
    """
    if not file.published and not sha256(file.path).startswith(CHECKSUMS):
        return None, None
    classifier = [tensor for name, part in file.layers.items() if name.startswith("classifier.") for tensor in part.values()]
    if "features.0" in file.layers and classifier:
        return (VGG_MEAN, ONE) if all(bool(tensor.isnan().all()) for tensor in classifier) else TORCHVISION
    return TORCHVISION if "layer1.0.conv1" in file.layers else (None, None)


def released_dilatednet(file: Weights) -> RGB | None:
    """The mean of the data set whose classes and context layers a DilatedNet has; a front end alone has no layers to count."""
    classes = classes_of(file.layers.get("fc-final") or file.layers["final"])
    layers = sum(bool(re.match("ctx?_", name)) and "upsample" not in name for name in file.layers)
    known = [mean for (c, n), mean in DILATED.items() if c == classes and layers in (0, n)]
    return known[0] if len(known) == 1 else None


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
