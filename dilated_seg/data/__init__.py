"""The datasets, one file each."""

from dilated_seg.data.camvid import CamVid
from dilated_seg.data.cityscapes import Cityscapes
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.folder import Folder
from dilated_seg.data.hub import Hub
from dilated_seg.data.shapes import Shapes
from dilated_seg.data.voc import VOC

__all__ = ["VOC", "CamVid", "Cityscapes", "Folder", "Hub", "SegmentationDataModule", "Shapes"]
