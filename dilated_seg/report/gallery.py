"""The report's images: some of the split, those that the networks see most differently, and those that all find hardest.

Runs keep pictures of a few images from their evaluation. Which ones tell most is known only when networks are compared, so
what is missing is predicted once more and kept beside the others; the numbers stay those of the evaluation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dilated_seg.analysis import plots
from dilated_seg.analysis.resampling import count_pixels, mean_iou
from dilated_seg.data.decode import mask_picture
from dilated_seg.errors import UserError
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.report.blocks import ImageGrid, Plot, Section
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.results import Result
from dilated_seg.runs.samples import open_labelled_split

IMAGES = 3  # of each kind
SHEET = 4  # in one picture


def build_section(comparison: Comparison) -> Section | None:
    """Images with their truth and the predictions of each network's first seed, which are made if they are missing."""
    first = [group[0] for group in comparison.groups.values()]
    names = comparison.results[0].evaluation.images[0]
    scores = np.array([mean_iou(count_pixels(result.evaluation.images[1])) for result in first])  # of each network and image
    kinds = telling(scores)
    shown = {k for chosen in kinds.values() for k in chosen}
    kinds = {"evenly spread over the split": [k for k in spread(len(names)) if k not in shown][:IMAGES], **kinds}
    note = fill(first, sorted({k for chosen in kinds.values() for k in chosen}))
    rows = [
        (f"{names[k]}: {kind}", pictures(first, names[k], scores[:, k]))
        for kind, chosen in kinds.items()
        for k in chosen
        if all(file(result, names[k], "prediction").is_file() for result in first)
    ]
    if not rows:
        return Section("Images", [note]) if note else None
    few = [row for k, row in enumerate(rows) if k % IMAGES < 2][:SHEET]
    sheet = Plot("predictions", "Images, their truth, and what each network predicts", plots.draw_contact_sheet(few))
    how = (
        "What has the legend's last colour in a truth is not scored. Below a prediction stands its mean "
        "IoU on this image alone, in percent. Networks differ most where the gap between the best and the worst is widest; "
        "hardest, of the other images, are those with the lowest mean over networks."
    )
    blocks: list[str | ImageGrid] = [ImageGrid(rows, sheet, legend(comparison, first[0], names))]
    return Section("Images", [*([note] if note else []), *blocks, how])


def spread(images: int) -> list[int]:
    """Images evenly spread over the split: those that runs keep pictures of."""
    return sorted({int(k) for k in np.linspace(0, images - 1, 2 * IMAGES)})


def telling(scores: np.ndarray) -> dict[str, list[int]]:
    """Images (columns of scores by network) that networks differ most on, and of the rest those that all find hardest."""
    scores = np.nan_to_num(scores, nan=1.0)
    apart = np.argsort(scores.min(0) - scores.max(0), kind="stable")[:IMAGES].tolist() if len(scores) > 1 else []
    hard = [k for k in np.argsort(scores.mean(0), kind="stable").tolist() if k not in apart][:IMAGES]
    return {"networks differ most": apart, "hardest": hard}


def file(result: Result, name: str, what: str) -> Path:
    """Where a run keeps a picture of an image: itself, its "truth" or its "prediction"."""
    return result.run.gallery_dir(result.evaluation.name) / f"{name}.{what}.png"


def fill(results: Sequence[Result], places: Sequence[int]) -> str:
    """Predict these images of the split again for every run without a picture of them; gives what stood in the way, if any."""
    try:
        for result in results:
            missing = [k for k in places if not file(result, result.evaluation.images[0][k], "prediction").is_file()]
            if missing:
                predict(result, missing)
    except (UserError, OSError) as error:
        return f"Some images are not shown, because they cannot be predicted here: {error}."
    return ""


def predict(result: Result, places: Sequence[int]) -> None:
    """Write pictures of these images into a run.

    Raises:
        UserError: The run's dataset or checkpoint is not there, or images were not looked at as a whole.
    """
    protocol = result.evaluation.protocol
    if not protocol.is_whole_image:
        raise UserError(f"{result.run} was evaluated by {protocol.describe()['inference']}")
    model = result.run.model(protocol.checkpoint)
    if model.facts["step"] != protocol.step:
        raise UserError(f"{protocol.checkpoint}.ckpt of {result.run} is of another step than its evaluation")
    split = open_labelled_split(result.run.dataset(), protocol.split)
    for k in places:
        sample, name = split[k], result.evaluation.images[0][k]
        if sample["id"] != name:
            raise UserError(f"the dataset of {result.run} has changed since its evaluation: image {k} is no longer {name}")
        image, mask = (torch.as_tensor(sample[key]).as_subclass(torch.Tensor) for key in ("image", "mask"))
        write(result, name, image, mask, model)


def write(result: Result, name: str, image: torch.Tensor, mask: torch.Tensor, model: Segmenter) -> None:
    """Write one image, its truth and its prediction; the last comes last, for it says that all are there."""
    with torch.inference_mode():
        prediction = model(image[None])[0].argmax(0)
    made = {
        "image": Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()),
        "truth": mask_picture(mask.numpy().astype(np.uint8), model.palette),
        "prediction": mask_picture(prediction.numpy().astype(np.uint8), model.palette),
    }
    for what, picture in made.items():
        target = file(result, name, what)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        picture.save(partial, "PNG")
        partial.replace(target)


def pictures(results: Sequence[Result], name: str, scores: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """An image, its truth, and the prediction of each run."""
    shown = [("image", file(results[0], name, "image")), ("truth", file(results[0], name, "truth"))]
    shown += [
        (f"{result.name}, {'-' if np.isnan(score) else f'{100 * score:.0f}'}", file(result, name, "prediction"))
        for result, score in zip(results, scores, strict=True)
    ]
    return [(line, picture(path)) for line, path in shown]


def picture(path: Path) -> np.ndarray:
    """A PNG, its palette applied, as RGB (H, W, 3), at most 640 pixels wide."""
    with Image.open(path) as image:
        factor = -(-image.width // 640)
        palette = image.mode == "P"
        if factor > 1 and palette:
            return np.array(
                image.resize((image.width // factor, image.height // factor), Image.Resampling.NEAREST).convert("RGB")
            )
        return np.array(image.convert("RGB").reduce(factor) if factor > 1 else image.convert("RGB"))


def legend(comparison: Comparison, result: Result, names: Sequence[str]) -> list[tuple[str, tuple[int, int, int]]]:
    """The colour of every class, as a picture of a truth has it."""
    found = next(path for name in names if (path := file(result, name, "truth")).is_file())
    with Image.open(found) as image:
        table = image.getpalette() or []
    colours = [tuple(table[3 * k : 3 * k + 3]) for k in range(len(comparison.classes))]
    named = [*zip(comparison.classes, colours, strict=True), ("ignored, not scored", tuple(table[765:768]))]
    return [(name, (c[0], c[1], c[2])) for name, c in named if len(c) == 3]
