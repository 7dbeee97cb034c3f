"""The report's images: some of the split, those that the networks see most differently, and those that all find hardest.

Runs keep a few images of their evaluation. Which ones tell most is known only when networks are compared, so what is missing is
predicted once more and kept with the others; the numbers stay those of the evaluation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dilated_seg.analysis import plots
from dilated_seg.analysis.resampling import count_pixels, mean_iou
from dilated_seg.errors import UserError
from dilated_seg.report.blocks import ImageGrid, Plot, Section
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.results import Result
from dilated_seg.runs.gallery import gallery_file, write_gallery_images
from dilated_seg.runs.samples import open_labelled_split

IMAGES_OF_EACH_KIND = 3
MAX_SHEET_ROWS = 4  # of the one drawing that Markdown has in the place of all images
MAX_WIDTH = 640  # pixels


def build_section(comparison: Comparison) -> Section | None:
    """Build the section of images, their truth and each network's predictions (its first seed's); predict what is missing."""
    first = [group[0] for group in comparison.groups.values()]
    names = comparison.results[0].evaluation.images[0]
    scores = np.array([mean_iou(count_pixels(result.evaluation.images[1])) for result in first])  # of each network and image
    kinds = select_telling(scores)
    telling = {k for chosen in kinds.values() for k in chosen}
    even = [k for k in select_evenly(len(names)) if k not in telling][:IMAGES_OF_EACH_KIND]
    kinds = {"evenly spread over the split": even, **kinds}
    problem = predict_missing(first, sorted({k for chosen in kinds.values() for k in chosen}))
    rows = [
        (f"{names[k]}: {kind}", read_row(first, names[k], scores[:, k]))
        for kind, chosen in kinds.items()
        for k in chosen
        if all(image_file(result, names[k], "prediction").is_file() for result in first)
    ]
    if not rows:
        return Section("Images", [problem]) if problem else None
    sheet_rows = [row for k, row in enumerate(rows) if k % IMAGES_OF_EACH_KIND < 2][:MAX_SHEET_ROWS]
    alt = "Images, their truth, and what each network predicts"
    sheet = Plot("predictions", alt, plots.draw_contact_sheet(sheet_rows))
    how = (
        "What has the legend's last colour in a truth is not scored. Below a prediction stands its mean "
        "IoU on this image alone, in percent. Networks differ most where the gap between the best and the worst is widest; "
        "hardest, of the other images, are those with the lowest mean over networks."
    )
    grid = ImageGrid(rows, sheet, read_legend(comparison, first[0], names))
    return Section("Images", [*([problem] if problem else []), grid, how])


def select_evenly(images: int) -> list[int]:
    """Select images evenly spread over the split: those that runs keep."""
    return sorted({int(k) for k in np.linspace(0, images - 1, 2 * IMAGES_OF_EACH_KIND)})


def select_telling(scores: np.ndarray) -> dict[str, list[int]]:
    """Select the images (columns; rows are networks) that networks differ most on, and of the rest those all find hardest."""
    scores = np.nan_to_num(scores, nan=1.0)
    gaps = scores.min(0) - scores.max(0)
    apart = np.argsort(gaps, kind="stable")[:IMAGES_OF_EACH_KIND].tolist() if len(scores) > 1 else []
    hard = [k for k in np.argsort(scores.mean(0), kind="stable").tolist() if k not in apart][:IMAGES_OF_EACH_KIND]
    return {"networks differ most": apart, "hardest": hard}


def image_file(result: Result, name: str, kind: str) -> Path:
    """Return the file of an image of a result's gallery."""
    return gallery_file(result.run.gallery_dir(result.evaluation.name), name, kind)


def predict_missing(results: Sequence[Result], indices: Sequence[int]) -> str:
    """Predict these images of the split for every run that has not kept them; return what prevented it, or nothing."""
    try:
        for result in results:
            names = result.evaluation.images[0]
            if missing := [k for k in indices if not image_file(result, names[k], "prediction").is_file()]:
                predict_images(result, missing)
    except (UserError, OSError) as error:
        return f"Some images are not shown, because they cannot be predicted here: {error}."
    return ""


def predict_images(result: Result, indices: Sequence[int]) -> None:
    """Predict images of the split and write them into the run.

    Raises:
        UserError: The run's dataset or checkpoint is not there, or images were not evaluated as a whole.
    """
    protocol = result.evaluation.protocol
    if not protocol.is_whole_image:
        raise UserError(f"{result.run} was evaluated by {protocol.describe()['inference']}")
    model = result.run.model(protocol.checkpoint)
    if model.facts["step"] != protocol.step:
        raise UserError(f"{protocol.checkpoint}.ckpt of {result.run} is of another step than its evaluation")
    split = open_labelled_split(result.run.dataset(), protocol.split)
    directory = result.run.gallery_dir(result.evaluation.name)
    for k in indices:
        sample, name = split[k], result.evaluation.images[0][k]
        if sample["id"] != name:
            raise UserError(f"the dataset of {result.run} has changed since its evaluation: image {k} is no longer {name}")
        image, mask = (torch.as_tensor(sample[key]).as_subclass(torch.Tensor) for key in ("image", "mask"))
        with torch.inference_mode():
            prediction = model(image[None])[0].argmax(0)
        rgb = image.permute(1, 2, 0).contiguous().numpy()
        write_gallery_images(directory, name, rgb, mask.numpy(), prediction.numpy(), model.palette)


def read_row(results: Sequence[Result], name: str, scores: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Read an image, its truth, and the prediction of each run, each with a line below it."""
    files = [("image", image_file(results[0], name, "image")), ("truth", image_file(results[0], name, "truth"))]
    files += [
        (f"{result.name}, {'-' if np.isnan(score) else f'{100 * score:.0f}'}", image_file(result, name, "prediction"))
        for result, score in zip(results, scores, strict=True)
    ]
    return [(line, read_rgb(file)) for line, file in files]


def read_rgb(file: Path) -> np.ndarray:
    """Read a PNG, its palette applied, as RGB (H, W, 3), at most ``MAX_WIDTH`` pixels wide."""
    with Image.open(file) as image:
        factor = -(-image.width // MAX_WIDTH)
        if factor > 1 and image.mode == "P":
            size = (image.width // factor, image.height // factor)
            return np.array(image.resize(size, Image.Resampling.NEAREST).convert("RGB"))
        return np.array(image.convert("RGB").reduce(factor) if factor > 1 else image.convert("RGB"))


def read_legend(comparison: Comparison, result: Result, names: Sequence[str]) -> list[tuple[str, tuple[int, int, int]]]:
    """Read the color of every class from the palette of a ground truth."""
    file = next(path for name in names if (path := image_file(result, name, "truth")).is_file())
    with Image.open(file) as image:
        palette = image.getpalette() or []
    colors = [tuple(palette[3 * k : 3 * k + 3]) for k in range(len(comparison.classes))]
    named = [*zip(comparison.classes, colors, strict=True), ("ignored, not scored", tuple(palette[765:768]))]
    return [(name, (c[0], c[1], c[2])) for name, c in named if len(c) == 3]
