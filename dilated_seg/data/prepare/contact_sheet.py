"""A contact sheet: images of a dataset with their masks in the classes' colors, to see whether they are read as meant."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dilated_seg.data.bands import blend
from dilated_seg.data.folder import Folder
from dilated_seg.data.masks import VOID, paint_mask
from dilated_seg.errors import UserError
from dilated_seg.storage import atomic_path

IMAGES, COLUMNS = 12, 4
SIDE, LINE = 256, 16  # pixels of an image's cell, and of a line of text


def write_sheet(root: str, path: Path) -> None:
    """Write a PNG with images that are evenly spread over the splits of a `Folder`, as training reads them, and a legend.

    Raises:
        UserError: There is no classes.yaml, a file cannot be read, or the name is not that of a PNG.
    """
    if path.suffix != ".png" or not path.absolute().parent.is_dir():
        raise UserError(f"--sheet {path}: give the name of a .png in a directory that exists")
    data = Folder(root)
    names = data.list_splits()
    if not names:
        data, names = Folder(root, val_fraction=0.2), ["train"]
    splits = [(name, split) for name in names if (split := data.open_split(name)).count_masks()]
    every = [(name, split, index) for name, split in splits for index in range(len(split))]
    chosen = np.unique(np.linspace(0, len(every) - 1, min(IMAGES, len(every))).round().astype(int)).tolist()
    cells = []
    for name, split, index in (every[k] for k in chosen):
        sample = split[index]
        mask = paint_mask(sample["mask"].numpy(), data.palette)
        cells.append((f"{name}/{sample['id']}", blend(sample["image"], mask)))
    legend = [*zip(data.classes, data.palette, strict=True), ("ignored", VOID)]
    with atomic_path(path) as partial:
        draw_sheet(cells, legend).save(partial, "png")
    print(f"written: {path} ({len(cells)} images)")


def draw_sheet(cells: list[tuple[str, Image.Image]], legend: list[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """Draw named images in rows, and below them the colors of the classes in columns."""
    rows, lines = -(-len(cells) // COLUMNS), -(-len(legend) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + LINE) + lines * LINE), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (name, image) in enumerate(cells):
        left, top = number % COLUMNS * SIDE, number // COLUMNS * (SIDE + LINE)
        scale = (SIDE - 4) / max(image.size)
        size = [max(1, round(side * scale)) for side in image.size]
        sheet.paste(
            image.resize((size[0], size[1]), Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST), (left, top)
        )
        draw.text((left, top + size[1]), name[-40:], "black", font)
    for number, (name, color) in enumerate(legend):
        left, top = number % COLUMNS * SIDE, rows * (SIDE + LINE) + number // COLUMNS * LINE
        draw.rectangle((left + 2, top + 2, left + LINE, top + LINE - 3), color, "black")
        draw.text((left + LINE + 6, top), name[:32], "black", font)
    return sheet
