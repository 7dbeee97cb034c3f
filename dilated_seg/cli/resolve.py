"""The configuration that a command runs with: options that are computed from the data are replaced by their values."""

import json
from collections.abc import Sequence
from functools import lru_cache

import yaml
from jsonargparse import Namespace

from dilated_seg.cli.parser import Parser, build_parser, construct, expand_arguments, format_config, parse
from dilated_seg.data import Folder, SegmentationDataModule
from dilated_seg.data.class_weights import Method, count_class_weights
from dilated_seg.data.normalization import measure_normalization
from dilated_seg.errors import UserError
from dilated_seg.models.build import find_class


def resolve_options(parser: Parser, config: Namespace) -> None:
    """Replace a method of class weights in a configuration by its weights, and set the normalization of images not in RGB.

    Raises:
        UserError: The masks or images cannot be read.
    """
    model = config.model
    measured = None in (model.mean, model.std) and issubclass(
        find_class(config.data.class_path, {}, SegmentationDataModule, "dataset"),
        Folder,  # the others are RGB
    )
    if not isinstance(model.class_weights, str) and not measured:
        return
    data = json.dumps(yaml.safe_load(parser.dump(config, skip_none=False))["data"])
    if isinstance(model.class_weights, str):
        model.class_weights = list(count_weights(data, model.class_weights))
    if measured and (normalization := measure(data)):
        model.mean, model.std = (
            stated or list(values) for stated, values in zip((model.mean, model.std), normalization, strict=True)
        )


@lru_cache
def count_weights(data: str, method: Method) -> tuple[float, ...]:
    """Return the class weights that a method computes from the masks of a dataset.

    Args:
        data: The dataset as class and arguments, in JSON.
        method: The method.

    Raises:
        UserError: The dataset cannot be read.
    """
    return tuple(count_class_weights(build_data(data), method))


@lru_cache
def measure(data: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and standard deviation of a dataset's images, as `count_weights`; None if they are RGB."""
    try:
        built = build_data(data)
    except (UserError, ValueError):  # such as on a machine without the dataset: whoever opens it says why
        return None
    if built.in_channels == 3:
        return None
    mean, std = measure_normalization(built)
    return tuple(mean), tuple(std)


def build_data(data: str) -> SegmentationDataModule:
    """Return a dataset from its class and arguments, in JSON."""
    parser = Parser()
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True)
    parser.add_instantiator(construct, object)
    built: SegmentationDataModule = parser.instantiate_classes(parser.parse_object({"data": json.loads(data)})).data
    return built


def resolve_experiment(args: Sequence[str]) -> str:
    """Return the configuration that ``fit`` with these arguments would save in its run."""
    args = expand_arguments("fit", args)
    parser = build_parser("fit", args)
    config = parse(parser, args)
    resolve_options(parser, config)
    return format_config(parser, config)
