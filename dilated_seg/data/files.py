"""Image and label files: read as they are meant, or refused in one sentence that names the file."""

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

ORIENTATION = 274  # EXIF's tag

SUFFIXES = (".png", ".jpg", ".jpeg")


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
            if label and label.suffix in SUFFIXES:  # SBD's files have no header to look at: they are compared as they are read
                check_sizes(image, label)
        return self

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        name, path, label = self.pairs[index]
        image = read_image(path)
        mask = self.read_label(label) if label else torch.full(image.shape[1:], 255, dtype=torch.uint8)
        if mask.shape != image.shape[1:]:
            (h1, w1), (h2, w2) = image.shape[1:], mask.shape
            raise UserError(f"{path} is {h1} x {w1} and its label {label} is {h2} x {w2}: they must have one size")
        return Sample(image=image, mask=mask, id=name)


def partners(images: Path, labels: Path, endings: tuple[str, str] = ("", "")) -> list[tuple[str, Path, Path | None]]:
    """The images of a folder with the labels of another that have the same name, but for an ending of each.

    Raises:
        UserError: A folder is missing, an image has no label or a label no image.
    """
    found = []
    for folder, ending in zip((images, labels), endings, strict=True):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: it should hold the {'images' if folder == images else 'labels'}")
        files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES and p.stem.endswith(ending)]
        found.append({p.stem.removesuffix(ending): p for p in files if not p.name.startswith(".")})
    pictures, masks = found
    for missing, what, where, other in (
        (pictures.keys() - masks, "label", labels, images),
        (masks.keys() - pictures, "image", images, labels),
    ):
        if missing:
            raise UserError(f"{other / min(missing)} has no {what} in {where}: add it or remove its partner")
    return [(name, path, masks[name]) for name, path in pictures.items()]


def names(path: Path) -> list[str]:
    """A list file's names, one a line."""
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror}") from error


def read_image(path: Path) -> Tensor:
    """An image file as uint8 RGB (3, H, W), turned upright if its EXIF says so.

    Raises:
        UserError: The file is damaged or no image.
    """
    return _decode(path, lambda image: ImageOps.exif_transpose(image).convert("RGB"))


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
        with Image.open(path) as image:
            array = np.array(convert(image))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is gone: it was there when the dataset was opened") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)) if array.ndim == 3 else array)


def check_sizes(image: Path, mask: Path) -> None:
    """Compare an image's size with its label's, reading the files' headers only."""
    sizes = []
    for path in (image, mask):
        try:
            with Image.open(path) as opened:
                turned = opened.getexif().get(ORIENTATION, 1) in range(5, 9)  # read_image turns it upright
                sizes.append(opened.size[::-1] if turned else opened.size)
        except OSError as error:
            raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None
    if sizes[0] != sizes[1]:
        (w1, h1), (w2, h2) = sizes
        raise UserError(f"{image} is {h1} x {w1} and its label {mask} is {h2} x {w2}: they must have one size")
