"""The configuration that a command runs with: options that are computed from the data are replaced by their values."""

import json
from collections.abc import Sequence
from functools import lru_cache

import yaml
from jsonargparse import Namespace

from dilated_seg.cli.parser import Parser, build_parser, construct, expand_arguments, format_config, parse
from dilated_seg.data import SegmentationDataModule
from dilated_seg.data.class_weights import Method, count_class_weights


def resolve_class_weights(parser: Parser, config: Namespace) -> None:
    """Replace a method of class weights in a configuration by its weights.

    Raises:
        UserError: The masks cannot be read.
    """
    if isinstance(config.model.class_weights, str):
        data = json.dumps(yaml.safe_load(parser.dump(config, skip_none=False))["data"])
        config.model.class_weights = list(count_weights(data, config.model.class_weights))


@lru_cache
def count_weights(data: str, method: Method) -> tuple[float, ...]:
    """Return the class weights that a method computes from the masks of a dataset.

    Args:
        data: The dataset as class and arguments, in JSON.
        method: The method.

    Raises:
        UserError: The dataset cannot be read.
    """
    parser = Parser()
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True)
    parser.add_instantiator(construct, object)
    return tuple(count_class_weights(parser.instantiate_classes(parser.parse_object({"data": json.loads(data)})).data, method))


def resolve_experiment(args: Sequence[str]) -> str:
    """Return the configuration that ``fit`` with these arguments would save in its run."""
    args = expand_arguments("fit", args)
    parser = build_parser("fit", args)
    config = parse(parser, args)
    resolve_class_weights(parser, config)
    return format_config(parser, config)
