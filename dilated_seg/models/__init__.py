"""The networks, one file a paper.

A network is built as ``Net(num_classes, ..., width=1.0)`` and called as ``forward(image: Image) -> Logits``: the logits have
the image's height and width, whatever these are. ``output_stride`` is the distance, in image pixels, of neighbouring cells
before the last upsampling. A network has no loss and no softmax, and reads no files. `dilated_seg.models.release` lists the
optional attributes of its class.
"""

from dilated_seg.models.context import ContextModule
from dilated_seg.models.deconvnet import DeconvNet
from dilated_seg.models.deeplab import DeepLabV1
from dilated_seg.models.dilatednet import DilatedNet, FrontEnd
from dilated_seg.models.fc_densenet import FCDenseNet
from dilated_seg.models.fcn import FCN, FCNAlexNet
from dilated_seg.models.segnet import SegNet, SegNetBasic
from dilated_seg.models.unet import UNet

__all__ = [
    "FCN",
    "ContextModule",
    "DeconvNet",
    "DeepLabV1",
    "DilatedNet",
    "FCDenseNet",
    "FCNAlexNet",
    "FrontEnd",
    "SegNet",
    "SegNetBasic",
    "UNet",
]
