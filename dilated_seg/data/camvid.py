"""CamVid, as released with SegNet."""

import os
from pathlib import Path
from typing import Any

import torch

from dilated_seg import UserError
from dilated_seg.data.base import Sample, SegmentationDataModule
from dilated_seg.data.files import check_sizes, read_image, read_mask
from dilated_seg.data.transforms import UNKNOWN


class CamVid(SegmentationDataModule):
    """CamVid: frames of driving video, 360 x 480, in SegNet's 11 classes and splits of 367, 101 and 233 frames.

    Brostow, Fauqueur and Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009.  The folder holds
    ``train/NAME.png`` (or .jpg) with ``trainannot/NAME.png`` and likewise ``val``, ``test``; a label's value is the class,
    11 is unlabelled and ignored.  The validation frames come from one stretch of one video that training also shows: its
    scores are optimistic and noisy.

    Args:
        root: The folder; None takes the environment variable DILATED_SEG_CAMVID.
        options: See SegmentationDataModule.
    """

    classes = (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    )  # fmt: skip
    # SegNet's colours; the 32-class release has others.
    palette = (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    )  # fmt: skip

    def __init__(self, root: str | None = None, **options: Any) -> None:  # noqa: ANN401 - jsonargparse reads the base's types
        super().__init__(**options)
        self.root = root

    def split(self, name: str) -> "Frames":
        """The frames of "train", "val" or "test".

        Raises:
            UserError: The folder is missing, a frame has no label, a label no frame, or their sizes differ.
        """
        root = self.root or os.environ.get("DILATED_SEG_CAMVID")
        if not root:
            raise UserError("CamVid's folder is not named: set the environment variable DILATED_SEG_CAMVID or data.root")
        return Frames(Path(root), name)


class Frames:
    """The frames of one split with their labels, in the order of their names."""

    # A label's value is the class id; 11 is unlabelled.
    values = torch.tensor([*range(11), 255] + [UNKNOWN] * 244, dtype=torch.uint8)

    def __init__(self, root: Path, name: str) -> None:
        folders = root / name, root / f"{name}annot"
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{folder} is no folder: CamVid needs {name}/ and {name}annot/ as released with SegNet")
        images, masks = ({p.stem: p for p in f.iterdir() if p.suffix in (".png", ".jpg")} for f in folders)
        for missing, what, where in ((images - masks.keys(), "label", 1), (masks.keys() - images, "image", 0)):
            if missing:
                stem = min(missing)
                raise UserError(f"{folders[1 - where] / stem} has no {what} in {folders[where]}: add it or remove its partner")
        self.pairs = [(stem, images[stem], masks[stem]) for stem in sorted(images)]
        for _, image, mask in self.pairs:
            check_sizes(image, mask)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        stem, image, mask = self.pairs[index]
        return Sample(image=read_image(image), mask=read_mask(mask, self.values), id=stem)
