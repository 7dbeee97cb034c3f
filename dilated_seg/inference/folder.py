"""Segments many images and writes the results as files: class ids, overlays, probabilities, test server submissions."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dilated_seg.crf import DenseCRF
from dilated_seg.errors import SPACE, UserError, format_error, open_console
from dilated_seg.inference.devices import resolve_device
from dilated_seg.inference.find import KINDS, SUBMISSION, VOC_SUBMISSION, ImageFile, find_images
from dilated_seg.inference.image import LARGE, Segmentation, segment_image
from dilated_seg.inference.load import load
from dilated_seg.inference.reflected_tiles import ReflectedTiles
from dilated_seg.inference.strategies import FullImage, Inference, Tiles
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs.files import PROTOCOL
from dilated_seg.runs.version import commit
from dilated_seg.storage import atomic_path, write_text

VOC_NAME = re.compile(r"\d{4}_\d{6}")
CITYSCAPES_NAME = re.compile(r"[A-Za-z-]+_\d{6}_\d{6}(_leftImg8bit)?")  # city, sequence, frame

Encode = Callable[[Segmentation, io.BytesIO], None]


@dataclass(frozen=True)
class Job:
    """Options of one call: how images are segmented, and which files are written below ``out``."""

    model: Segmenter
    out: Path
    inference: Inference | None = None
    crf: DenseCRF | None = None
    probabilities: bool = False
    submission: str | None = None

    def outputs(self, image: ImageFile) -> dict[Path, Encode]:
        """Return the files to write for an image, with their encoders; class ids last, so that they exist only if all do.

        Raises:
            UserError: The test server does not accept this file name.
        """
        name, below = image.name.name, image.name.parent
        files: dict[Path, Encode] = {self.out / "overlays" / below / f"{name}.jpg": encode_overlay}
        if self.probabilities:
            files[self.out / "probabilities" / below / f"{name}.npy"] = encode_probabilities
        if self.submission == "voc":
            if not VOC_NAME.fullmatch(name):
                raise UserError(f"{image.file}: VOC's test server requires names of year and number, such as 2008_000006")
            files[self.out / VOC_SUBMISSION / f"{name}.png"] = encode_mask
        if self.submission == "cityscapes":
            if not CITYSCAPES_NAME.fullmatch(name):
                raise UserError(
                    f"{image.file}: Cityscapes' test server requires names of city, sequence and frame, such as "
                    "aachen_000000_000019"
                )
            files[self.out / SUBMISSION / f"{name.removesuffix('_leftImg8bit')}.png"] = self._encode_submitted
        return files | {self.out / "labels" / below / f"{name}.png": encode_mask}

    def _encode_submitted(self, result: Segmentation, file: io.BytesIO) -> None:
        """Write a PNG with the test server's values instead of class ids."""
        values = np.array(self.model.submitted, np.uint8)
        Image.fromarray(values[result.ids.numpy()]).save(file, "png")

    def protocol(self) -> dict[str, Any]:
        """Return the content of protocol.json: everything on which the results depend."""
        automatic = f"{FullImage()}; {Tiles()} above {LARGE // 1_000_000} megapixels"
        return {
            **{key: self.model.facts.get(key) for key in ("checkpoint", "sha256", "step")},
            "dataset": self.model.dataset,
            "inference": str(self.inference or automatic),
            "crf": str(self.crf) if self.crf else None,
            "classes": self.model.classes,
            "palette": [list(color) for color in self.model.palette],
        }


def encode_mask(result: Segmentation, file: io.BytesIO) -> None:
    """Encode class ids as a PNG with the dataset's palette."""
    result.mask().save(file, "png")


def encode_overlay(result: Segmentation, file: io.BytesIO) -> None:
    """Encode the image, overlaid with the colors of the classes, as a JPEG."""
    result.overlay().save(file, "jpeg", quality=90)


def encode_probabilities(result: Segmentation, file: io.BytesIO) -> None:
    """Encode probabilities as .npy, float16 (C, H, W), which numpy.load can memory-map."""
    assert result.probabilities is not None
    np.save(file, result.probabilities.half().numpy())


def segment_files(
    sources: Sequence[str],
    checkpoint: str,
    out: str | Path = "segmented",
    inference: Inference | None = None,
    crf: DenseCRF | None = None,
    *,
    probabilities: bool = False,
    submission: str | None = None,
    overwrite: bool = False,
    device: str | None = None,
) -> int:
    """Segment files, directories and patterns into a directory. If an image fails, the others are still segmented.

    Returns:
        The exit status: 0 if the results of all images exist now, 1 if an image failed.

    Raises:
        UserError: There are no images, or the directory cannot be written or contains results of another protocol.
    """
    model = load(checkpoint).to(resolve_device(device))
    check_submission(submission, model)
    if isinstance(inference, ReflectedTiles):
        inference.require_network(model)
    if crf and (crf.learnable or crf.num_classes):
        raise UserError("--crf is not learnable: train a learnable CRF as model.crf")
    job = Job(model, Path(out), inference, crf, probabilities, submission)
    images = find_images(sources, job.out)
    if not any(os.path.isfile(image.file) for image in images):
        raise UserError(
            f"there is no image in {', '.join(sources)}: name files, directories, or a pattern such as 'street/*.jpg'"
        )
    write_protocol(job)
    done, existing, failed = run_job(job, images, overwrite)
    print(f"{done} of {len(images)} images segmented into {out}" + (f", {failed} failed" if failed else ""), end="")
    print(f", {existing} existed (--overwrite replaces them)" if existing else "")
    if submission and done + existing:
        print(f"for the test server: {job.out / (SUBMISSION if submission == 'cityscapes' else VOC_SUBMISSION)}")
    return 0 if done + existing == len(images) else 1


def run_job(job: Job, images: Sequence[ImageFile], overwrite: bool) -> tuple[int, int, int]:
    """Segment images; return how many were segmented, existed and failed. A full disk ends the loop."""
    done, existing, failed = 0, 0, 0
    sources: dict[Path, Path] = {}  # the image of each result file, to find images of equal names
    columns = TextColumn("Segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=open_console()) as progress:
        for image in progress.track(images):
            try:
                outputs = job.outputs(image)
                if other := next((sources[path] for path in outputs if path in sources), None):
                    raise UserError(f"{image.file} would overwrite the results of {other}: rename one of them")
                missing = {path: encode for path, encode in outputs.items() if overwrite or not os.path.lexists(path)}
                if missing:
                    write_outputs(missing, segment_file(job, image.file))
                done, existing = (done + 1, existing) if missing else (done, existing + 1)
                sources |= dict.fromkeys(outputs, image.file)
            except UserError as error:
                progress.console.print(f"{error}", soft_wrap=True, style="red")
                failed += 1
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in SPACE:
                    print(f"dilated-seg: stopped: {error}", file=sys.stderr)
                    break
    return done, existing, failed


def write_outputs(files: dict[Path, Encode], result: Segmentation) -> None:
    """Write the result files of an image atomically, after all have been encoded.

    Raises:
        UserError: A file cannot be encoded, such as a JPEG of more than 65,500 pixels per side, or cannot be written.
    """
    contents = {path: io.BytesIO() for path in files}  # in memory first, because Pillow hides the error of a full disk
    for path, encode in files.items():
        try:
            encode(result, contents[path])
        except (OSError, ValueError) as error:
            height, width = result.ids.shape
            raise UserError(f"{path} cannot have {height} x {width} pixels: {format_error(error)}") from error
    for path, content in contents.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as partial:
                partial.write_bytes(content.getbuffer())
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def segment_file(job: Job, file: Path) -> Segmentation:
    """Segment an image file.

    Raises:
        UserError: The file cannot be read, or needs too much memory.
    """
    if os.path.isdir(file):
        raise UserError(f"{file} is a directory without images, or cannot be read")
    try:
        return segment_image(job.model, file, job.inference, job.crf, job.probabilities)
    except UserError as error:
        raise UserError(str(error) if str(file) in str(error) else f"{file}: {error}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in str(error):
            raise UserError(f"{file} needs too much memory: use smaller tiles, --inference Tiles") from error
        raise


def write_protocol(job: Job) -> None:
    """Create the directory of results and write protocol.json.

    Raises:
        UserError: The directory contains results of another protocol, or cannot be written.
    """
    protocol, file = job.protocol(), job.out / PROTOCOL
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        exists = file.exists() or any((job.out / kind).exists() for kind in KINDS)
        if exists and read_protocol(file) != protocol:
            raise UserError(f"{job.out} has results of another protocol (see {file.name}): name another --out, or remove it")
        write_text(file, json.dumps(protocol | {"commit": commit()}, indent=1) + "\n")
    except OSError as error:
        remedy = "free space, or name another --out" if error.errno in SPACE else "name another --out"
        raise UserError(f"{job.out} cannot be written ({error.strerror or error}): {remedy}") from error


def read_protocol(file: Path) -> Any:  # noqa: ANN401
    """Return the content of protocol.json without the commit; None if it is missing or damaged."""
    try:
        content = json.loads(file.read_bytes())
        content.pop("commit", None)
        return content
    except (FileNotFoundError, ValueError, AttributeError, TypeError, RecursionError):
        return None


def check_submission(submission: str | None, model: Segmenter) -> None:
    """Check that the network has the classes of the test server.

    Raises:
        UserError: The network was trained on other classes.
    """
    if submission == "cityscapes" and not (model.submitted and len(model.submitted) == 19):
        raise UserError("--submission cityscapes requires a network that was trained on Cityscapes' 19 classes")
    if submission == "voc" and (len(model.classes) != 21 or model.dataset not in (None, "VOC")):
        raise UserError("--submission voc requires a network that was trained on VOC's 21 classes")
