"""The mean and standard deviation of a dataset's images, for those that are not RGB."""

import torch

from dilated_seg.data.checks import spread_indices
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.workers import print_once
from dilated_seg.errors import UserError

IMAGES = 500  # at most, evenly spread over the training split


def measure_normalization(data: SegmentationDataModule) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel over the pixels of training images, to six digits; print them.

    A channel of one value has the deviation 1.

    Raises:
        UserError: An image cannot be read, unless the dataset skips such images, or there is none.
    """
    split = data.open_split(data.train_split)
    pixels, sums, squares = 0, torch.zeros(data.in_channels).double(), torch.zeros(data.in_channels).double()
    for index in sorted(spread_indices(len(split))[:IMAGES]) if len(split) else ():
        try:
            values = split[index]["image"].flatten(1).double()
        except UserError:
            if data.on_bad_image != "skip":
                raise
            continue
        pixels, sums, squares = pixels + values.shape[1], sums + values.sum(1), squares + values.square().sum(1)
    if not pixels:
        raise UserError(f"{type(data).__name__} has no training image to measure: set model.mean and model.std")
    deviations = (squares / pixels - (sums / pixels).square()).clamp(min=0).sqrt()
    deviations[deviations < 1e-3] = 1
    mean, std = ([float(f"{value:.6g}") for value in values.tolist()] for values in (sums / pixels, deviations))
    line = f"normalization (images of {data.train_split}, values 0 to 255): mean {mean}, standard deviation {std}"
    print_once(line.encode(), line)
    return mean, std
