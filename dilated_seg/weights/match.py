"""Match the tensors of a file to those of a network: rename, match, convert, check."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from dilated_seg.errors import UserError, format_names, print_table
from dilated_seg.weights.check import check_parts, get_last_name, group_by_layer
from dilated_seg.weights.convert import convert_layout, convert_precision, find_channel_order, format_shape
from dilated_seg.weights.readers import Weights
from dilated_seg.weights.rename import find_layer, name_tensors, rename_kinds, rename_timm, rename_torchvision, strip_wrappers

Shape = tuple[int, ...]


@dataclass
class LoadResult:
    """Result of loading a file: loaded, unexpected and missing tensors.

    Args:
        loaded: Name in the file, shape in the file, our name, conversion.
        unexpected: Name and shape in the file, of tensors that are not loaded.
        missing: Our name and shape, of tensors that keep their initial values.
        stripped: The prefix that was removed from the file's names.
        classes: Class names of the file's network, if known.
        reads_image: Whether a convolution that reads the image was loaded, so that normalization and channel order matter.
    """

    loaded: list[tuple[str, Shape, str, str]] = field(default_factory=list)
    unexpected: list[tuple[str, Shape]] = field(default_factory=list)
    missing: list[tuple[str, Shape]] = field(default_factory=list)
    stripped: str = ""
    classes: list[str] | None = None
    reads_image: bool = False

    def __str__(self) -> str:
        def layers(tensors: Sequence[tuple[str, Shape]]) -> str:
            names = list(dict.fromkeys(re.sub(r"[./][^./]*$", "", name) for name, _ in tensors))
            return f" ({format_names(names)})" if names else ""

        return (
            f"{len(self.loaded)} tensors loaded, {len(self.unexpected)} unexpected{layers(self.unexpected)}, "
            f"{len(self.missing)} missing{layers(self.missing)}"
            + (f"; names without their prefix {self.stripped}" if self.stripped else "")
        )

    def print(self) -> None:
        """Print a table of all tensors."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD)
        for heading in ("in the file", "shape", "in the network", "conversion"):
            table.add_column(heading, no_wrap=True)
        for name, shape, ours, conversion in self.loaded:
            table.add_row(name, "x".join(map(str, shape)), ours, conversion)
        for name, shape in self.unexpected:
            table.add_row(name, "x".join(map(str, shape)), Text("unexpected", "yellow"), "")
        for name, shape in self.missing:
            table.add_row(Text("missing", "yellow"), "x".join(map(str, shape)), name, "keeps its initial values")
        print_table(table)


def map_tensors(
    file: Weights, net: nn.Module, channels: str | None = None, without: Sequence[str] = ()
) -> tuple[dict[str, Tensor], LoadResult]:
    """Return the file's tensors as a part of the network's state dict.

    Args:
        file: The file.
        net: The network; it may be on the meta device, since only names and shapes are used.
        channels: Channel order of the file's first convolution, "bgr" or "rgb"; None to infer it from the names.
        without: Layers or parts of the network that are not loaded, by name or path ("score_fr", "net.decoder", "context").

    Raises:
        UserError: ``without`` names no part, no tensor matches, a shape differs, a tensor has values that are not finite real
            numbers, two tensors match one of ours, or a layer or an indivisible part of the network is in the file only partly
            or with further layers.
    """
    check_left_out(without, net)
    tensors = TensorMap(file, net, channels, without)
    tensors.add_layers()
    tensors.check()
    return tensors.state, tensors.result


class TensorMap:
    """The tensors of one file on their way into one network; see `map_tensors`."""

    def __init__(self, file: Weights, net: nn.Module, channels: str | None, without: Sequence[str]) -> None:
        self.file, self.net, self.channels, self.without = file, net, channels, without
        self.ours = group_by_layer(net.state_dict())
        self.image_layers = find_image_layers(net)
        self.state: dict[str, Tensor] = {}
        self.misfits: list[tuple[str, str]] = []  # layer, problem
        self.unmatched: list[str] = []
        strip_wrappers(file, self.ours)
        rename_timm(file, net)
        self.result = LoadResult(stripped=file.stripped)

    def add_layers(self) -> None:
        """Match each layer of the file to one of ours."""
        published_names = [pair for part in self.net.modules() for pair in getattr(part, "published_names", ())]
        for layer, renamed in rename_torchvision(self.file.layers).items():
            path = find_layer(renamed, self.ours, published_names)
            left_out = path is not None and is_left_out(path, self.without)
            # VGG's fc8 scores ImageNet's 1,000 classes; DeepLab's layer of that name scores those of the dataset.
            imagenet = renamed == "fc8" and any(1000 in tensor.shape for tensor in self.file.layers[layer].values())
            if path is None or left_out or imagenet:
                tensors = name_tensors(self.file, layer).values()
                self.result.unexpected += [(name, tuple(tensor.shape)) for name, tensor in tensors]
                self.unmatched += [] if left_out else [renamed]
                continue
            for kind, (name, tensor) in rename_kinds(self.file, layer, self.net.get_submodule(path)).items():
                self.add_tensor(layer, renamed, path, kind, name, tensor)

    def add_tensor(self, layer: str, renamed: str, path: str, kind: str, name: str, tensor: Tensor) -> None:
        """Convert a tensor and add it to the state, or record why it does not fit."""
        key, ours = f"{path}.{kind}", self.ours[path].get(kind)
        if ours is None:
            if kind != "num_batches_tracked":
                self.result.unexpected.append((name, tuple(tensor.shape)))
            return
        if key in self.state:
            raise UserError(f"{self.file.path} has two tensors for {key}: remove one of them, such as {name}")
        converted, layout = convert_layout(get_last_name(path), tensor, ours.shape)
        if converted is None:
            problem = f"{name} is {format_shape(tensor)} there and {format_shape(ours)} here"
            self.misfits.append((get_last_name(path), problem))
            return
        conversions = [layout]
        reads_image = path in self.image_layers
        self.result.reads_image |= reads_image
        colored = reads_image and kind == "weight" and converted.shape[1] == 3
        if colored and (self.channels or find_channel_order(self.file, layer, renamed, path)) == "bgr":
            converted = converted.flip(1)
            conversions.append("BGR to RGB")
        if kind != "num_batches_tracked":
            converted, precision = convert_precision(self.file, name, converted)
            conversions.append(precision)
        self.state[key] = converted.contiguous()
        if name:
            self.result.loaded.append((name, tuple(tensor.shape), key, ", ".join(filter(None, conversions))))

    def check(self) -> None:
        """Check that the loaded tensors belong together, and list those that are missing."""
        file = self.file
        if self.misfits:
            problems, layer = format_names([problem for _, problem in self.misfits]), self.misfits[0][0]
            raise UserError(
                f"{file.path} does not fit the network: {problems}; to train {layer} from its initial values, as for other "
                "classes or channels of images, name it in model.weights_without (port --without)"
            )
        if not self.result.loaded:
            ours = format_names([get_last_name(path) for path in self.ours])
            theirs = format_names(list(file.layers))
            raise UserError(f"{file.path} has no layer of this network: its layers are {theirs}, ours {ours}")
        bands = [path for path in self.image_layers if self.ours[path]["weight"].shape[1] != 3]
        left_out = [path for path in bands if is_left_out(path, self.without)]
        check_parts(file, self.net, self.state, self.unmatched, left_out)
        fixed = {name for name, parameter in self.net.named_parameters() if not parameter.requires_grad}
        self.result.missing = [
            (f"{path}.{kind}", tuple(tensor.shape))
            for path, kinds in self.ours.items()
            for kind, tensor in kinds.items()
            if f"{path}.{kind}" not in self.state.keys() | fixed and kind != "num_batches_tracked"
        ]


def is_left_out(path: str, without: Sequence[str]) -> bool:
    """Return whether a tensor or layer of the network is in one of the parts ``without``, given by name or path."""
    return any(f".{name.removeprefix('net.')}." in f".{path}." for name in without)


def check_left_out(without: Sequence[str], net: nn.Module) -> None:
    """Require that every name in ``without`` is a part of the network.

    Raises:
        UserError: A name is not.
    """
    paths = [path for path, _ in net.named_modules() if path]
    for name in without:
        if not any(is_left_out(path, [name]) for path in paths):
            near = difflib.get_close_matches(name.removeprefix("net."), [*paths, *map(get_last_name, paths)], 1)
            hint = f"did you mean {near[0]}?" if near else f"its parts are {format_names([p for p in paths if '.' not in p])}"
            raise UserError(f"model.weights_without (port --without): the network has no {name}: {hint}")


def find_image_layers(net: nn.Module) -> list[str]:
    """Return the paths of the convolutions that read the image: its class's ``image_layers``, or else the first one."""
    convolutions = [path for path, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]
    stated = getattr(net, "image_layers", None)
    return convolutions[:1] if stated is None else [path for path in convolutions if get_last_name(path) in stated]
