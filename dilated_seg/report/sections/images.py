"""The report's images: evenly spaced ones, those on which the networks differ most, and those that are hardest for all.

Runs keep a few images of their evaluation. Which ones differ most is known only when networks are compared, so missing
predictions are computed once and kept with the others; the metrics stay those of the evaluation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dilated_seg.analysis import plots
from dilated_seg.analysis.resampling import count_pixels, mean_iou
from dilated_seg.errors import UserError
from dilated_seg.report.blocks import Block, Fold, ImageGrid, PageOnly, Plot
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.results import Result
from dilated_seg.runs.gallery import gallery_file, write_gallery_images
from dilated_seg.runs.samples import open_labelled_split

IMAGES_OF_EACH_KIND = 3  # of which the page shows one at once; of more than MANY_NETWORKS it shows one image in all
MANY_NETWORKS = 8
MAX_SHEET_ROWS = 4  # of the only figure in Markdown, which replaces the images of the page
MAX_WIDTH = 640  # pixels
IMAGES_EXPLAINED = (
    "The last color of the legend marks ignored pixels. The number below a prediction is its mean IoU on this image, in "
    "percent. Networks differ most on the images with the largest gap between the highest and the lowest of these. Of the "
    "other images, the hardest have the lowest mean over networks."
)
RESULTS_ONLY = "Images are not shown: these are saved results, without images and weights."

Row = tuple[str, list[tuple[str, np.ndarray]]]  # a heading, and images with their captions


def build_blocks(comparison: Comparison) -> list[Block]:
    """Build the blocks of images, their ground truth and the predictions of each network's first seed."""
    first = [group[0] for group in comparison.groups.values()]
    if all(map(has_only_results, first)):
        return [RESULTS_ONLY]
    names = comparison.results[0].evaluation.images[0]
    scores = np.array([mean_iou(count_pixels(result.evaluation.images[1])) for result in first])  # of each network and image
    kinds = select_telling(scores)
    telling = {k for chosen in kinds.values() for k in chosen}
    even = [k for k in select_evenly(len(names)) if k not in telling][:IMAGES_OF_EACH_KIND]
    kinds = {"evenly spread over the split": even, **kinds}
    problem = predict_missing(first, sorted({k for chosen in kinds.values() for k in chosen}))
    shown: list[Row] = []
    folded: list[Row] = []
    for kind, chosen in kinds.items():
        rows = [(f"{names[k]}: {kind}", row) for k in chosen if (row := read_row(first, names[k], scores[:, k]))]
        visible = 0 if shown and len(first) > MANY_NETWORKS else 1
        shown, folded = shown + rows[:visible], folded + rows[visible:]
    problems: list[Block] = [problem] if problem else []
    if not shown:
        return problems
    sheet_rows = [*shown, *folded][:MAX_SHEET_ROWS]
    alt = "Images, their ground truth, and what each network predicts"
    sheet = Plot("predictions", alt, plots.draw_contact_sheet(sheet_rows))
    more = [Fold(f"{len(folded)} more image{'s' if len(folded) > 1 else ''}", [ImageGrid(folded)])] if folded else []
    legend = read_legend(comparison, first, names)
    return [*problems, PageOnly([ImageGrid(shown, legend), *more], sheet), Fold("How images are chosen", [IMAGES_EXPLAINED])]


def has_only_results(result: Result) -> bool:
    """Return whether a run has neither images of its evaluation nor weights, as `report --save` leaves it."""
    run = result.run
    return not run.gallery_dir(result.evaluation.name).is_dir() and not run.checkpoints()


def select_evenly(images: int) -> list[int]:
    """Select images evenly spread over the split: those that runs keep."""
    return sorted({int(k) for k in np.linspace(0, images - 1, 2 * IMAGES_OF_EACH_KIND)})


def select_telling(scores: np.ndarray) -> dict[str, list[int]]:
    """Select the images (columns; rows are networks) on which networks differ most, and the hardest of the others."""
    scores = np.nan_to_num(scores, nan=1.0)
    gaps = scores.min(0) - scores.max(0)
    apart = np.argsort(gaps, kind="stable")[:IMAGES_OF_EACH_KIND].tolist() if len(scores) > 1 else []
    hard = [k for k in np.argsort(scores.mean(0), kind="stable").tolist() if k not in apart][:IMAGES_OF_EACH_KIND]
    return {"networks differ most": apart, "hardest": hard}


def image_file(result: Result, name: str, kind: str) -> Path:
    """Return the file of an image of a result's gallery."""
    return gallery_file(result.run.gallery_dir(result.evaluation.name), name, kind)


def predict_missing(results: Sequence[Result], indices: Sequence[int]) -> str:
    """Predict images of the split for every run without these predictions; return why that failed, or ""."""
    problems = []
    for result in results:
        names = result.evaluation.images[0]
        if missing := [k for k in indices if not image_file(result, names[k], "prediction").is_file()]:
            try:
                predict_images(result, missing)
            except (UserError, OSError) as error:
                problems.append(str(error))
    return f"Some images are not shown, because they cannot be predicted here: {'; '.join(problems)}." if problems else ""


def predict_images(result: Result, indices: Sequence[int]) -> None:
    """Predict images of the split and write them into the run.

    Raises:
        UserError: The run's dataset or checkpoint is missing, or the evaluation was not of full images.
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
            raise UserError(f"the dataset of {result.run} changed after its evaluation: image {k} was {name}")
        image, mask = (torch.as_tensor(sample[key]).as_subclass(torch.Tensor) for key in ("image", "mask"))
        with torch.inference_mode():
            prediction = model(image[None])[0].argmax(0)
        rgb = image.permute(1, 2, 0).contiguous().numpy()
        write_gallery_images(directory, name, rgb, mask.numpy(), prediction.numpy(), model.palette)


def read_row(results: Sequence[Result], name: str, scores: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return an image, its ground truth, and the prediction of each run, with captions; empty if no run has the image.

    A blank image replaces a missing prediction.
    """
    source = next((result for result in results if image_file(result, name, "prediction").is_file()), None)
    if source is None:
        return []
    row = [(kind, read_rgb(image_file(source, name, part))) for kind, part in (("image", "image"), ("ground truth", "truth"))]
    for result, score in zip(results, scores, strict=True):
        file, caption = (
            image_file(result, name, "prediction"),
            f"{result.name}, {'-' if np.isnan(score) else f'{100 * score:.0f}'}",
        )
        row.append(
            (caption, read_rgb(file)) if file.is_file() else (f"{caption} (not predicted)", np.full_like(row[0][1], 255))
        )
    return row


def read_rgb(file: Path) -> np.ndarray:
    """Read a PNG, its palette applied, as RGB (H, W, 3), at most ``MAX_WIDTH`` pixels wide."""
    with Image.open(file) as image:
        factor = -(-image.width // MAX_WIDTH)
        if factor > 1 and image.mode == "P":
            size = (image.width // factor, image.height // factor)
            return np.array(image.resize(size, Image.Resampling.NEAREST).convert("RGB"))
        return np.array(image.convert("RGB").reduce(factor) if factor > 1 else image.convert("RGB"))


def read_legend(
    comparison: Comparison, results: Sequence[Result], names: Sequence[str]
) -> list[tuple[str, tuple[int, int, int]]]:  # fmt: skip
    """Read the color of every class from the palette of a ground truth."""
    files = (image_file(result, name, "truth") for result in results for name in names)
    file = next(file for file in files if file.is_file())
    with Image.open(file) as image:
        palette = image.getpalette() or []
    colors = [tuple(palette[3 * k : 3 * k + 3]) for k in range(len(comparison.classes))]
    named = [*zip(comparison.classes, colors, strict=True), ("ignored, not scored", tuple(palette[765:768]))]
    return [(name, (c[0], c[1], c[2])) for name, c in named if len(c) == 3]
