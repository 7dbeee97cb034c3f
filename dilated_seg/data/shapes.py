"""Shapes: synthetic images whose classes test the claims of the papers."""

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.split import Sample, Split
from dilated_seg.errors import UserError

# The first eight classes, in this order; further ones are more dots, wires and stars in other colors.
CLASSES = ("background", "dot", "wire", "star", "sun", "moon", "day hill", "night hill")
PALETTE = (
    (38, 42, 66), (240, 98, 84), (244, 238, 220), (52, 170, 152),
    (255, 200, 60), (190, 206, 240), (226, 126, 50), (106, 90, 205),
)  # fmt: skip
DOT, WIRE, STAR, SUN, MOON, DAY, NIGHT = range(1, 8)
HILL = (126, 142, 86)  # by day and by night: the color of a hill does not tell its class
SPLITS = ("train", "val", "test")

# Fractions of the width.  Sun or moon end at SKY, the hill begins after LAND: at 320 pixels there are at least 201 between
# them, more than the 198 to one side of any logit of the front end (receptive field 380, and one cell of 8
# by the bilinear upsampling), while most of the hill is within the 33 cells of 8 that the context module adds.
SKY, LAND = 0.15, 0.78

KEPT = 64 * 2**20  # bytes: images and masks of a split that need no more are drawn once

Color = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


class Shapes(SegmentationDataModule):
    """Landscapes of any size and number of classes. Each image is generated from its index, without disk or download.

    What each class tests:

    - **dot**: a disc of 3 to 9 pixels. A cell of stride 32 covers a hundred of them: do skips, or a finer stride, save
      small objects?
    - **wire**: a line 1 to 3 pixels wide. Bilinear upsampling from stride 8 loses it; unpooling can restore it.
    - **star**: 7 to 12 jagged spikes. The area is easy, the boundary is not.
    - **sun** or **moon**: exactly one, at one end of the image. Easy, and the evidence for the hills.
    - **day hill** or **night hill**: the same large hill at the other end, the same to the pixel under sun and moon. Only the
      sun or the moon determines its class. At a width of 320 or more their distance exceeds the receptive field of DilatedNet's
      front end (380 pixels across) and is within that of its context module. A network with a smaller field can only guess,
      and averages 20 to 33 % IoU on the two.
    - a band of **ignored** pixels (255) surrounds every object, as in VOC.

    Images differ in light, color, position, number and overlap; the splits use independent random numbers.

    Args:
        size: (height, width) in pixels.
        num_classes: Number of classes, at least 2. Hills need 8: with fewer, the last classes of the list above are left out.
        images: Number of images in each of train, val and test.
        world: Seed of the generated images; independent of the seed of the training.
        options: Arguments of SegmentationDataModule.
    """

    def __init__(
        self,
        size: tuple[int, int] = (64, 320),
        num_classes: int = 8,
        images: tuple[int, int, int] = (2000, 64, 64),
        world: int = 0,
        **options: Any,  # noqa: ANN401 - jsonargparse reads the base's types
    ) -> None:
        super().__init__(**options)
        if num_classes < 2 or num_classes > 254:
            raise UserError(f"Shapes draws 2 to 254 classes, not {num_classes}: correct data.num_classes")
        self.size, self.images, self.world = size, images, world
        self.classes = tuple(class_name(k) for k in range(num_classes))
        self.palette = tuple(class_color(k) for k in range(num_classes))

    def split(self, name: str) -> "ShapesSplit":
        """Return the images of "train", "val" or "test"."""
        number = SPLITS.index(name)
        return ShapesSplit(self.size, len(self.classes), self.images[number], (self.world, number), name)


class ShapesSplit(Split):
    """The images of one split; image i is a pure function of i. A small split keeps its images in memory."""

    def __init__(self, size: tuple[int, int], num_classes: int, length: int, seed: tuple[int, ...], name: str) -> None:
        self.size, self.num_classes, self.length, self.seed, self.name = size, num_classes, length, seed, name
        self._drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._keeps = 4 * length * math.prod(size) <= KEPT

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        image, mask = self._drawn.get(index) or draw(self.size, self.num_classes, np.random.default_rng([*self.seed, index]))
        if self._keeps:
            self._drawn[index] = image, mask
        pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
        return Sample(image=pixels, mask=torch.from_numpy(mask.copy()), id=f"{self.name}{index:06d}")


def class_name(k: int) -> str:
    """Return the name of class k: CLASSES, then "dot 2", "wire 2", "star 2", "dot 3", ..."""
    return CLASSES[k] if k < 8 else f"{CLASSES[kind(k)]} {(k - 8) // 3 + 2}"


def class_color(k: int) -> Color:
    """Return the color of class k in plots and, approximately, in the image; neighbors differ clearly."""
    if k < 8:
        return PALETTE[k]
    r, g, b = colorsys.hsv_to_rgb(k * 0.618 % 1, 0.6, 0.95)
    return round(r * 255), round(g * 255), round(b * 255)


def kind(k: int) -> int:
    """Return the kind of class k: DOT, WIRE, STAR, ..."""
    return k if k < 8 else DOT + (k - 8) % 3


def draw(size: tuple[int, int], num_classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image, uint8 RGB (H, W, 3), and its mask (H, W)."""
    height, width = size
    canvas = Canvas(size, rng)
    unit = min(height, width)
    mirrored = rng.random() < 0.5  # sun and moon left or right
    day = rng.random() < 0.5

    if num_classes > NIGHT:
        canvas.polygon(hill(size, mirrored, rng), HILL, DAY if day else NIGHT)
    extra = [k for k in range(1, num_classes) if kind(k) in (DOT, WIRE, STAR)]
    for looks, least, most in ((STAR, 1, 3), (WIRE, 2, 4), (DOT, 5, 12)):
        choices = [k for k in extra if kind(k) == looks]
        for _ in range(rng.integers(least, most + 1) if choices else 0):
            k = int(rng.choice(choices))
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            if looks == STAR:
                canvas.polygon(star(x, y, unit * rng.uniform(0.12, 0.24), rng), class_color(k), k)
            elif looks == WIRE:
                canvas.wire(wire(size, rng), rng.uniform(1, 3), class_color(k), k)
            else:
                canvas.disc(x, y, rng.uniform(1.5, 4.5), class_color(k), k)
    beacons = [k for k in (SUN, MOON) if k < num_classes]
    if beacons:
        k = beacons[0] if day else beacons[-1]
        radius = min(0.3 * height, SKY / 2 * width)
        x = rng.uniform(0.9, 1) * SKY * width - radius
        x = width - x if mirrored else x
        canvas.beacon(x, rng.uniform(0.3, 0.55) * height, max(radius - 2, 1), k)  # 2: the band
    return canvas.finish()


class Canvas:
    """Draws objects into image and mask at twice the size, with the ignored band around them."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        height, width = size
        # Twilight: a vertical gradient with soft clouds, bent out of a handful of random numbers.
        shade = rng.uniform(-14, 14, 3)
        top, bottom = np.array([44, 42, 84]) + shade, np.array([150, 108, 122]) + shade
        slope = np.linspace(0, 1, 5)[:, None, None]
        grid = top * (1 - slope) + bottom * slope + rng.normal(0, 9, (5, 8, 1))
        soft = Image.fromarray(grid.clip(0, 255).astype(np.uint8))
        self.image = soft.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
        self.mask = Image.new("L", (2 * width, 2 * height), 0)
        self.on_image, self.on_mask = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Halve the image (by averaging) and the mask (by taking every second pixel), and add sensor noise."""
        image = np.asarray(self.image.reduce(2), dtype=np.int16)
        noise = self.rng.integers(-9, 10, image.shape, dtype=np.int8)
        return np.clip(image + noise, 0, 255).astype(np.uint8), np.array(self.mask)[::2, ::2].copy()

    def tint(self, color: Color) -> Color:
        """Return the color of a class under this image's illumination."""
        r, g, b = (np.array(color) * self.rng.uniform(0.82, 1.06) + self.rng.normal(0, 7, 3)).clip(0, 255).astype(int)
        return int(r), int(g), int(b)

    def polygon(self, points: Points, color: Color, k: int) -> None:
        """Draw a filled outline with soft shading lines."""
        doubled = [(2 * x, 2 * y) for x, y in points]
        self.on_mask.line([*doubled, doubled[0]], fill=255, width=8, joint="curve")
        self.on_mask.polygon(doubled, fill=k)
        r, g, b = self.tint(color)
        self.on_image.polygon(doubled, fill=(r, g, b), outline=(r * 3 // 4, g * 3 // 4, b * 3 // 4), width=2)

    def wire(self, points: Points, thickness: float, color: Color, k: int) -> None:
        """Draw a polyline ``thickness`` pixels wide."""
        doubled = [(2 * x, 2 * y) for x, y in points]
        self.on_mask.line(doubled, fill=255, width=round(2 * thickness) + 4)
        self.on_mask.line(doubled, fill=k, width=round(2 * thickness))
        self.on_image.line(doubled, fill=self.tint(color), width=round(2 * thickness))

    def disc(self, x: float, y: float, radius: float, color: Color, k: int, band: float = 1) -> None:
        """Draw a disc."""
        for on, fill, r in ((self.on_mask, 255, radius + band), (self.on_mask, k, radius), (self.on_image, None, radius)):
            box = (2 * (x - r), 2 * (y - r), 2 * (x + r), 2 * (y + r))
            on.ellipse(box, fill=self.tint(color) if fill is None else fill)

    def beacon(self, x: float, y: float, radius: float, k: int) -> None:
        """Draw the sun with its rays, or the moon with its craters."""
        self.disc(x, y, radius, PALETTE[k], k, band=2)
        lighter = tuple(min(255, c + 26) for c in PALETTE[k])
        darker = tuple(c * 7 // 8 for c in PALETTE[k])
        if k == SUN:
            for inner, fill in ((0.8, lighter), (0.5, PALETTE[k])):
                r = 2 * radius * inner
                self.on_image.ellipse((2 * x - r, 2 * y - r, 2 * x + r, 2 * y + r), fill=fill)
        else:
            for dx, dy, part in ((-0.3, -0.2, 0.28), (0.35, 0.3, 0.22), (0.2, -0.45, 0.15)):
                cx, cy, r = 2 * (x + dx * radius), 2 * (y + dy * radius), 2 * radius * part
                self.on_image.ellipse((cx - r, cy - r, cx + r, cy + r), fill=darker)


def hill(size: tuple[int, int], mirrored: bool, rng: np.random.Generator) -> Points:
    """Return the outline of a smooth hill on the ground within the LAND of the image."""
    height, width = size
    left = rng.uniform(LAND, LAND + 0.05) * width + 2  # 2: the outline
    right = rng.uniform(0.98, 1.12) * width
    peak, bend = rng.uniform(0.45, 0.85) * height, rng.uniform(0.7, 1.5)
    steps = np.linspace(0, 1, 24)
    x = left + (right - left) * steps
    y = height * 1.02 - peak * np.sin(math.pi * steps**bend)
    if mirrored:
        x = width - x
    return [(float(px), float(py)) for px, py in zip(x, y, strict=True)]


def star(x: float, y: float, radius: float, rng: np.random.Generator) -> Points:
    """Return the outline of a star with 7 to 12 spikes of uneven length."""
    spikes = int(rng.integers(7, 13))
    angles = rng.uniform(0, 2 * math.pi) + np.arange(2 * spikes) * math.pi / spikes
    reach = np.where(np.arange(2 * spikes) % 2, 0.45, rng.uniform(0.75, 1.0, 2 * spikes)) * radius
    return [(float(x + r * math.cos(a)), float(y + r * math.sin(a))) for a, r in zip(angles, reach, strict=True)]


def wire(size: tuple[int, int], rng: np.random.Generator) -> Points:
    """Return a sagging line between two points about half the image width apart."""
    height, width = size
    x0, span = rng.uniform(-0.1, 0.7) * width, rng.uniform(0.25, 0.6) * width
    y0, y1, sag = rng.uniform(0, height), rng.uniform(0, height), rng.uniform(0, 0.3) * height
    t = np.linspace(0, 1, 9)
    return [(float(x0 + span * u), float(y0 + (y1 - y0) * u + sag * 4 * u * (1 - u))) for u in t]
