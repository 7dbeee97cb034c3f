"""Which tensor of a file goes where in a network, what it is turned into, and what is left over or missing.

Layers go by the authors' names, which are ours; a torchvision state dict is renamed to them. What changes on the way:
fully connected fc6 and fc7 become convolutions (DeepLab-LargeFOV takes every third tap and every fourth filter of them, as
its Section 3.1 does), and the first convolution's channels go from Caffe's BGR to our RGB.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dilated_seg.errors import UserError
from dilated_seg.models import ContextModule, FCDenseNet, FCNAlexNet, SegNetBasic, UNet, resnet, vgg
from dilated_seg.weights.readers import WRAPPERS, Weights

# Layers that see the image itself, whose input channels are colours.
ON_THE_IMAGE = ("conv1_1", "conv1", "first", "conv_d0a-b", "image_ms1")

# The published names of layers that are called otherwise here.
ALIASES = (
    (r"^fc-final$", "final"),
    (r"^ct_", "ctx_"),
    (r"^fc8_.*", "fc8"),
    (r"^seg-score.*", "score"),
    (r"^score-fr$", "score_fr"),
    (r"^conv(\d_\d)_bn$", r"bn\1"),  # torchvision's vgg16_bn, renamed below, into DeconvNet
)


@dataclass
class Report:
    """What became of the tensors of a file: each is taken (name, shape, ours, what was done) or left over; ours are missing."""

    taken: list[tuple[str, tuple[int, ...], str, str]] = field(default_factory=list)
    left_over: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    missing: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    stripped: str = ""  # the prefix that the file's names had
    classes: list[str] | None = None  # the names of the classes that the file was trained on, if it says so

    @property
    def on_the_image(self) -> bool:
        """Whether a layer was taken that sees the image itself, so that its mean and its channels matter."""
        return any(ours.split(".")[-2] in ON_THE_IMAGE for _, _, ours, _ in self.taken)


def fit(
    file: Weights, net: nn.Module, channels: str | None = None, without: Sequence[str] = ()
) -> tuple[dict[str, Tensor], Report]:
    """The file's tensors as a part of the network's state dict.

    Args:
        file: What was read.
        net: May be on the meta device: names and shapes are all that is looked at.
        channels: "bgr" or "rgb", what the file's first convolution takes; if None, it is told by where the names come from.
        without: Layers or parts of the network that are to start anew, by name ("score_fr", "context").

    Raises:
        UserError: Nothing fits, a shape does not, a tensor is none of finite real numbers, two are for one place, or a part of
            the network that makes sense only as a whole is in the file only partly, or with layers that ours has not.
    """
    ours, report, state, wrong, unplaced = parts(net), Report(), dict[str, Tensor](), list[tuple[str, str]](), list[str]()
    unwrap(file, ours)
    report.stripped = file.stripped
    for layer, (original, tensors) in renamed(file.layers).items():
        path = match(layer, ours)
        names = {kind: f"{original}{'/' if file.kind in ('caffe', 'npz') else '.'}{kind}" for kind in tensors}
        anew = path is not None and not set(path.split(".")).isdisjoint(without)
        if path is None or anew or (layer == "fc8" and is_imagenet(tensors)):
            report.left_over += [(names[kind], tuple(tensor.shape)) for kind, tensor in tensors.items()]
            unplaced += [] if anew else [layer]
            continue
        tensors, names = by_kind(file, net.get_submodule(path), tensors, names)
        for kind, tensor in tensors.items():
            key = f"{path}.{kind}"
            if kind not in ours[path]:
                if kind != "num_batches_tracked":
                    report.left_over.append((names[kind], tuple(tensor.shape)))
                continue
            if key in state:
                raise UserError(f"{file.path} has two tensors for {key}: {names[kind]} is the second")
            converted, how = convert(last(path), tensor, ours[path][kind].shape)
            if converted is None:
                wrong.append((last(path), f"{names[kind]} is {shape(tensor)} there and {shape(ours[path][kind])} here"))
                continue
            coloured = kind == "weight" and last(path) in ON_THE_IMAGE and converted.shape[1] == 3
            if coloured and (channels or channel_order(file, layer, original, path)) == "bgr":
                converted, how = converted.flip(1), f"{how}, BGR to RGB".removeprefix(", ")
            if kind != "num_batches_tracked":
                converted, how = single(file, names[kind], converted, how)
            state[key] = converted.contiguous()
            if names[kind]:
                report.taken.append((names[kind], tuple(tensor.shape), key, how))
    if wrong:
        raise UserError(
            f"{file.path} does not fit the network: {some([problem for _, problem in wrong])}; if {wrong[0][0]} is to start "
            "anew, as for other classes, name it in model.weights_without (port --without)"
        )
    if not report.taken:
        found = some([last(path) for path in ours])
        raise UserError(f"{file.path} has nothing for this network: its layers are {some(list(file.layers))}, ours {found}")
    refuse_parts(file, net, ours, state, unplaced)
    fixed = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    for path, kinds in ours.items():
        report.missing += [
            (f"{path}.{kind}", tuple(tensor.shape))
            for kind, tensor in kinds.items()
            if f"{path}.{kind}" not in state.keys() | fixed and kind != "num_batches_tracked"
        ]
    return state, report


def unwrap(file: Weights, ours: dict[str, dict[str, Tensor]]) -> None:
    """Take the names of what held the network off the names of the file's layers, unless ours begin with them too.

    Raises:
        UserError: Two such names stand side by side, or two layers would get one name.
    """
    first = {path.partition(".")[0] for path in ours}
    while prefixes := [
        f"{name}." for name in WRAPPERS if name not in first and any(n.startswith(f"{name}.") for n in file.layers)
    ]:
        if len(prefixes) > 1:
            raise UserError(f"{file.path} has layers below {' and '.join(prefixes)}: save the state_dict of one network alone")
        bare = [name.removeprefix(prefixes[0]) for name in file.layers]
        if twice := [name for name in bare if bare.count(name) > 1]:
            raise UserError(f"{file.path} has {twice[0]} and {prefixes[0]}{twice[0]}: save the state_dict of one network alone")
        file.layers, file.stripped = dict(zip(bare, file.layers.values(), strict=True)), file.stripped + prefixes[0]


def channel_order(file: Weights, layer: str, original: str, path: str) -> str:
    """Caffe's images are BGR, and so are arrays under Caffe's names; torchvision's and ours are RGB.

    Raises:
        UserError: The names are Caffe's, but the file is torch's: it may have been turned around, or not.
    """
    if file.kind == "caffe":
        return "bgr"
    if layer == path or layer != original or "layer1.0.conv1" in file.layers or file.mean:
        return "rgb"
    if file.kind == "npz":
        return "bgr"
    raise UserError(
        f"{file.path} has Caffe's names in a file of torch, and does not say whether {original} takes BGR or RGB: "
        "say so with dilated-seg port --channels"
    )


def single(file: Weights, name: str, tensor: Tensor, how: str) -> tuple[Tensor, str]:
    """The tensor in single precision.

    Raises:
        UserError: It holds other things than finite real numbers.
    """
    if not tensor.is_floating_point():
        raise UserError(f"{file.path} holds {name} as {str(tensor.dtype).removeprefix('torch.')}, which no weight is")
    if not tensor.isfinite().all():
        raise UserError(f"{file.path} holds numbers in {name or 'a layer'} that are not finite")
    return tensor.float(), how if tensor.dtype == torch.float32 else f"{how}, from {tensor.dtype}".removeprefix(", ")


def parts(net: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The network's tensors by layer and part."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in net.state_dict().items():
        path, _, kind = key.rpartition(".")
        found.setdefault(path, {})[kind] = tensor
    return found


def some(names: Sequence[str]) -> str:
    """The first three of many names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def shape(tensor: Tensor) -> str:
    """Sizes as people write them."""
    return " x ".join(map(str, tensor.shape)) or "a single number"


def is_imagenet(tensors: dict[str, Tensor]) -> bool:
    """Whether a layer scores ImageNet's thousand classes, as VGG's fc8 does and none of ours."""
    return any(1000 in tensor.shape for tensor in tensors.values())


def match(layer: str, ours: dict[str, dict[str, Tensor]]) -> str | None:
    """Our layer of this name: the same path, or else the one least deep whose path ends so."""
    candidates = [layer] + [re.sub(pattern, name, layer) for pattern, name in ALIASES if re.search(pattern, layer)]
    for name in candidates:
        if name in ours:
            return name
        found = sorted((path for path in ours if path.endswith(f".{name}")), key=lambda path: path.count("."))
        if found:
            return found[0]
    return None


def by_kind(
    file: Weights, layer: nn.Module, tensors: dict[str, Tensor], names: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Caffe's numbered blobs as weight and bias. Batch norm has scale and shift, its statistics after them or folded in."""
    order = {"0": "weight", "1": "bias", "2": "running_mean", "3": "running_var"}
    kinds = [order.get(kind, kind) for kind in tensors]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"{file.path} has two tensors for one part of a layer: {' and '.join(names.values())}")
    tensors = {order.get(kind, kind): tensor for kind, tensor in tensors.items()}
    names = {order.get(kind, kind): name for kind, name in names.items()}
    if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats and "running_mean" not in tensors:
        channels = tensors.get("weight", torch.empty(0)).numel()
        tensors |= {"running_mean": torch.zeros(channels), "running_var": torch.ones(channels)}
        names |= {"running_mean": "", "running_var": ""}
    return tensors, names


def convert(layer: str, tensor: Tensor, target: torch.Size) -> tuple[Tensor | None, str]:
    """A tensor in our shape and what was done to it; None if it is another tensor."""
    if tensor.shape == target:
        return tensor, ""
    if [n for n in tensor.shape if n != 1] == [n for n in target if n != 1]:
        return tensor.reshape(target), "as convolution" if len(target) == 4 else ""
    flat = [n for n in tensor.shape if n != 1]
    if len(target) == 4 and len(flat) == 2 and flat[0] == target[0] and flat[1] == math.prod(target[1:]):
        return tensor.reshape(target), "as convolution"
    if layer in ("fc6", "fc7") and tensor.numel() and target[0] * 4 == next((n for n in tensor.shape if n != 1), 0):
        return large_field_of_view(tensor.reshape([n for n in tensor.shape if n != 1] or [1]), target)
    return None, ""


def large_field_of_view(tensor: Tensor, target: torch.Size) -> tuple[Tensor | None, str]:
    """DeepLab's decimation of VGG's fc6 and fc7: every 4th filter; every 3rd of 7 x 7 taps, which dilation 12 puts back."""
    if len(target) == 1:
        return tensor[::4], "every 4th filter"
    if target[2] == 3 and tensor[0].numel() == target[1] * 49:
        return tensor.reshape(-1, target[1], 7, 7)[::4, :, ::3, ::3], "as convolution, every 4th filter, every 3rd tap"
    if target[2] == 1 and tensor[0].numel() == 4 * target[1]:
        return tensor.reshape(-1, 4 * target[1])[::4, ::4].reshape(target), "as convolution, every 4th filter of every 4th"
    return None, ""


# Layers of encoders: beside those of ours that a file has, it must have no others.
ENCODERS = r"(conv|bn)\d+(_\d+)?(_bn)?|features\.\d+|layer\d\..*|(res|bn|scale)\d[a-z].*|(bn|scale)_conv\d"


def refuse_parts(
    file: Weights, net: nn.Module, ours: dict[str, dict[str, Tensor]], state: dict[str, Tensor], unplaced: list[str]
) -> None:
    """A layer, an encoder and a context module come whole or not at all; fixed scales belong to weights trained with them."""
    for path, kinds in ours.items():
        there = [kind for kind in kinds if f"{path}.{kind}" in state]
        lacking = [kind for kind in kinds if f"{path}.{kind}" not in state and kind != "num_batches_tracked"]
        if there and lacking:
            raise UserError(f"{file.path} has half of layer {path}: {some(there)} there, {some(lacking)} missing")
    for name, group, foreign in wholes(net):
        there = [path for path in group if f"{path}.weight" in state]
        lacking = [path for path in group if path not in there]
        if there and lacking:
            raise UserError(f"{file.path} has {there[0]} and no {some(lacking)}: it is of another network, or only part of one")
        inside = f"{name}." if name else "nothing lies here"
        beside = [n for n in unplaced if re.fullmatch(foreign, n) or re.fullmatch(foreign, last(n)) or n.startswith(inside)]
        beside = beside if there else []
        if beside:
            raise UserError(
                f"{file.path} has {some(beside)} beside {there[0]}, for which this network has no place: it is another's"
            )
    scaled = [any(name.startswith("scale_pool") for name in layers) for layers in (map(last, ours), map(last, file.layers))]
    if scaled[0] != scaled[1] and any(last(key.rpartition(".")[0]).startswith("score_pool") for key in state):
        raise UserError(f"{file.path} was trained {'with' if scaled[1] else 'without'} fixed scales: say at_once={scaled[1]}")


def wholes(net: nn.Module) -> list[tuple[str, list[str], str]]:
    """Parts whose convolutions make sense only together, and what layers beside them in a file would belong to them too."""

    def convolutions(part: nn.Module, prefix: str) -> list[str]:
        kinds = nn.Conv2d | nn.ConvTranspose2d
        return [f"{prefix}.{n}".strip(".") for n, layer in part.named_modules() if isinstance(layer, kinds)]

    found = []
    for name, part in net.named_modules():
        if isinstance(part, vgg.Encoder | resnet.Encoder):
            found.append((name, convolutions(part, name), ENCODERS))
        elif isinstance(part, ContextModule):
            found.append((name, convolutions(part, name), "ctx?_(conv|fc|final).*"))
    if isinstance(net, UNet | FCDenseNet | SegNetBasic | FCNAlexNet):  # no encoder apart: all but the scores
        heads = ("score", "classifier")
        found.append(("", [path for path in convolutions(net, "") if not any(h in last(path) for h in heads)], ENCODERS))
    return found


def last(path: str) -> str:
    """A layer's name without where it lies."""
    return path.rpartition(".")[2]


def renamed(layers: dict[str, dict[str, Tensor]]) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """Layers by the authors' names, with the file's: torchvision numbers those of VGG-16 and AlexNet.

    The classifier beside VGG's original convolutions is full of NaN there, and keeps its number.
    """
    numbered = sorted((int(m[1]), name) for name in layers if (m := re.fullmatch(r"features\.(\d+)", name)))
    convolutions = [name for _, name in numbered if layers[name].get("weight", torch.empty(0)).dim() == 4]
    vgg_names = [f"conv{stage}_{i}" for stage, (_, n) in enumerate(vgg.VGG16, start=1) for i in range(1, n + 1)]
    alexnet_names = [f"conv{i}" for i in range(1, 6)]
    authors, fc = {13: (vgg_names, (0, 3)), 5: (alexnet_names, (1, 4))}.get(len(convolutions), ([], ()))
    names = dict(zip(convolutions, authors, strict=False))
    names |= {f"features.{int(name[9:]) + 1}": f"{ours}_bn" for name, ours in names.items()}  # where there is batch norm
    names |= {f"classifier.{number}": ours for number, ours in zip(fc, ("fc6", "fc7"), strict=False)}
    broken = {name for name, part in layers.items() if any(t.is_floating_point() and t.isnan().all() for t in part.values())}
    return {name if name in broken else names.get(name, name): (name, part) for name, part in layers.items()}
