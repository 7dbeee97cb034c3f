"""Claims: statements that one network is better than another on certain pixels, which a comparison tests."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dilated_seg.errors import UserError
from dilated_seg.metrics.stratified import MAX_BOUNDARY_DISTANCE, SIZES

CLAIM_KEYS = ("says", "better", "worse", "classes", "objects", "boundary")


@dataclass(frozen=True)
class Claim:
    """A statement that one network is better than another.

    Args:
        says: The statement, in words.
        better: The name of the network that is claimed to be better.
        worse: The name of the other network.
        classes: The classes of the mean IoU; all if None.
        objects: Count only objects with fewer pixels than this.
        boundary: Count only pixels within this distance of a ground-truth boundary, in pixels.
    """

    says: str
    better: str
    worse: str
    classes: tuple[str, ...] | None = None
    objects: int | None = None
    boundary: int | None = None

    @property
    def measure(self) -> str:
        """Description of the pixels that are compared."""
        parts = [f" of {', '.join(self.classes)}" if self.classes else ""]
        parts += [f"{',' if self.classes else ' of'} objects under {self.objects} pixels" if self.objects else ""]
        parts += [f"{',' if self.classes else ''} within {self.boundary} pixels of a boundary" if self.boundary else ""]
        return f"{'IoU' if self.classes and len(self.classes) == 1 else 'mean IoU'}{''.join(parts)}"


def read_claims(file: Path, content: Any, names: Collection[str]) -> tuple[Claim, ...]:  # noqa: ANN401 - anything YAML can hold
    """Read the claims of an ablation file, about networks of these names.

    Raises:
        UserError: A claim lacks a key, or names an unknown network, class or value.
    """
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise UserError(
            f"{file} has claims that are not a list: write '- says: ...' with better, worse, and what they are compared on"
        )
    return tuple(read_claim(file, entry, names) for entry in content)


def read_claim(file: Path, entry: Mapping[str, Any], names: Collection[str]) -> Claim:
    """Read one claim."""
    if unknown := sorted(str(key) for key in entry if key not in CLAIM_KEYS):
        raise UserError(f"{file} has a claim with the unknown key '{unknown[0]}': a claim has {', '.join(CLAIM_KEYS)}")
    if missing := [key for key in CLAIM_KEYS[:3] if not isinstance(entry.get(key), str)]:
        raise UserError(f"{file} has a claim without '{missing[0]}': give it in words")
    for role in ("better", "worse"):
        if entry[role] not in names:
            raise UserError(f"{file} has a claim about the unknown network '{entry[role]}': choose from {', '.join(names)}")
    classes = entry.get("classes")
    if classes is not None and (
        not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes)
    ):
        raise UserError(f"{file} has a claim about classes {classes}: give a list of their names")
    for key, values in (("objects", SIZES), ("boundary", range(1, MAX_BOUNDARY_DISTANCE + 1))):
        if entry.get(key) is not None and entry[key] not in values:
            raise UserError(
                f"{file} has a claim with {key}: {entry[key]}, which was not counted apart: "
                f"choose from {format_choices(values)}"
            )
    if entry.get("objects") is not None and entry.get("boundary") is not None:
        raise UserError(
            f"{file} has a claim with objects and boundary: pixels were counted by one or the other, make it two claims"
        )
    roles = {key: str(entry[key]) for key in CLAIM_KEYS[:3]}
    return Claim(
        **roles, classes=tuple(classes) if classes else None, objects=entry.get("objects"), boundary=entry.get("boundary")
    )


def require_known_classes(claims: Sequence[Claim], classes: Sequence[str]) -> None:
    """Require that the dataset has the classes that claims name.

    Raises:
        UserError: The dataset lacks a class.
    """
    for claim in claims:
        if unknown := [name for name in claim.classes or () if name not in classes]:
            known = ", ".join(classes)
            raise UserError(f"the claim '{claim.says}' names the unknown class '{unknown[0]}': choose from {known}")


def format_choices(values: Sequence[int]) -> str:
    """Format values to choose from; a long range by its ends."""
    is_range = list(values) == list(range(values[0], values[-1] + 1)) and len(values) > 5
    return f"{values[0]} to {values[-1]}" if is_range else ", ".join(map(str, values))
