"""The objects of VOC's images as examples of their own, as DeconvNet's first stage is trained on."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from dilated_seg.data.decode import DAMAGE, Source, explain_unreadable
from dilated_seg.data.directories import check_no_problems
from dilated_seg.data.masks import make_table, read_mask
from dilated_seg.data.pairs import Pairs
from dilated_seg.data.split import Sample, Split
from dilated_seg.errors import UserError

NUMBERS = make_table({k: k for k in range(254)} | {255: 255})  # of objects, in SegmentationObject/


class Objects(Split):
    """The objects of labelled images, one example each: its box, enlarged, with this object labelled and all else background.

    As in the first stage of Noh et al. (2015): the box around the object is enlarged by 1.2 about its middle, as far as the
    image reaches, and stretched to 250 x 250 pixels. What VOC leaves unlabelled stays ignored: an assumption, as is that the
    box ends with the image, and that objects of any size are taken.

    Args:
        images: Labelled images; VOC tells the objects of a label apart in SegmentationObject/, SBD in inst/.

    Raises:
        UserError: The objects of an image are told apart nowhere, or not as in its label.
    """

    enlarged, side = 1.2, 250

    def __init__(self, images: Pairs) -> None:
        images.check()
        self.images, self.members = images, images.members
        self.files = [get_instance_path(label) for *_, label in images.pairs if label]
        missing = [path for path in self.files if not path.is_file()]
        check_no_problems([f"{path} is missing: it should tell the objects of an image apart" for path in missing])
        numbers = [np.unique(read_instances(path)).tolist() for path in self.files]
        self.examples = [(i, number) for i, present in enumerate(numbers) for number in present if number not in (0, 255)]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Sample:
        i, number = self.examples[index]
        sample, there = self.images[i], read_instances(self.files[i]) == number
        if there.shape != sample["mask"].shape:
            raise UserError(f"{self.files[i]} has another size than the label of its image: replace the file")
        label = sample["mask"][there].mode().values
        mask = torch.where(there, label, sample["mask"].where(sample["mask"] == 255, 0))
        rows, columns = (
            enlarge_range(there.any(axis).nonzero(), length, self.enlarged)
            for axis, length in ((1, len(mask)), (0, mask.shape[1]))
        )
        size = [self.side, self.side]
        return Sample(
            image=resize(sample["image"][:, rows, columns], size, antialias=True),
            mask=F.interpolate(mask[None, None, rows, columns], size, mode="nearest-exact")[0, 0],
            id=f"{sample['id']}_{number}",
        )


def enlarge_range(indices: Tensor, length: int, factor: float) -> slice:
    """Return the range from the first to the last of some indices, enlarged about the middle, within an axis."""
    first, last = int(indices.min()), int(indices.max()) + 1
    margin = round((factor - 1) * (last - first) / 2)
    return slice(max(0, first - margin), min(length, last + margin))


def get_instance_path(label: Path) -> Path:
    """Return the file that tells the objects of a label apart: in VOC's SegmentationObject/ or SBD's inst/."""
    return label.parent.parent / ("SegmentationObject" if label.suffix == ".png" else "inst") / label.name


def read_instances(path: Path) -> Tensor:
    """Return the number of the object that each pixel belongs to (H, W); 0 is none, 255 ignored."""
    return read_mask(path, NUMBERS) if path.suffix == ".png" else read_sbd(path, "GTinst", 253)


def read_sbd(path: Source, structure: str = "GTcls", most: int = 20) -> Tensor:
    """Return the class ids in one of SBD's MATLAB files, or in "GTinst" the numbers of the objects.

    Raises:
        UserError: The file is damaged or holds no segmentation.
    """
    try:
        with path.open("rb") as file:
            values = np.asarray(loadmat(file)[structure]["Segmentation"][0][0])
    except RecursionError:
        raise
    except (*DAMAGE, MatReadError) as error:
        raise explain_unreadable(path, error, "a label of SBD") from error
    if values.ndim != 2 or values.dtype.kind not in "ui" or not values.size or values.min() < 0 or values.max() > most:
        raise UserError(f"{path} holds no class ids from 0 to {most}: replace the file")
    return torch.from_numpy(values.astype(np.uint8))
