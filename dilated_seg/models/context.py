"""The context module: dilated convolutions over class scores, the second half of DilatedNet.

Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016, https://arxiv.org/abs/1511.07122.

Not in the paper: ``arrangement="parallel"`` applies all dilations to the front end's scores, as in the ASPP of Chen et al.,
"DeepLab", 2016 (arXiv:1606.00915, Section 3.2), where the paper applies one after the other; and ``dilations`` is any sequence.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import nn

from dilated_seg.models.layers import check_arguments, conv_relu
from dilated_seg.models.release import PublishedNames, Variants
from dilated_seg.tensors import Maps

# Table 1, one row a layer, and the two that the authors add for Cityscapes; channels in multiples of C, the number of classes.
#                  kernel, dilation, basic, large     receptive field
CONTEXT = {
    "ctx_conv1_1": (3,      1,        1,      2),  #    3 x  3
    "ctx_conv1_2": (3,      1,        1,      2),  #    5 x  5
    "ctx_conv2_1": (3,      2,        1,      4),  #    9 x  9
    "ctx_conv3_1": (3,      4,        1,      8),  #   17 x 17
    "ctx_conv4_1": (3,      8,        1,     16),  #   33 x 33
    "ctx_conv5_1": (3,     16,        1,     32),  #   65 x 65
    "ctx_conv6_1": (3,     32,        1,     32),  #  129 x 129
    "ctx_conv7_1": (3,     64,        1,     32),  #  257 x 257
    "ctx_fc1":     (3,      1,        1,     32),  #  two more than before it
    "ctx_final":   (1,      1,        1,      1),
}  # fmt: skip
COLUMN = {"basic": 2, "large": 3}

CONTEXT_LAYERS = r"ctx?_(conv|fc|final).*"  # names of the layers in published files

# Standard deviation of the release's filler around the identity in the first two layers; later over their width.
NOISE = 0.01

Arrangement = Literal["sequential", "parallel"]


class ContextModule(nn.Module):
    """C score maps in, C score maps of the same size out, with a receptive field of 67 x 67 scores (Table 1).

    It starts as the identity (Equations 4 and 5) of scores of at least zero; the ReLU of the first layer sets negative scores
    to zero.

    Args:
        num_classes: C.
        size: The column of Table 1 that gives the channels. The Large module is published with 8 layers only.
        layers: 8, or 7 without dilation 16 (KITTI, whose images are too low for it; receptive field 35 x 35), or 10 with
            dilations of 32 and 64 too (Cityscapes; 259 x 259).
        padding: "zeros" around every layer's maps, as the released Basic modules have it; "once", all of it (33 cells
            for 8 layers) around the first layer's, as the released Large module has it; or "valid", none: n cells give n - 66.
        dilated: False sets every dilation to 1: same layers and weights, receptive field 15 x 15.
        dilations: Dilations of the 3 x 3 layers, 1 to 9 of them in any order, in place of those that ``layers`` stands for.
        arrangement: "sequential", as in the paper, or "parallel": every 3 x 3 layer reads the input, and the last layer, 1 x 1,
            all of their outputs; for padding="zeros" only. The receptive field is that of the largest dilation, 33 x 33.
        noise: Standard deviation around the identity; if None, 0 in the Basic module (Equation 4) and 0.01 in the Large one
            (Equation 5). The release's filler has 0.01 in both, over the width of later layers.
    """

    variants: ClassVar[Variants] = ()  # a part of DilatedNet
    published_names: ClassVar[PublishedNames] = ((r"^ct_", "ctx_"),)
    image_layers: ClassVar[tuple[str, ...]] = ()
    indivisible: ClassVar[str] = CONTEXT_LAYERS

    def __init__(
        self,
        num_classes: int,
        size: Literal["basic", "large"] = "basic",
        layers: Literal[7, 8, 10] = 8,
        padding: Literal["zeros", "valid", "once"] = "zeros",
        *,
        dilated: bool = True,
        dilations: Sequence[int] | None = None,
        arrangement: Arrangement = "sequential",
        noise: float | None = None,
    ) -> None:
        check_arguments(ContextModule, locals())
        dilations = choose_dilations(layers, dilated, dilations)
        if arrangement == "parallel" and padding != "zeros":
            raise ValueError(f"padding={padding!r} is for arrangement='sequential': with 'parallel' use padding='zeros'")
        super().__init__()
        self.parallel = arrangement == "parallel"
        # Of each layer: channels of the maps that it reads (joined, if several), its own, and those that share a class's score.
        names = [*list(CONTEXT)[: len(dilations) - 1], "ctx_fc1", "ctx_final"]
        outputs = [num_classes * CONTEXT[name][COLUMN[size]] for name in names]
        inputs, shared = [[num_classes], *([width] for width in outputs[:-1])], outputs
        if self.parallel:
            inputs = [[num_classes]] * len(dilations) + [outputs[:-1]]
            shared = [sum(outputs[:-1])] * len(dilations) + [num_classes]
        noise = (NOISE if size == "large" else 0.0) if noise is None else noise
        built: OrderedDict[str, nn.Module] = OrderedDict()
        for number, name in enumerate(names):
            kernel, dilation, in_channels = CONTEXT[name][0], [*dilations, 1][number], sum(inputs[number])
            pad = {"zeros": None, "valid": 0, "once": sum(dilations) if number == 0 else 0}[padding]
            built |= conv_relu(name, in_channels, outputs[number], kernel, dilation, padding=pad)
            std = noise if number < 2 else noise * num_classes / max(in_channels, outputs[number])
            identity_(built[name], num_classes, inputs[number], shared[number], std)
        built.popitem()  # the last layer gives logits: no ReLU
        self.layers = nn.Sequential(built)

    def forward(self, maps: Maps) -> Maps:
        if not self.parallel:
            return self.layers(maps)
        *hidden, last = self.layers
        return last(torch.cat([relu(layer(maps)) for layer, relu in zip(hidden[::2], hidden[1::2], strict=True)], 1))


def choose_dilations(layers: int, dilated: bool, dilations: Sequence[int] | None) -> list[int]:
    """Return the dilation of each 3 x 3 layer.

    Raises:
        ValueError: ``dilations`` are not 1 to 9 positive integers, or ``dilated`` is false too.
    """
    if dilations is None:
        table = [dilation for kernel, dilation, _, _ in CONTEXT.values() if kernel == 3]
        return [*table[: layers - 2], table[-1]] if dilated else [1] * (layers - 1)
    if not dilated:
        raise ValueError("dilated=False is for the dilations of Table 1: write dilations of 1 instead")
    if not 1 <= len(dilations) <= 9 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in dilations):
        raise ValueError(f"dilations={dilations!r} is not a sequence of 1 to 9 integers of at least 1")
    return list(dilations)


def identity_(convolution: nn.Module, num_classes: int, inputs: Sequence[int], shared: int, noise: float = 0.0) -> None:
    """Initialize a layer as the identity of class maps (Equations 4 and 5).

    Each of the input maps, and the output, are divided into C groups of channels of equal size, one per class. The center tap
    between channels of one group is C / shared, so that a class's output maps add up to its input. All else is zero in the
    Basic module (Equation 4); in the Large one it is ``noise``, so that channels of one class come to differ.

    Args:
        convolution: The layer.
        num_classes: C.
        inputs: Channels of each of the maps that are joined as its input.
        shared: Channels whose sum is to be the input: all outputs, those of parallel layers included.
        noise: Standard deviation.
    """
    weight, bias = convolution.get_parameter("weight"), convolution.get_parameter("bias")
    out_channels, _, kernel_size, _ = weight.shape
    group_out = torch.arange(out_channels, device="cpu") * num_classes // out_channels
    group_in = torch.cat([torch.arange(channels, device="cpu") * num_classes // channels for channels in inputs])
    same = group_out[:, None] == group_in[None, :]
    nn.init.zeros_(bias)
    nn.init.normal_(weight, std=noise)
    with torch.no_grad():
        weight[:, :, kernel_size // 2, kernel_size // 2].masked_fill_(same.to(weight.device), num_classes / shared)
