"""Compare lists of class names, and describe classes that do not occur in masks."""

from collections.abc import Sequence


def find_first_difference(first: Sequence[str], second: Sequence[str], in_first: str, in_second: str) -> str | None:
    """Return a clause that names the first class in which two lists of names differ, or None if they are equal.

    ``in_first`` and ``in_second`` name their sources, such as "in runs/x/checkpoints/best.ckpt".
    """
    if len(first) != len(second):
        return f"there are {len(first)} classes {in_first} and {len(second)} {in_second}"
    for k, (name, other) in enumerate(zip(first, second, strict=True)):
        if name != other:
            moved = f", where '{name}' is class {list(second).index(name)}" if name in second else ""
            return f"class {k} is '{name}' {in_first} and '{other}' {in_second}{moved}"
    return None


def describe_absent(
    pixels: Sequence[int], ignored: int, classes: Sequence[str], where: str, ignore_index: int = 255
) -> str | None:
    """Return a sentence that names the classes without a pixel and the values that occur, or None if no class is absent.

    ``pixels`` has the number of pixels of each class; ``where`` names the counted masks, such as "the 12 masks of train".
    """
    absent = [k for k in range(len(classes)) if not pixels[k]]
    if not absent:
        return None
    total = sum(map(int, pixels[: len(classes)])) + ignored
    if len(absent) == len(classes):
        return (
            f"none of {where} has a pixel of any class: all {total:,} pixels are ignored ({ignore_index}); write class ids "
            f"into the masks ({format_classes(range(len(classes)), classes)}), or correct the dataset's ignored values"
        )
    present = [k for k in range(len(classes)) if pixels[k]]
    present.sort(key=lambda k: -int(pixels[k]))
    values = [f"{k} '{classes[k]}' ({format_share(int(pixels[k]), total)})" for k in present[:6]]
    values += [f"{len(present) - 6} more classes"] if len(present) > 6 else []
    values += [f"{ignore_index}, which is ignored ({format_share(ignored, total)})"] if ignored else []
    sentence = f"none of {where} has a pixel of {format_classes(absent, classes)}: they hold {', '.join(values)}"
    if len(absent) == 1 and ignored:
        k = absent[0]
        sentence += (
            f"; if {ignore_index} is your '{classes[k]}', replace {ignore_index} by {k} in the masks, or map it in a "
            f"Folder's classes.yaml, values: {{0: {classes[0]}, {ignore_index}: {classes[k]}}}"
        )
    return sentence


def format_classes(ids: Sequence[int], classes: Sequence[str]) -> str:
    """Return the ids and names of the first four classes, and the number of the others."""
    names = [f"{k} '{classes[k]}'" for k in ids[:4]]
    return ", ".join(names) + (f" and {len(ids) - 4} more classes" if len(ids) > 4 else "")


def format_share(pixels: int, total: int) -> str:
    """Return a fraction as a percentage that is never rounded to 0 or 100."""
    percent = 100 * pixels / total
    if 0.05 <= percent < 99.95 or pixels == total:
        return f"{percent:.1f} %"
    return "under 0.1 %" if percent < 50 else "over 99.9 %"


def describe_labels(pixels: Sequence[int], ignored: int, classes: Sequence[str], split: str, ignore_index: int) -> list[str]:
    """Return sentences on classes that do not occur in the masks of an evaluation, which limit what its metrics mean."""
    present = [k for k, count in enumerate(pixels) if count]
    where = f"the masks of {split}"
    notes = []
    if len(present) == 1:
        notes.append(
            f"only {format_classes(present, classes)} has pixels in {where}: its scores do not distinguish a trained "
            "network from one that predicts this class everywhere"
        )
    absent = describe_absent(pixels, ignored, classes, where, ignore_index)
    return notes + ([absent] if absent else [])
