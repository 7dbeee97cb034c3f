"""Shows the images and masks that a `Folder` would read, and the values of the masks."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from dilated_seg.data.checks import spread_indices
from dilated_seg.data.class_file import NAME, Color, read_classes
from dilated_seg.data.classes import format_share
from dilated_seg.data.decode import convert_to_rgb, decode_image, make_tensor
from dilated_seg.data.folder import list_split
from dilated_seg.data.headers import read_header
from dilated_seg.data.layouts import LAYOUTS, explain_missing_split, has_split
from dilated_seg.data.masks import read_values
from dilated_seg.data.pairs import Pair
from dilated_seg.errors import UserError

SECONDS = 60.0  # for reading the masks of a split
ROWS = 20  # of the table of values


def show_files(root: str) -> None:
    """Print the content of a directory of images and masks, with or without classes.yaml; write nothing.

    Raises:
        UserError: It has no split, files are missing or damaged, or masks hold values that classes.yaml does not have.
    """
    stated = read_classes(root) if (Path(root) / NAME).is_file() else None
    layouts = stated.layouts if stated else LAYOUTS
    splits = [split for split in ("train", "val", "test") if has_split(Path(root), split, layouts)]
    listed = {split: list_split(Path(root), split, layouts)[0] for split in splits}
    if not splits:
        try:
            listed = {"all images": list_split(Path(root), "train", layouts, drawn=True)[0]}
        except UserError:
            raise explain_missing_split(Path(root), "train", layouts) from None
    total = Counter[int | Color]()
    for split, pairs in listed.items():
        print(f"{split}: {describe_files(pairs, stated.channels if stated else 3)}")
        counts, masks = count_values(pairs, colored=bool(stated and stated.colors is not None))
        if counts:
            print(f"  pixels of {masks:,} masks by value:")
        for value, count in counts.most_common(ROWS):
            meaning = f"  {stated.describe(value)}" if stated else ""
            print(f"  {format_value(value):>15} {format_share(count, counts.total()):>12}{meaning}")
        if len(counts) > ROWS:
            print(f"  {len(counts) - ROWS:,} more values")
        total += counts
    if not splits:
        print("there are no splits: --data.val_fraction 0.2 draws 'val' from all images")
    if stated is None:
        print(f"there is no {NAME}: {suggest_classes(sorted(total, key=str))}")
    elif unknown := [value for value in total if stated.describe(value) == "unknown"]:
        shown = ", ".join(format_value(value) for value in unknown[:5])
        raise UserError(
            f"masks hold {shown}, which {stated.path} does not have: add them to its classes, values, colors or ignore"
        )


def describe_files(pairs: Sequence[Pair], in_channels: int) -> str:
    """Return the number of images and masks of a split, by format, and their sizes."""
    images, masks = (
        [path for path in paths if path] for paths in zip(*((image, mask) for _, image, mask in pairs), strict=True)
    )
    sizes = sorted({read_header(path, in_channels)[0][::-1] for path in images})
    (h1, w1), (h2, w2) = sizes[0], sizes[-1]
    size = f"{h1} x {w1}" if len(sizes) == 1 else f"{h1} x {w1} to {h2} x {w2}"
    parts = [f"{len(images):,} images of {size} ({count_formats(images)})"]
    parts += [f"{len(masks):,} masks ({count_formats(masks)}), such as {masks[0]}"] if masks else ["no masks"]
    return ", ".join(parts)


def count_formats(paths: Sequence[Path]) -> str:
    """Return how many files have which suffix."""
    return ", ".join(f"{count:,} {suffix}" for suffix, count in Counter(path.suffix.lower() for path in paths).most_common())


def count_values(pairs: Sequence[Pair], colored: bool) -> tuple[Counter[int | Color], int]:
    """Return the pixels of each value or color in the masks of a split, and the number of masks that were read."""
    counts, masks, end = Counter[int | Color](), 0, time.monotonic() + SECONDS
    paths = [mask for *_, mask in pairs if mask]
    for index in spread_indices(len(paths)) if paths else ():
        counts += read_counts(paths[index], colored)
        masks += 1
        if time.monotonic() > end:
            break
    return counts, masks


def read_counts(path: Path, colored: bool) -> Counter[int | Color]:
    """Return the pixels of each value of a mask, or of each color if masks are colored or have several channels."""

    def read(image: Image.Image) -> Tensor:
        if not colored:
            try:
                return make_tensor(bytearray(read_values(image, str(path), copies=True)), -1)
            except UserError:
                if image.mode not in ("RGB", "RGBA"):
                    raise
        return convert_to_rgb(image, str(path), upright=False)

    pixels = decode_image(path, read).long()
    keys = pixels if pixels.ndim == 1 else (pixels[0] << 16) | (pixels[1] << 8) | pixels[2]
    values, counts = keys.unique(return_counts=True)  # type: ignore[no-untyped-call]
    pairs = zip(values.tolist(), counts.tolist(), strict=True)
    return Counter({key if pixels.ndim == 1 else (key >> 16, key >> 8 & 255, key & 255): count for key, count in pairs})


def format_value(value: int | Color) -> str:
    """Return a value or color as it is written in classes.yaml."""
    return str(list(value)) if isinstance(value, tuple) else str(value)


def suggest_classes(values: Sequence[int | Color]) -> str:
    """Return the beginning of a classes.yaml for these values or colors."""
    names = [f"class{k}" for k in range(len(values))]
    if not 2 <= len(values) <= ROWS:
        return "write one, with the line classes: [background, ...]"
    kind = "colors" if any(isinstance(value, tuple) for value in values) else "values"
    pairs = [(name, format_value(value)) for name, value in zip(names, values, strict=True)]
    mapping = ", ".join(f"{name}: {value}" if kind == "colors" else f"{value}: {name}" for name, value in pairs)
    return f"write one, such as\nclasses: [{', '.join(names)}]\n{kind}: {{{mapping}}}"
