"""The images that an evaluation keeps in its run for reports: PNGs of image, mask and prediction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dilated_seg.data.masks import paint_mask
from dilated_seg.storage import atomic_path


def gallery_file(directory: Path, name: str, kind: str) -> Path:
    """Return the file of an image in a gallery; ``kind`` is "image", "truth" or "prediction"."""
    return directory / f"{name}.{kind}.png"


def write_gallery_images(
    directory: Path,
    name: str,
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    palette: Sequence[tuple[int, int, int]],
) -> None:
    """Write an image (H, W, 3), its mask and, last, its prediction (H, W), each atomically."""
    pngs = {
        "image": Image.fromarray(image),
        "truth": paint_mask(truth, palette),
        "prediction": paint_mask(prediction, palette),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for kind, png in pngs.items():
        with atomic_path(gallery_file(directory, name, kind)) as partial:
            png.save(partial, "PNG")
