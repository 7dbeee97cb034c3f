"""What published weights expect of the image, and where torchvision's ImageNet weights are found."""

import re
from pathlib import Path

from torch import Tensor, nn

from dilated_seg.errors import UserError
from dilated_seg.storage import digest
from dilated_seg.weights.download import cache, have
from dilated_seg.weights.readers import Weights

RGB = tuple[float, float, float]

# What ImageNet's networks subtract from the image (RGB, 0 to 255) and divide it by.
VGG_MEAN: RGB = (123.68, 116.779, 103.939)  # VGG's authors'; Caffe's weights, and torchvision's copy of their features
ONE: RGB = (1.0, 1.0, 1.0)
IMAGENET_STD: RGB = (58.395, 57.12, 57.375)
TORCHVISION: tuple[RGB, RGB] = ((123.675, 116.28, 103.53), IMAGENET_STD)

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


# The SHA-256 of torchvision's files that we know what to do with. Three of them nobody has published whole, twice and
# independently: of those it is the first eight digits, which torchvision has in the name.
CHECKSUMS = {
    "vgg16-397923af.pth": "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "vgg16_features-amdegroot-88682ab5.pth": "88682ab5",
    "vgg16_bn-6c64b313.pth": "6c64b3138f2f4fcb3bcc4cafde11619c4f440eb1631787e93a682fd88305888a",
    "alexnet-owt-7be5be79.pth": "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "resnet18-f37072fd.pth": "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    "resnet34-b627a593.pth": "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
    "resnet50-0676ba61.pth": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    "resnet50-11ad3fa6.pth": "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
    "resnet101-63fe2227.pth": "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    "resnet101-cd907fc2.pth": "cd907fc2",
    "resnet152-394f9c45.pth": "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58",
    "resnet152-f82ba261.pth": "f82ba261",
}


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
    if not file.published and not digest(file.path).startswith(tuple(CHECKSUMS.values())):
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
        UserError: There are none for this network, they are not in the cache and cannot be downloaded, or what is in the cache
            is another file.
    """
    import torchvision.models as published

    weights = next((name for part in net.modules() if (name := getattr(part, "imagenet", None))), None)
    if not weights:
        raise UserError(
            f"model.weights: there are no ImageNet weights for {type(net).__name__} in torchvision; remove it, or name a file"
        )
    url = published.get_weight(weights).url
    name = url.rpartition("/")[2]
    return have(url, cache() / name, CHECKSUMS[name])
