"""Image and label files: read as they are meant, or refused in one sentence that names the file."""

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Stored:
    """A file whose content lies in a shard: it reads as the file did, and goes by the shard's name and its own."""

    shard: str
    name: str
    content: bytes

    def __str__(self) -> str:
        return f"{self.name} (in {self.shard})"

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def open(self, mode: str = "rb") -> io.BytesIO:
        """The content, as of a file."""
        return io.BytesIO(self.content)


Source = Path | Stored
ReadLabel = Callable[[Source], Tensor]


class Pairs:
    """Images with their labels, in the order of the list.

    Args:
        pairs: Each image's name, its file, and its label's file; None where the label is kept back, as of test images.
        read_label: Reads a label's file as class ids (H, W).

    Raises:
        UserError: Two images have one name.
    """

    def __init__(self, pairs: Sequence[tuple[str, Path, Path | None]], read_label: ReadLabel) -> None:
        self.pairs, self.read_label = list(pairs), read_label
        self.labelled = all(label for *_, label in self.pairs)
        counts = Counter(name for name, *_ in self.pairs)
        self.members = {os.path.realpath(image) for _, image, _ in self.pairs}  # what two splits may have in common
        refuse([f"{name} is the name of two images: rename one" for name, n in counts.items() if n > 1])

    def check(self) -> None:
        """Look at every file's header, once and before anything is trained.

        Raises:
            UserError: A file is missing or damaged, or an image and its label differ in size.
        """
        refuse([problem for _, image, label in self.pairs if (problem := size_problem(image, label))])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        return decode(*self.pairs[index], self.read_label)


def decode(name: str, image: Source, label: Source | None, read_label: ReadLabel) -> Sample:
    """An image and its label, or a mask that is ignored everywhere.

    Raises:
        UserError: A file is missing or damaged, a label holds what is no class, or the two differ in size.
    """
    picture = read_image(image)
    mask = read_label(label) if label else torch.full(picture.shape[1:], 255, dtype=torch.uint8)
    if mask.shape != picture.shape[1:]:
        mask = turned(mask, image)
    if mask.shape != picture.shape[1:]:
        (h1, w1), (h2, w2) = picture.shape[1:], mask.shape
        raise UserError(f"{image} is {h1} x {w1} and its label {label} is {h2} x {w2}: they must have one size")
    return Sample(image=picture, mask=mask, id=name)


class DataError(UserError):
    """Several files are not as they should be: the first of them in a sentence, all of them in ``problems``."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        more = f"; {len(problems) - 1} more such problems" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)


def refuse(problems: Sequence[str]) -> None:
    """Raise what is wrong, if anything is."""
    if problems:
        raise DataError(problems)


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
    return paired(pictures, masks, images, labels)


def paired(
    images: Mapping[str, Path], labels: Mapping[str, Path], image_folder: Path, label_folder: Path
) -> list[tuple[str, Path, Path | None]]:
    """Images and labels of the same names.

    Raises:
        UserError: An image has no label or a label no image.
    """
    refuse(
        [
            f"{files[name]} has no {what} in {folder}: add it or remove its partner"
            for files, others, what, folder in (
                (images, labels, "label", label_folder),
                (labels, images, "image", image_folder),
            )
            for name in sorted(files.keys() - others.keys())
        ]
    )
    return [(name, path, labels[name]) for name, path in images.items()]


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


def read_image(path: Source) -> Tensor:
    """An image file of any mode as uint8 RGB (3, H, W), turned upright if its EXIF says so; 16 bits are scaled to 8.

    The tensor's values lie pixel by pixel, as they come out of the file: cutting a crop out of it costs nothing.

    Raises:
        UserError: The file is damaged, no image, or larger than anything that is let in.
    """
    return _decode(path, as_rgb)


def as_rgb(image: Image.Image) -> Tensor:
    """Upright, in RGB; copied only where that changes something. 16 bits are scaled: Pillow itself would saturate them."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) * 255 // 65535).clip(0, 255).astype(np.uint8))
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return as_bytes(bytearray(rgb.tobytes()), rgb.height, rgb.width, 3).permute(2, 0, 1)


def as_bytes(content: bytearray, *shape: int) -> Tensor:
    """Pillow's bytes as a tensor."""
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)


def read_mask(path: Source, classes: bytes) -> Tensor:
    """A label file of one channel, or with a palette, as class ids (H, W): value v becomes ``classes[v]``.

    Args:
        path: The file; colour labels are refused, since their colours are not class ids.
        classes: The class id of each of the 256 values; ``UNKNOWN`` for values that must not occur.

    Raises:
        UserError: The file is damaged, coloured, or holds an unknown value.
    """

    def indices(image: Image.Image) -> Tensor:
        if image.mode not in ("L", "P"):
            raise UserError(f"{path} has mode {image.mode}, but a label holds one class id a pixel (mode L or P)")
        values = bytearray(image.tobytes())
        ids = values.translate(classes)
        if (first := ids.find(UNKNOWN)) >= 0:
            y, x = divmod(first, image.width)
            raise UserError(f"{path} holds the value {values[first]} at row {y}, column {x}, which is no class of this dataset")
        return as_bytes(ids, image.height, image.width)

    return _decode(path, indices)


def values_as(classes: Mapping[int, int]) -> bytes:
    """A table for ``read_mask``: the class id of each value, ``UNKNOWN`` for the values that are not given."""
    return bytes(classes.get(value, UNKNOWN) for value in range(256))


def read_colours(path: Source, classes: Mapping[tuple[int, int, int], int]) -> Tensor:
    """A label file of colours as class ids (H, W): a pixel of colour c becomes ``classes[c]``.

    Raises:
        UserError: The file is damaged, or holds another colour.
    """
    picture = _decode(path, as_rgb).long()
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


def _decode(path: Source, use: Callable[[Image.Image], Tensor]) -> Tensor:
    try:
        with warnings.catch_warnings(), path.open("rb") as file, Image.open(file) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused here, not only warned of
            if image.width * image.height > most_pixels():
                raise UserError(
                    f"{path} has {image.height} x {image.width} pixels, more than are let in: if it is meant, set the "
                    f"environment variable {MAX_PIXELS}"
                )
            return use(image)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is gone: it was there when the dataset was opened") from None
    except (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): replace the file") from None


def most_pixels() -> int:
    """How many pixels an image may have: a file of 155 KB can unpack to 160 million."""
    given = os.environ.get(MAX_PIXELS, "200000000")
    if not given.isdigit():
        raise UserError(f"the environment variable {MAX_PIXELS} is '{given}': it should be a number of pixels")
    return int(given)


def size_problem(image: Path, label: Path | None) -> str | None:
    """What the headers of an image and its label say against them, if anything.

    A photograph may lie on its side, to be turned upright by its EXIF: its label may be as the file lies, and is then turned
    with it, or upright already.
    """
    if label is None or label.suffix.lower() != LABEL:
        return None  # SBD's files have no header to look at: they are compared as they are read
    try:
        (width, height), on_its_side = header(image)
        size, _ = header(label)
    except UserError as error:
        return str(error)
    if size == (width, height) or (on_its_side and size == (height, width)):
        return None
    w, h = size
    return f"{image} is {height} x {width} and its label {label} is {h} x {w}: they must have one size"


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


def turned(mask: Tensor, image: Source) -> Tensor:
    """A mask that lies as its image's file does, turned upright with it."""
    with image.open("rb") as file, Image.open(file) as opened:
        method = TURNS.get(opened.getexif().get(ORIENTATION, 1))
    return mask if method is None else torch.from_numpy(np.array(Image.fromarray(mask.numpy()).transpose(method)))
