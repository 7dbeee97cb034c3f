"""Segmentations of many pictures as files: each picture's whole or not at all, and a bad one stops no other."""

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dilated_seg.crf import DenseCRF
from dilated_seg.errors import UserError, format_error, open_console
from dilated_seg.inference.find import KINDS, VOC_FOLDER, Found, find
from dilated_seg.inference.image import LARGE, Segmentation, chosen, segment
from dilated_seg.inference.load import load
from dilated_seg.inference.reflected_tiles import ReflectedTiles
from dilated_seg.inference.strategies import FullImage, Inference, Tiles
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs.run import commit
from dilated_seg.storage import write_text

VOC_NAME = re.compile(r"\d{4}_\d{6}")
CITYSCAPES_NAME = re.compile(r"[A-Za-z-]+_\d{6}_\d{6}(_leftImg8bit)?")  # city, sequence, frame

# What a system says when no other picture could be written either.
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}

Save = Callable[[Segmentation, io.BytesIO], None]
Wanted = tuple[Path, Save]  # a file, and how its content is made


@dataclass(frozen=True)
class Writer:
    """Writes segmentations below a folder: class ids, overlays, and if asked for probabilities or a test server's files."""

    out: Path
    model: Segmenter
    probabilities: bool = False
    submission: str | None = None

    def files(self, found: Found) -> list[Wanted]:
        """What is written for a picture, and how.

        Raises:
            UserError: A test server does not take a file of this name.
        """
        name = found.name.name
        files: list[Wanted] = [
            (self.place("labels", found, ".png"), lambda result, file: result.mask().save(file, "png")),
            (self.place("overlays", found, ".jpg"), lambda result, file: result.overlay().save(file, "jpeg", quality=90)),
        ]
        if self.probabilities:
            files.append((self.place("probabilities", found, ".npy"), save_probabilities))
        if self.submission == "voc":
            if not VOC_NAME.fullmatch(name):
                raise UserError(f"{found.file}: VOC's server takes names of year and number: 2008_000006")
            files.append((self.out / VOC_FOLDER / f"{name}.png", lambda result, file: result.mask().save(file, "png")))
        if self.submission == "cityscapes":
            if not CITYSCAPES_NAME.fullmatch(name):
                raise UserError(
                    f"{found.file}: Cityscapes' server takes names of city, sequence and frame: aachen_000000_000019"
                )
            values = np.array(self.model.submitted, np.uint8)
            files.append((
                self.out / "submission" / f"{name.removesuffix('_leftImg8bit')}.png",
                lambda result, file: Image.fromarray(values[result.ids.numpy()]).save(file, "png"),
            ))  # fmt: skip
        return files

    def place(self, kind: str, found: Found, suffix: str) -> Path:
        """Where a result of this kind goes: names keep their folders."""
        return self.out / kind / found.name.with_name(found.name.name + suffix)


def save_probabilities(result: Segmentation, file: Any) -> None:  # noqa: ANN401
    """NumPy's float16 (C, H, W), to be mapped into memory by numpy.load(..., mmap_mode="r")."""
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
    """Segment files, folders and patterns into a folder; a picture that fails does not stop the others.

    Returns:
        0 if all are segmented, now or by an earlier call; 1 if not: the last lines say how many and why.

    Raises:
        UserError: There is nothing to do it with, or the folder cannot be written or holds results of another protocol.
    """
    model = load(checkpoint).to(chosen(device))
    check_submission(submission, model)
    writer = Writer(Path(out), model, probabilities, submission)
    if isinstance(inference, ReflectedTiles):
        inference.require_network(model)
    if crf and (crf.learnable or crf.num_classes):
        raise UserError("--crf takes numbers alone: what is learnable is learnt as model.crf")
    pictures = find(sources, writer.out)
    if not any(os.path.isfile(found.file) for found in pictures):
        raise UserError(
            f"there is no picture in {', '.join(sources)}: name files, folders, or a pattern such as 'street/*.jpg'"
        )
    begin(writer, inference, crf)
    done, failed, left, stopped = 0, 0, 0, None
    taken: dict[Path, Path] = {}  # which picture's each result is, of those looked at in this call
    columns = TextColumn("Segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=open_console()) as progress:
        for found in progress.track(pictures):
            try:
                wanted = writer.files(found)
                if other := next((taken[path] for path, _ in wanted if path in taken), None):
                    raise UserError(f"{found.file} would be written over what {other} gave: give one of them another name")
                files = [(path, save) for path, save in wanted if overwrite or not os.path.lexists(path)]
                if files:
                    put(files, attempt(model, found.file, inference, crf, probabilities))
                done, left = (done + 1, left) if files else (done, left + 1)
                taken |= dict.fromkeys((path for path, _ in wanted), found.file)
            except UserError as error:
                progress.console.print(f"{error}", soft_wrap=True, style="red")
                failed += 1
            except OSError as error:  # of writing: reading says UserError
                stopped = f"{error.filename or out}: {error.strerror or error}"
                break
    print(f"{done} of {len(pictures)} pictures segmented into {out}" + (f", {failed} failed" if failed else ""), end="")
    print(f", {left} were there before (--overwrite replaces them)" if left else "")
    if submission and done + left:
        print(f"for the test server: {writer.out / ('submission' if submission == 'cityscapes' else VOC_FOLDER)}")
    if stopped:
        print(f"dilated-seg: stopped, since it cannot write: {stopped}", file=sys.stderr)
    return 0 if done + left == len(pictures) else 1


def put(files: Sequence[Wanted], result: Segmentation) -> None:
    """Write all files of a picture, or none: each whole, beside its place, and renamed when the last is there.

    Raises:
        UserError: A file of this picture cannot be made.
        OSError: Nothing can be written any more.
    """
    begun: list[tuple[Path, Path]] = []
    try:
        for path, save in files:
            content = io.BytesIO()  # Pillow takes a disk that is full for one that is slow
            encode(save, result, content, path)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{os.getpid()}.partial")  # no other process's, and never too long
            partial = partial.with_name(f"{len(begun)}{partial.name}")
            begun.append((partial, path))
            partial.write_bytes(content.getbuffer())
        for partial, path in begun:
            partial.replace(path)
    except OSError as error:
        if error.errno in HOPELESS:
            raise
        raise UserError(f"{error.filename or files[0][0]} cannot be written: {error.strerror or error}") from error
    finally:
        for partial, _ in begun:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def encode(save: Save, result: Segmentation, content: io.BytesIO, path: Path) -> None:
    """A file's content.

    Raises:
        UserError: The format does not hold it, as JPEG no more than 65,500 pixels a side.
    """
    try:
        save(result, content)
    except (OSError, ValueError) as error:
        height, width = result.ids.shape
        raise UserError(f"{path} cannot be made of {height} x {width} pixels: {format_error(error)}") from error


def attempt(
    model: Segmenter, file: Path, inference: Inference | None, crf: DenseCRF | None, probabilities: bool
) -> Segmentation:
    """Segment a file; whatever goes wrong is said with its name."""
    if os.path.isdir(file):
        folder = "without pictures" if os.access(file, os.R_OK | os.X_OK) else "that cannot be looked into"
        raise UserError(f"{file} is a folder {folder}")
    try:
        return segment(model, file, inference, crf, probabilities)
    except UserError as error:
        raise UserError(str(error) if str(file) in str(error) else f"{file}: {error}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in str(error):
            raise UserError(
                f"{file} needs more memory than there is: look at it in smaller tiles, --inference Tiles"
            ) from error
        raise


def begin(writer: Writer, inference: Inference | None, crf: DenseCRF | None) -> None:
    """Make the folder and say in it how its results were made; results of another protocol are not mixed with them."""
    automatic = f"{FullImage()}; {Tiles()} above {LARGE // 1_000_000} megapixels"
    facts = {key: writer.model.facts.get(key) for key in ("checkpoint", "sha256", "step")}
    facts |= {"dataset": writer.model.dataset, "inference": str(inference or automatic), "crf": str(crf) if crf else None}
    facts |= {"classes": writer.model.classes, "palette": [list(colour) for colour in writer.model.palette]}
    text = json.dumps(facts, indent=1) + "\n"
    file = writer.out / "protocol.json"
    try:
        writer.out.mkdir(parents=True, exist_ok=True)
        there = any((writer.out / kind).exists() for kind in KINDS)
        if unlike(file.read_bytes(), text) if file.exists() else there:
            raise UserError(
                f"{writer.out} holds what was made in another way, see {file.name}: name another --out, or remove it"
            )
        write_text(file, json.dumps(facts | {"commit": commit()}, indent=1) + "\n")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room, or name another --out" if full else "name another --out"
        raise UserError(f"{writer.out} cannot be written ({error.strerror or error}): {remedy}") from error


def unlike(old: bytes, new: str) -> bool:
    """Whether two protocols differ in more than the commit."""
    try:
        before: dict[str, Any] = json.loads(old)
        return {key: value for key, value in before.items() if key != "commit"} != json.loads(new)
    except (ValueError, AttributeError, RecursionError):
        return True


def check_submission(submission: str | None, model: Segmenter) -> None:
    """Refuse to write a test server's files with a network that was trained on something else."""
    if submission == "cityscapes" and not (model.submitted and len(model.submitted) == 19):
        raise UserError("--submission cityscapes needs a network that was trained on Cityscapes' 19 classes")
    if submission == "voc" and (len(model.classes) != 21 or model.dataset not in (None, "VOC")):
        raise UserError("--submission voc needs a network that was trained on VOC's 21 classes")
