"""The single objects of VOC's images, on which DeconvNet's first stage is trained."""

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

INSTANCES = make_table({k: k for k in range(254)} | {255: 255})  # object numbers in SegmentationObject/


class Objects(Split):
    """One example per object of labelled images: its enlarged box, with this object labelled and all else background.

    As in the first stage of Noh et al. (2015): the box around the object is enlarged by 1.2 about its center, clipped to the
    image, and resized to 250 x 250 pixels. Not in the paper, and assumed: unlabelled pixels stay ignored, the box is clipped,
    and objects of any size are used.

    Args:
        images: Labelled images, whose objects are in VOC's SegmentationObject/ and SBD's inst/.

    Raises:
        UserError: The file with an image's objects is missing or has another size than its mask.
    """

    enlarged, side = 1.2, 250

    def __init__(self, images: Pairs) -> None:
        images.check()
        self.images, self.members = images, images.members
        self.files = [get_instance_path(mask) for *_, mask in images.pairs if mask]
        missing = [path for path in self.files if not path.is_file()]
        check_no_problems([f"{path} is missing: it should number the objects of an image" for path in missing])
        numbers = [np.unique(read_instances(path)).tolist() for path in self.files]
        self.examples = [(i, number) for i, present in enumerate(numbers) for number in present if number not in (0, 255)]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Sample:
        i, number = self.examples[index]
        sample, inside = self.images[i], read_instances(self.files[i]) == number
        if inside.shape != sample["mask"].shape:
            raise UserError(f"{self.files[i]} has another size than the mask of its image: replace the file")
        class_id = sample["mask"][inside].mode().values
        mask = torch.where(inside, class_id, sample["mask"].where(sample["mask"] == 255, 0))
        rows, columns = (
            enlarge_range(inside.any(axis).nonzero(), length, self.enlarged)
            for axis, length in ((1, len(mask)), (0, mask.shape[1]))
        )
        size = [self.side, self.side]
        return Sample(
            image=resize(sample["image"][:, rows, columns], size, antialias=True),
            mask=F.interpolate(mask[None, None, rows, columns], size, mode="nearest-exact")[0, 0],
            id=f"{sample['id']}_{number}",
        )


def enlarge_range(indices: Tensor, length: int, factor: float) -> slice:
    """Return the range of the indices, enlarged about its center and clipped to ``length``."""
    first, last = int(indices.min()), int(indices.max()) + 1
    margin = round((factor - 1) * (last - first) / 2)
    return slice(max(0, first - margin), min(length, last + margin))


def get_instance_path(mask: Path) -> Path:
    """Return the file that numbers the objects of a mask, in VOC's SegmentationObject/ or SBD's inst/."""
    return mask.parent.parent / ("SegmentationObject" if mask.suffix == ".png" else "inst") / mask.name


def read_instances(path: Path) -> Tensor:
    """Return the number of each pixel's object (H, W); 0 is background, 255 ignored."""
    return read_mask(path, INSTANCES) if path.suffix == ".png" else read_sbd(path, "GTinst", 253)


def read_sbd(path: Source, structure: str = "GTcls", largest: int = 20) -> Tensor:
    """Return the class ids (H, W) in one of SBD's MATLAB files, or with "GTinst" the object numbers.

    Raises:
        UserError: The file is damaged or holds no segmentation.
    """
    try:
        with path.open("rb") as file:
            values = np.asarray(loadmat(file)[structure]["Segmentation"][0][0])
    except RecursionError:
        raise
    except (*DAMAGE, MatReadError) as error:
        raise explain_unreadable(path, error, "a mask of SBD") from error
    if values.ndim != 2 or values.dtype.kind not in "ui" or not values.size or values.min() < 0 or values.max() > largest:
        raise UserError(f"{path} does not hold integers from 0 to {largest}: replace the file")
    return torch.from_numpy(values.astype(np.uint8))
