"""The evaluation protocols and the checkpoint of an ablation file."""

import json
from argparse import ArgumentError
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dilated_seg.ablation.plan import PlannedEvaluation, join_parts
from dilated_seg.errors import UserError

PROTOCOL_KEYS = ("inference", "crf", "experiments")
CHECKPOINTS = ("last", "best")


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol of an ablation file.

    Args:
        name: The suffix of the network's name in tables; empty for the plain protocol (full images, no CRF).
        options: Options of ``validate`` and ``test``: the inference strategy and the CRF.
        parts: Parts of its evaluations' names, after split and checkpoint.
        experiments: The names of its experiments; None for all.
    """

    name: str = ""
    options: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    experiments: tuple[str, ...] | None = None

    def plan(self, network: str, split: str, checkpoint: str) -> PlannedEvaluation:
        """Return the evaluation of a network on a split."""
        row = join_parts(network, self.name)
        name = "-".join([split, checkpoint, *self.parts])
        return PlannedEvaluation(row, split, checkpoint, name, self.name, self.options)


def read_protocols(file: Path, content: Any, experiments: Collection[str]) -> list[Protocol]:  # noqa: ANN401 - any YAML
    """Read the protocols of an ablation file; the plain protocol without the key.

    Raises:
        UserError: A protocol is invalid or names an unknown experiment, or an experiment has no protocol.
    """
    if content is None:
        return [Protocol()]
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{file} has protocols that are not a mapping: write NAME: {{crf: ..., inference: ...}}, '': {{}} is plain"
        )
    protocols = [read_protocol(file, str(name), entry, experiments) for name, entry in content.items()]
    for experiment in experiments:
        if not any(protocol.experiments is None or experiment in protocol.experiments for protocol in protocols):
            raise UserError(f"{file} has no protocol for {experiment}: add '': {{}} to protocols, the plain evaluation")
    return protocols


def read_protocol(file: Path, name: str, entry: Any, experiments: Collection[str]) -> Protocol:  # noqa: ANN401
    """Read one protocol."""
    if not isinstance(entry, dict):
        raise UserError(f"{file}: protocol '{name}' is {entry}: give {', '.join(PROTOCOL_KEYS)}, or {{}}")
    if unknown := sorted(str(key) for key in entry if key not in PROTOCOL_KEYS):
        raise UserError(f"{file}: protocol '{name}' has the unknown key '{unknown[0]}': choose from {', '.join(PROTOCOL_KEYS)}")
    names = entry.get("experiments")
    if names is not None and (not isinstance(names, list) or not names):
        raise UserError(f"{file}: protocol '{name}' is for experiments {names}: give a list of their names")
    if unknown := [str(experiment) for experiment in names or () if experiment not in experiments]:
        raise UserError(
            f"{file}: protocol '{name}' is for the unknown experiment '{unknown[0]}': choose from {', '.join(experiments)}"
        )
    objects = {key: entry[key] for key in ("inference", "crf") if entry.get(key) is not None}
    options = tuple(f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in objects.items())
    try:
        parts = name_evaluation_parts(options) if options else ()
    except UserError as error:
        raise UserError(f"{file}: protocol '{name}': {error}") from None
    return Protocol(name, options, parts, tuple(map(str, names)) if names else None)


def name_evaluation_parts(options: Collection[str]) -> tuple[str, ...]:
    """Return the parts of an evaluation's name for an inference strategy and a CRF: see `training.evaluation`.

    Raises:
        UserError: The strategy or CRF is unknown, or its arguments are invalid.
    """
    from jsonargparse import ArgumentParser

    from dilated_seg.crf import DenseCRF
    from dilated_seg.inference import strategies

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--inference", type=strategies.Inference)
    parser.add_argument("--crf", type=DenseCRF)
    try:
        built = parser.instantiate_classes(parser.parse_args([*options]))
    except ArgumentError as error:
        from dilated_seg.cli.explain import explain  # imports Lightning

        raise UserError(explain(" ".join(str(error).split()), [*options], [])) from error
    except ValueError as error:  # of jsonargparse; its cause is the constructor's exception
        raise UserError(str(error.__cause__ or error)) from error
    if built.crf and built.crf.learnable:
        raise UserError("a CRF that refines an evaluation has no parameters to learn: leave out 'learnable'")
    return tuple(part.name for part in (built.inference, built.crf) if part and part.name)


def read_checkpoint(file: Path, content: Mapping[str, Any]) -> str:
    """Read which checkpoint of each run is evaluated; by default the last.

    Raises:
        UserError: The value is neither "last" nor "best".
    """
    checkpoint = content.get("checkpoint", "last")
    if checkpoint not in CHECKPOINTS:
        raise UserError(f"{file} evaluates the checkpoint {checkpoint}: choose last or best")
    return str(checkpoint)
