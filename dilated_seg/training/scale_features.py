"""Scale the features of loaded layers to the random layers that follow them.

The convolutions of the published VGG-16 return features far above 1. Random layers after them, such as fc6 and fc7 with the
initialization of He et al., keep that scale: on CamVid their outputs have standard deviations of 6 to 26. Then the first logits
are huge, and each step of the optimizer changes the outputs by as much. Dividing the random weights would not change the steps.
Convolutions, ReLUs and poolings without biases commute with a positive factor, so dividing the image and every loaded bias by s
divides all features by s and changes nothing else:

    f(x / s; W, b / s) = f(x; W, b) / s

s is measured on training images, as in Mishkin and Matas, "All you need is a good init", ICLR 2016, so that the output of the
first random layer has a standard deviation of 1.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

CLASSIFIER = ("fc6", "fc7")  # layers of VGG that files with only its convolutions lack
IMAGES = 4  # number of images, evenly spaced in the training split
TOLERANCE = 0.01  # of the deviation after scaling, which is 1 up to rounding if the loaded layers commute with a factor


def scale_features(task: Any, missing: Collection[str]) -> None:  # noqa: ANN401 - a SegmentationTask, a layer above
    """Divide the features of the loaded layers by the standard deviation of the first random layer's output, and print it.

    Nothing changes if fc6 and fc7 were loaded, if the data module is not a SegmentationDataModule, or if the features are not
    proportional to the image.

    Args:
        task: The task, whose model has the initial weights and their normalization, and whose trainer has the data.
        missing: Names of the parameters that keep their initial values.
    """
    model, data = task.model, getattr(task.trainer, "datamodule", None)
    layers = find_random_layers(model.net, missing)
    if not layers or not hasattr(data, "open_training_images"):
        return
    image = load_images(data)
    name, deviation = measure_deviation(model, layers, image)
    loaded = [parameter for key, parameter in model.net.named_parameters() if key.endswith("bias") and key not in missing]
    scaled: Sequence[Tensor] = [model.std, *loaded]
    before = [tensor.clone() for tensor in scaled]
    with torch.no_grad():
        model.std.mul_(deviation)
        for bias in loaded:
            bias.div_(deviation)
        if not abs(measure_deviation(model, layers, image)[1] - 1) < TOLERANCE:
            for tensor, value in zip(scaled, before, strict=True):
                tensor.copy_(value)
        elif task.trainer.is_global_zero:
            print(
                f"features of the loaded layers divided by {deviation:.3g}, by std and biases: on {IMAGES} training images the "
                f"output of {name}, which is random, has a deviation of 1",
                flush=True,
            )


def find_random_layers(net: nn.Module, missing: Collection[str]) -> dict[str, nn.Module]:
    """Return fc6 and fc7 by name, if they were not loaded and a ReLU follows directly: batch norm would undo any scale.

    Other random layers are initialized as in their papers: scores with small values, a context module as the identity.
    """
    return {
        f"{name}.{first}".lstrip("."): layer
        for name, part in net.named_modules()
        if isinstance(part, nn.Sequential)
        for (first, layer), (_, after) in pairwise(part.named_children())
        if first in CLASSIFIER and isinstance(after, nn.ReLU) and f"{name}.{first}.weight".lstrip(".") in missing
    }


def measure_deviation(model: Any, layers: dict[str, nn.Module], image: Tensor) -> tuple[str, float]:  # noqa: ANN401 - a Segmenter
    """Return the first of the layers that runs and the standard deviation of its output, in evaluation mode."""
    outputs: list[tuple[str, float]] = []

    def record(name: str) -> Any:  # noqa: ANN401 - a forward hook
        return lambda layer, inputs, output: outputs.append((name, output.std().item()))

    handles = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
    training = model.net.training
    with torch.no_grad():
        model.net.eval().forward(model.normalize(image))  # not its call, which may be compiled
    model.net.train(training)
    for handle in handles:
        handle.remove()
    return outputs[0]


def load_images(data: Any) -> Tensor:  # noqa: ANN401 - a SegmentationDataModule
    """Return augmented training images (B, 3, H, W), cut to the smallest; every process returns the same."""
    images = data.open_training_images()
    samples = [images[0, i * len(images) // IMAGES]["image"] for i in range(IMAGES)]
    height, width = (min(image.shape[axis] for image in samples) for axis in (1, 2))
    return torch.stack([image[:, :height, :width] for image in samples])
