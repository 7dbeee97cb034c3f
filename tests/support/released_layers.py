"""The authors' definitions as tables, one row a layer, and which of our networks is which of theirs."""

import json
from pathlib import Path

AUTHORS = json.loads((Path(__file__).parent / "released_layers.json").read_text())
COLUMNS = AUTHORS.pop("columns")

# The constructor call of each published network, and how much of its input our network adds by itself.
PUBLISHED = {
    "dilated_frontend_voc": ("FrontEnd(21, padding='valid')", 0),
    "dilation8_voc_large": ("DilatedNet(21, 'large', padding='reflect')", 372),
    "dilation8_voc_basic": ("DilatedNet(21, 'basic', padding='reflect')", 372),
    "dilation8_camvid_basic": ("DilatedNet(11, 'basic', padding='reflect')", 372),
    "dilation7_kitti_basic": ("DilatedNet(11, 'basic', context_layers=7, padding='reflect')", 372),
    "dilation10_cityscapes_basic": ("DilatedNet(19, 'basic', context_layers=10, padding='reflect')", 372),
    "context_basic_c21": ("ContextModule(21)", 0),
    "context_large_c21": ("ContextModule(21, 'large', padding='once')", 0),
    "context_basic_c11": ("ContextModule(11)", 0),
    "context_basic7_c11": ("ContextModule(11, layers=7)", 0),
    "context_basic10_c19": ("ContextModule(19, layers=10)", 0),
    "fcn32s_voc": ("FCN(21, 32, 'authors')", 0),
    "fcn16s_voc": ("FCN(21, 16, 'authors')", 0),
    "fcn8s_voc": ("FCN(21, 8, 'authors')", 0),
    "fcn8s_atonce_voc": ("FCN(21, 8, 'authors', at_once=True)", 0),
    "fcn_alexnet_voc": ("FCNAlexNet(21, 'authors')", 0),
    "deconvnet_voc": ("DeconvNet(21, 'authors')", 0),
    "segnet_vgg16_camvid": ("SegNet(11, 'authors')", 0),
    "segnet_vgg16_voc": ("SegNet(21, 'authors')", 0),
    "segnet_basic_camvid": ("SegNetBasic(11, 'authors')", 0),
    "deeplab_largefov_voc": ("DeepLabV1(21, 'authors')", 0),
    "fc_densenet56": ("FCDenseNet(11, 56)", 0),
    "fc_densenet67": ("FCDenseNet(11, 67)", 0),
    "fc_densenet103": ("FCDenseNet(11, 103)", 0),
    "unet_paper": ("UNet(2, 'authors', in_channels=1)", 0),
}


def rows(name):
    """The layers of a published network, as dictionaries."""
    return [dict(zip(COLUMNS, row, strict=True)) for row in AUTHORS[name]["layers"]]
