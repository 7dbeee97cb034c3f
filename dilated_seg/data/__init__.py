"""The datasets, one file each: a LightningDataModule that states one dataset's facts."""

from dilated_seg.data.base import SegmentationDataModule
from dilated_seg.data.camvid import CamVid
from dilated_seg.data.shapes import Shapes

__all__ = ["CamVid", "SegmentationDataModule", "Shapes"]
