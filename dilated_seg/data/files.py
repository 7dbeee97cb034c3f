"""Image and label files: read as they are meant, or refused in one sentence that names the file."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dilated_seg import UserError
from dilated_seg.data.transforms import UNKNOWN

ORIENTATION = 274  # EXIF's tag, and what it asks for where it exchanges height and width
TURNS = {
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip

MAX_PIXELS = "DILATED_SEG_MAX_PIXELS"

SUFFIXES = (".png", ".jpg", ".jpeg")
LABEL = ".png"  # a JPEG's values are not those that were saved


class Sample(TypedDict):
    """One image: uint8 RGB (3, H, W), its mask of class ids (H, W), and the name it goes by."""

    image: Tensor
    mask: Tensor
    id: str


class Pairs:
    """Images with their labels, in the order of the list.

    Args:
        pairs: Each image's name, its file, and its label's file; None where the label is kept back, as of test images.
        read_label: Reads a label's file as class ids (H, W).

    Raises:
        UserError: Two images have one name, a file is missing, or an image and its label differ in size.
    """

    def __init__(self, pairs: Sequence[tuple[str, Path, Path | None]], read_label: Callable[[Path], Tensor]) -> None:
        self.pairs, self.read_label = list(pairs), read_label
        self.labelled = all(label for *_, label in self.pairs)
        names = [name for name, *_ in self.pairs]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{twice[0]} is the name of two images: rename one of them")

    def check(self) -> "Pairs":
        """Look at every file's header, once and before anything is trained."""
        for _, image, label in self.pairs:
            if (
                label and label.suffix.lower() == LABEL
            ):  # SBD's files have no header to look at: they are compared as they are read
                check_sizes(image, label)
        return self

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        name, path, label = self.pairs[index]
        image = read_image(path)
        mask = self.read_label(label) if label else torch.full(image.shape[1:], 255, dtype=torch.uint8)
        if mask.shape != image.shape[1:]:
            mask = turned(mask, path)
        if mask.shape != image.shape[1:]:
            (h1, w1), (h2, w2) = image.shape[1:], mask.shape
            raise UserError(f"{path} is {h1} x {w1} and its label {label} is {h2} x {w2}: they must have one size")
        return Sample(image=image, mask=mask, id=name)


def counted(dataset: str, split: str, pairs: Pairs, published: Mapping[str, int]) -> Pairs:
    """The pairs, after a line that says so if they are not as many as were published: scores are then not comparable."""
    if len(pairs) != published[split] and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{dataset}: {split} has {len(pairs):,} images here, as published {published[split]:,}", file=sys.stderr)
    return pairs


def partners(images: Path, labels: Path, endings: tuple[str, str] = ("", "")) -> list[tuple[str, Path, Path | None]]:
    """The images of a folder with the labels of another that have the same name, but for an ending of each.

    Raises:
        UserError: A folder is missing, an image has no label or a label no image.
    """
    found = []
    for folder, ending in zip((images, labels), endings, strict=True):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: it should hold the {'images' if folder == images else 'labels'}")
        found.append(by_name(folder, ending, SUFFIXES if folder == images else (LABEL,)))
    pictures, masks = found
    for missing, what, where, other in (
        (pictures.keys() - masks, "label", labels, images),
        (masks.keys() - pictures, "image", images, labels),
    ):
        if missing:
            lonely = (pictures if other == images else masks)[min(missing)]
            raise UserError(f"{lonely} has no {what} in {where}: add it or remove its partner")
    return [(name, path, masks[name]) for name, path in pictures.items()]


def by_name(folder: Path, ending: str = "", suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """A folder's files of these kinds by name, without the ending of each; hidden files are none.

    Raises:
        UserError: Two files have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and path.stem.endswith(ending) and not path.name.startswith("."):
            name = path.stem.removesuffix(ending)
            if name in found:
                raise UserError(f"{found[name]} and {path.name} have one name: remove one of them")
            found[name] = path
    return found


def names(path: Path) -> list[str]:
    """A list file's names, one a line."""
    try:
        found = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is no UTF-8 text: save it as such") from error
    if not found:
        raise UserError(f"the list {path} is empty: it should hold a name a line")
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise UserError(f"the list {path} names {twice[0]} twice: remove one of the lines")
    return found


def read_image(path: Path) -> Tensor:
    """An image file of any mode as uint8 RGB (3, H, W), turned upright if its EXIF says so; 16 bits are scaled to 8.

    Raises:
        UserError: The file is damaged, no image, or larger than anything that is let in.
    """
    return _decode(path, lambda image: eight_bits(ImageOps.exif_transpose(image)).convert("RGB"))


def eight_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion would saturate 16-bit greyscale: nearly all of it white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) * 255 // 65535).clip(0, 255).astype(np.uint8))


def read_mask(path: Path, classes: Tensor) -> Tensor:
    """A label file of one channel, or with a palette, as class ids (H, W): value v becomes ``classes[v]``.

    Args:
        path: The file; colour labels are refused, since their colours are not class ids.
        classes: uint8 (256,): the class id of every value; ``UNKNOWN`` for values that must not occur.

    Raises:
        UserError: The file is damaged, coloured, or holds an unknown value.
    """

    def indices(image: Image.Image) -> Image.Image:
        if image.mode not in ("L", "P"):
            raise UserError(f"{path} has mode {image.mode}, but a label holds one class id a pixel (mode L or P)")
        return image

    values = _decode(path, indices)
    mask = classes[values.long()]
    if (mask == UNKNOWN).any():
        value = int(values[mask == UNKNOWN][0])
        raise UserError(f"{path} holds the value {value}, which is no class of this dataset: correct the label")
    return mask


def read_colours(path: Path, classes: Mapping[tuple[int, int, int], int]) -> Tensor:
    """A label file of colours as class ids (H, W): a pixel of colour c becomes ``classes[c]``.

    Raises:
        UserError: The file is damaged, or holds another colour.
    """
    picture = _decode(path, lambda image: image.convert("RGB")).long()
    keys = (picture[0] << 16) | (picture[1] << 8) | picture[2]
    found, inverse = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    known = {(r << 16) | (g << 8) | b: value for (r, g, b), value in classes.items()}
    values = [known.get(int(key), UNKNOWN) for key in found]
    if UNKNOWN in values:
        key = int(found[values.index(UNKNOWN)])
        y, x = (keys == key).nonzero()[0].tolist()
        raise UserError(
            f"{path} has the colour {key >> 16, key >> 8 & 255, key & 255} at row {y}, column {x}, which is no class's"
        )
    return torch.tensor(values, dtype=torch.uint8)[inverse]


def _decode(path: Path, convert: Callable[[Image.Image], Image.Image]) -> Tensor:
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused here, not only warned of
            if image.width * image.height > most_pixels():
                raise UserError(
                    f"{path} has {image.height} x {image.width} pixels, more than are let in: if it is meant, set the "
                    f"environment variable {MAX_PIXELS}"
                )
            array = np.array(convert(image))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is gone: it was there when the dataset was opened") from None
    except (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)) if array.ndim == 3 else array)


def most_pixels() -> int:
    """How many pixels an image may have: a file of 155 KB can unpack to 160 million."""
    given = os.environ.get(MAX_PIXELS, "200000000")
    if not given.isdigit():
        raise UserError(f"the environment variable {MAX_PIXELS} is '{given}': it should be a number of pixels")
    return int(given)


def check_sizes(image: Path, mask: Path) -> None:
    """Compare an image's size with its label's, reading the files' headers only.

    A photograph may lie on its side, to be turned upright by its EXIF: its label may be as the file lies, and is then turned
    with it, or upright already.
    """
    (width, height), turned = header(image)
    size, _ = header(mask)
    if size != (width, height) and not (turned and size == (height, width)):
        w, h = size
        raise UserError(f"{image} is {height} x {width} and its label {mask} is {h} x {w}: they must have one size")


def header(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height as the file lies, and whether its EXIF turns it on its side."""
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # of a PNG, Pillow would decode all of it to look for EXIF at its end
            exif = opened.getexif() if opened.format == "JPEG" or "exif" in opened.info else {}
            return opened.size, exif.get(ORIENTATION, 1) in TURNS
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None


def turned(mask: Tensor, image: Path) -> Tensor:
    """A mask that lies as its image's file does, turned upright with it."""
    with Image.open(image) as opened:
        method = TURNS.get(opened.getexif().get(ORIENTATION, 1))
    return mask if method is None else torch.from_numpy(np.array(Image.fromarray(mask.numpy()).transpose(method)))
