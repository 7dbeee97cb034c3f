"""Shapes: pictures drawn by code, each part of which puts one argument of the papers to the test."""

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

# The first eight classes, in this order; further ones are more dots, wires and stars in other colours.
CLASSES = ("background", "dot", "wire", "star", "sun", "moon", "day hill", "night hill")
PALETTE = (
    (38, 42, 66), (240, 98, 84), (244, 238, 220), (52, 170, 152),
    (255, 200, 60), (190, 206, 240), (226, 126, 50), (106, 90, 205),
)  # fmt: skip
DOT, WIRE, STAR, SUN, MOON, DAY, NIGHT = range(1, 8)
HILL = (126, 142, 86)  # by day and by night: a hill's own colour says nothing
SPLITS = ("train", "val", "test")

# Fractions of the width.  Sun or moon end at SKY, the hill begins after LAND: at 320 pixels there are at least 201 between
# them, more than the 198 that any pixel of a front end's logits can see to one side (receptive field 380, and one cell of 8
# by the bilinear upsampling), while most of the hill lies within the 33 cells of 8 that the context module sees beyond it.
SKY, LAND = 0.15, 0.78

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


class Shapes(SegmentationDataModule):
    """A twilight landscape of any size and number of classes, drawn anew from its index: no disk, no download.

    What each part of a picture tests:

    - **dot**: a disc of 3 to 9 pixels. A cell of stride 32 covers a hundred of them: do skips, or a finer stride, save
      small objects?
    - **wire**: a line of 1 to 3 pixels across the picture. Bilinear upsampling from stride 8 blurs it away; unpooling can
      put it back.
    - **star**: 7 to 12 jagged spikes. The area is easy, the boundary is not.
    - **sun** or **moon**: exactly one, at one end of the picture. Easy, and the evidence for the next.
    - **day hill** or **night hill**: the same large hill at the other end, the same to the pixel under sun and moon. Only the
      sun or the moon tells its class. At a width of 320 or more they are farther apart than the front end of DilatedNet can
      see (380 pixels across), within reach of its context module. A network that sees too little can only guess, and averages
      20 to 33 % IoU on the two.
    - around every object lies a band of **ignored** pixels (255), as around VOC's.

    Pictures differ in light, colour, position, number and overlap; splits are drawn from unrelated random numbers.

    Args:
        size: (height, width) in pixels.
        num_classes: At least 2. Hills need 8: with fewer, the last of the list above are left out.
        images: Number of images in each of train, val and test.
        world: Another world, other pictures. It is not the run's seed, which never changes the data.
        options: See SegmentationDataModule.
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
        self.palette = tuple(class_colour(k) for k in range(num_classes))

    def split(self, name: str) -> "ShapesSplit":
        """Return the images of "train", "val" or "test"."""
        number = SPLITS.index(name)
        return ShapesSplit(self.size, len(self.classes), self.images[number], (self.world, number), name)


class ShapesSplit(Split):
    """The images of one split; image i is a pure function of i."""

    def __init__(self, size: tuple[int, int], num_classes: int, length: int, seed: tuple[int, ...], name: str) -> None:
        self.size, self.num_classes, self.length, self.seed, self.name = size, num_classes, length, seed, name

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        image, mask = draw(self.size, self.num_classes, np.random.default_rng([*self.seed, index]))
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return Sample(image=pixels, mask=torch.from_numpy(mask), id=f"{self.name}{index:06d}")


def class_name(k: int) -> str:
    """The name of class k: CLASSES, then "dot 2", "wire 2", "star 2", "dot 3", ..."""
    return CLASSES[k] if k < 8 else f"{CLASSES[kind(k)]} {(k - 8) // 3 + 2}"


def class_colour(k: int) -> Colour:
    """The colour of class k on plots, and roughly in the picture; far apart for neighbours."""
    if k < 8:
        return PALETTE[k]
    r, g, b = colorsys.hsv_to_rgb(k * 0.618 % 1, 0.6, 0.95)
    return round(r * 255), round(g * 255), round(b * 255)


def kind(k: int) -> int:
    """What class k looks like: DOT, WIRE, STAR, ..."""
    return k if k < 8 else DOT + (k - 8) % 3


def draw(size: tuple[int, int], num_classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One picture: uint8 RGB (H, W, 3) and its mask (H, W)."""
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
                canvas.polygon(star(x, y, unit * rng.uniform(0.12, 0.24), rng), class_colour(k), k)
            elif looks == WIRE:
                canvas.wire(wire(size, rng), rng.uniform(1, 3), class_colour(k), k)
            else:
                canvas.disc(x, y, rng.uniform(1.5, 4.5), class_colour(k), k)
    beacons = [k for k in (SUN, MOON) if k < num_classes]
    if beacons:
        k = beacons[0] if day else beacons[-1]
        radius = min(0.3 * height, SKY / 2 * width)
        x = rng.uniform(0.9, 1) * SKY * width - radius
        x = width - x if mirrored else x
        canvas.beacon(x, rng.uniform(0.3, 0.55) * height, max(radius - 2, 1), k)  # 2: the band
    return canvas.finish()


class Canvas:
    """Draws an object into picture and mask at once, at twice the size, with the ignored band round it."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        height, width = size
        # Twilight: a vertical gradient with soft clouds, bent out of a handful of random numbers.
        shade = rng.uniform(-14, 14, 3)
        top, bottom = np.array([44, 42, 84]) + shade, np.array([150, 108, 122]) + shade
        slope = np.linspace(0, 1, 5)[:, None, None]
        grid = top * (1 - slope) + bottom * slope + rng.normal(0, 9, (5, 8, 1))
        soft = Image.fromarray(grid.clip(0, 255).astype(np.uint8))
        self.picture = soft.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
        self.mask = Image.new("L", (2 * width, 2 * height), 0)
        self.on_picture, self.on_mask = ImageDraw.Draw(self.picture), ImageDraw.Draw(self.mask)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Halve both (the picture by averaging, the mask by taking every other pixel) and add the camera's noise."""
        image = np.asarray(self.picture.reduce(2), dtype=np.int16)
        noise = self.rng.integers(-9, 10, image.shape, dtype=np.int8)
        return np.clip(image + noise, 0, 255).astype(np.uint8), np.array(self.mask)[::2, ::2].copy()

    def tint(self, colour: Colour) -> Colour:
        """The class's colour in today's light."""
        r, g, b = (np.array(colour) * self.rng.uniform(0.82, 1.06) + self.rng.normal(0, 7, 3)).clip(0, 255).astype(int)
        return int(r), int(g), int(b)

    def polygon(self, points: Points, colour: Colour, k: int) -> None:
        """A filled outline with soft shading lines."""
        doubled = [(2 * x, 2 * y) for x, y in points]
        self.on_mask.line([*doubled, doubled[0]], fill=255, width=8, joint="curve")
        self.on_mask.polygon(doubled, fill=k)
        r, g, b = self.tint(colour)
        self.on_picture.polygon(doubled, fill=(r, g, b), outline=(r * 3 // 4, g * 3 // 4, b * 3 // 4), width=2)

    def wire(self, points: Points, thickness: float, colour: Colour, k: int) -> None:
        """A polyline ``thickness`` pixels wide."""
        doubled = [(2 * x, 2 * y) for x, y in points]
        self.on_mask.line(doubled, fill=255, width=round(2 * thickness) + 4)
        self.on_mask.line(doubled, fill=k, width=round(2 * thickness))
        self.on_picture.line(doubled, fill=self.tint(colour), width=round(2 * thickness))

    def disc(self, x: float, y: float, radius: float, colour: Colour, k: int, band: float = 1) -> None:
        """A disc."""
        for on, fill, r in ((self.on_mask, 255, radius + band), (self.on_mask, k, radius), (self.on_picture, None, radius)):
            box = (2 * (x - r), 2 * (y - r), 2 * (x + r), 2 * (y + r))
            on.ellipse(box, fill=self.tint(colour) if fill is None else fill)

    def beacon(self, x: float, y: float, radius: float, k: int) -> None:
        """The sun with its rays, or the moon with its craters."""
        self.disc(x, y, radius, PALETTE[k], k, band=2)
        lighter = tuple(min(255, c + 26) for c in PALETTE[k])
        darker = tuple(c * 7 // 8 for c in PALETTE[k])
        if k == SUN:
            for inner, fill in ((0.8, lighter), (0.5, PALETTE[k])):
                r = 2 * radius * inner
                self.on_picture.ellipse((2 * x - r, 2 * y - r, 2 * x + r, 2 * y + r), fill=fill)
        else:
            for dx, dy, part in ((-0.3, -0.2, 0.28), (0.35, 0.3, 0.22), (0.2, -0.45, 0.15)):
                cx, cy, r = 2 * (x + dx * radius), 2 * (y + dy * radius), 2 * radius * part
                self.on_picture.ellipse((cx - r, cy - r, cx + r, cy + r), fill=darker)


def hill(size: tuple[int, int], mirrored: bool, rng: np.random.Generator) -> Points:
    """A smooth hill that stands on the ground inside the LAND of the picture."""
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
    """A star of 7 to 12 spikes of uneven length."""
    spikes = int(rng.integers(7, 13))
    angles = rng.uniform(0, 2 * math.pi) + np.arange(2 * spikes) * math.pi / spikes
    reach = np.where(np.arange(2 * spikes) % 2, 0.45, rng.uniform(0.75, 1.0, 2 * spikes)) * radius
    return [(float(x + r * math.cos(a)), float(y + r * math.sin(a))) for a, r in zip(angles, reach, strict=True)]


def wire(size: tuple[int, int], rng: np.random.Generator) -> Points:
    """A sagging line between two points at about half the width from each other."""
    height, width = size
    x0, span = rng.uniform(-0.1, 0.7) * width, rng.uniform(0.25, 0.6) * width
    y0, y1, sag = rng.uniform(0, height), rng.uniform(0, height), rng.uniform(0, 0.3) * height
    t = np.linspace(0, 1, 9)
    return [(float(x0 + span * u), float(y0 + (y1 - y0) * u + sag * 4 * u * (1 - u))) for u in t]
