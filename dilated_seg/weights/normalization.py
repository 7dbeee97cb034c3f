"""The normalization (mean, std) of published weights, and torchvision's ImageNet weights."""

import re
from pathlib import Path
from typing import Any

from torch import nn

from dilated_seg import models
from dilated_seg.errors import UserError, format_error
from dilated_seg.models.release import ILSVRC_MEAN, RGB, VGG_MEAN, Release
from dilated_seg.storage import digest
from dilated_seg.weights.download import ensure_downloaded, get_cache_directory
from dilated_seg.weights.readers import Weights

ONE: RGB = (1.0, 1.0, 1.0)
IMAGENET_STD: RGB = (58.395, 57.12, 57.375)
TORCHVISION: tuple[RGB, RGB] = ((123.675, 116.28, 103.53), IMAGENET_STD)

# The classifiers that the networks start from: VGG, by Caffe's names and by Keras', and CaffeNet. Their layers are in the
# networks' files too.
CLASSIFIERS = (Release(r"conv1_1|block1_conv1", VGG_MEAN), Release(r"conv1", ILSVRC_MEAN))

# SHA-256 of the files of torchvision that our networks load. For three of them no two independent sources publish all digits:
# those have the first eight, which are in the file's name.
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


def find_normalization(file: Weights, net: nn.Module) -> tuple[RGB | None, RGB | None]:
    """Return the mean and standard deviation (RGB, 0 to 255) that a file's network was trained with, None where unknown.

    Files of timm do not have it: a network with such an encoder states it.
    """
    if file.mean and file.std:
        return file.mean, file.std
    if stated := find_stated(net, "normalization"):
        return stated
    if file.kind in ("torch", "safetensors"):
        return find_torchvision(file)
    if any("." in name for name in file.layers):  # our networks' layers have paths, the authors' have none
        return None, None
    mean = find_released_mean(file)
    return mean, ONE if mean else None


def find_stated(net: nn.Module, attribute: str) -> Any:  # noqa: ANN401 - of any type
    """Return an optional attribute of a network or of the first of its parts that has one, else None."""
    return next((value for part in net.modules() if (value := getattr(part, attribute, None))), None)


def get_default_normalization(net: nn.Module) -> tuple[RGB, RGB]:
    """Return the mean and standard deviation that a network states, or else VGG-16's mean and ImageNet's deviation."""
    return find_stated(net, "normalization") or (VGG_MEAN, IMAGENET_STD)


def find_released_mean(file: Weights) -> RGB | None:
    """Return the mean of a file that a network's class lists as released, recognized by its layers, or None."""
    releases = [release for name in models.__all__ for release in getattr(getattr(models, name), "releases", ())]
    releases += CLASSIFIERS
    layer = next((name for release in releases for name in file.layers if re.fullmatch(release.layer, name)), None)
    if layer is None:
        return None
    means = {release.mean for release in releases if re.fullmatch(release.layer, layer) and is_release(file, release, layer)}
    return means.pop() if len(means) == 1 else None


def is_release(file: Weights, release: Release, layer: str) -> bool:
    """Return whether a file whose scores are of ``layer`` has a release's number of classes and of other layers."""
    num_classes = next((n for n in next(iter(file.layers[layer].values())).shape if n > 1), 1)
    pattern, expected = release.layers or ("", 0)
    layers = sum(bool(re.fullmatch(pattern, name)) for name in file.layers)
    return release.num_classes in (None, num_classes) and layers in (0, expected)


def find_torchvision(file: Weights) -> tuple[RGB | None, RGB | None]:
    """Return the normalization of torchvision's own files, recognized by their checksums.

    Files converted from Caffe have the same layers and another normalization. VGG's original convolutions, which torchvision
    has too, come with a classifier of only NaN.
    """
    if not file.published and not digest(file.path).startswith(tuple(CHECKSUMS.values())):
        return None, None
    classifier = [tensor for name, part in file.layers.items() if name.startswith("classifier.") for tensor in part.values()]
    if "features.0" in file.layers and classifier:
        return (VGG_MEAN, ONE) if all(bool(tensor.isnan().all()) for tensor in classifier) else TORCHVISION
    return TORCHVISION if "layer1.0.conv1" in file.layers else (None, None)


def fetch_imagenet(net: nn.Module) -> Path:
    """Return the file of torchvision's ImageNet weights for the network's encoder, downloaded unless torch's cache has it.

    Of an encoder of timm it is timm's file of the weights in the encoder's name, in the cache of the Hugging Face Hub.

    Raises:
        UserError: There is none for this network, it cannot be downloaded, or the file in the cache is another.
    """
    if repository := find_stated(net, "hub"):
        return fetch_from_hub(repository)
    from torchvision.models import get_weight

    weights = find_stated(net, "imagenet")
    if not weights:
        raise UserError(
            f"model.weights: there are no ImageNet weights for {type(net).__name__} in torchvision or timm; remove it, or name "
            "a file"
        )
    url = get_weight(weights).url
    name = url.rpartition("/")[2]
    return ensure_downloaded(url, get_cache_directory() / name, CHECKSUMS[name])


def fetch_from_hub(repository: str) -> Path:
    """Return timm's file of weights in a repository of the Hugging Face Hub, downloaded unless its cache has it.

    Raises:
        UserError: It cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # every library below raises its own
        raise UserError(
            f"model.weights: cannot download model.safetensors of {repository} from the Hugging Face Hub "
            f"({format_error(error)}): fetch it where there is a network, and name the file in model.weights"
        ) from error
