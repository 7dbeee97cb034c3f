"""Optional class attributes of networks, for `describe` and for published weights.

Parts of a network, such as its encoder, may have those marked * too.

- ``variants``: the keyword arguments of each form that `describe` lists; one form without arguments by default.
- ``releases``: the files of weights that its authors released.
- ``published_names`` *: pairs of a regular expression and our name, for layers that published files name differently.
- ``image_layers``: names of the convolutions whose input channels are the image's colors; the first convolution by default.
- ``indivisible`` *: a regular expression of layer names. Weights of such a part are loaded only if the file has all of its
  convolutions and no further layers of such names.
- ``imagenet`` *: the name of torchvision's weights that it can be initialized with; ``hub`` *: the repository of timm's.
- ``normalization`` *: mean and standard deviation (RGB, 0 to 255) of an encoder of timm, the defaults of the task.
- ``check_weights`` (a method): see `FCN`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RGB = tuple[float, float, float]
Variants = tuple[Mapping[str, Any], ...]
PublishedNames = tuple[tuple[str, str], ...]

# Means of ImageNet's images (RGB, 0 to 255), as stated with the released networks.
VGG_MEAN: RGB = (123.68, 116.779, 103.939)
ILSVRC_MEAN: RGB = (122.67892, 116.66877, 104.00699)

# Names of layers of the published encoders: VGG's and AlexNet's, Caffe's, Keras' and torchvision's.
ENCODER_LAYERS = r"(conv|bn)\d+(_\d+)?(_bn)?|block\d_conv\d|features\.\d+|layer\d\..*|(res|bn|scale)\d[a-z].*|(bn|scale)_conv\d"


@dataclass(frozen=True)
class Release:
    """A file of weights that a network's authors released: how it is recognized, and its normalization.

    Args:
        layer: Regular expression of the name of a layer that only this network's files have.
        mean: The mean of the normalization (RGB, 0 to 255).
        num_classes: Number of classes that the layer scores, where the mean depends on the dataset.
        layers: A regular expression and the number of layers whose names match it, where the mean depends on that; none
            matches in a file of the front end alone.
    """

    layer: str
    mean: RGB
    num_classes: int | None = None
    layers: tuple[str, int] | None = None
