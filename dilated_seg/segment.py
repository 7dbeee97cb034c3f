"""A trained network on pictures: one from Python, or files, folders and patterns of them from the command line."""

import errno
import glob
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dilated_seg import UserError
from dilated_seg.crf import DenseCRF
from dilated_seg.images import as_rgb, mask_picture, read_image
from dilated_seg.inference import Inference, Tiles, Whole, predict, whole
from dilated_seg.prediction import predict as best
from dilated_seg.runs import commit, write_text
from dilated_seg.segmenter import Segmenter, load

LARGE = 4_000_000  # pixels; a larger picture is looked at in tiles, unless it is said how

VOC_FOLDER = Path("results", "VOC2012", "Segmentation", "comp6_test_cls")  # comp6: trained on more than VOC's own images
CITYSCAPES_NAME = re.compile(r"[A-Za-z-]+_\d{6}_\d{6}")  # city, sequence, frame


@dataclass(frozen=True)
class Segmentation:
    """What a network says of a picture: ``ids``, the class of each pixel (H, W), of the picture ``image`` (3, H, W)."""

    image: Tensor
    ids: Tensor
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    protocol: str  # how the picture was looked at
    probabilities: Tensor | None = None  # (C, H, W), if they were asked for

    def mask(self) -> Image.Image:
        """The class ids as a picture with the dataset's palette."""
        return mask_picture(self.ids.numpy(), self.palette)

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The classes' colours over the picture."""
        return Image.blend(Image.fromarray(self.image.permute(1, 2, 0).numpy()), self.mask().convert("RGB"), opacity)

    def shares(self) -> dict[str, float]:
        """The part of the picture that each class takes, largest first, without those that are not there."""
        counts = torch.bincount(self.ids.flatten().long(), minlength=len(self.classes)) / self.ids.numel()
        found = {name: share for name, share in zip(self.classes, counts.tolist(), strict=True) if share}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        self.overlay().save(file, "png")
        return file.getvalue()


def segment(
    model: Segmenter,
    picture: str | Path | Image.Image | Tensor,
    inference: Inference | None = None,
    crf: DenseCRF | None = None,
    probabilities: bool = False,
) -> Segmentation:
    """Segment one picture, on the model's device.

    Args:
        model: From `dilated_seg.segmenter.load`.
        picture: A file of any mode, which is turned upright if its EXIF says so; a Pillow image; or uint8 RGB (3, H, W).
        inference: How to look at it; if None as a whole, or in tiles if it has more than 4 megapixels.
        crf: Refines what the network says.
        probabilities: Whether to give them too; this needs memory for all of them.

    Raises:
        UserError: The picture cannot be read, or the network cannot take it.
    """
    image = as_rgb(picture.copy()) if isinstance(picture, Image.Image) else picture
    image = image if isinstance(image, Tensor) else read_image(Path(image))
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or not image.numel():
        raise UserError(f"a picture is uint8 RGB (3, height, width), not {image.dtype} {tuple(image.shape)}")
    inference = inference or (Tiles() if image[0].numel() > LARGE else Whole())
    protocol = f"{inference}, then {crf}" if crf else str(inference)
    found: Tensor | None = None
    with torch.inference_mode():
        batch = image[None].to(model.mean.device)
        if crf or probabilities:
            found = whole(inference, model, batch).softmax(1)
            found = crf(found, batch) if crf else found
            ids = best(found)[0].to(torch.uint8)
        else:
            ids = predict(inference, model, batch)[0]
    kept = found[0].cpu() if found is not None and probabilities else None
    return Segmentation(image, ids.cpu(), model.classes, model.palette, protocol, kept)


@dataclass(frozen=True)
class Found:
    """A picture to segment, and its name below the folder of results, without suffix."""

    file: Path
    name: Path


def find(sources: Sequence[str], out: Path) -> Iterator[Found]:
    """The pictures of files, folders with all below them, and patterns such as 'street/**/*.jpg', each once, in order.

    What lies below ``out`` is none of them. Names keep the folders below a source, which has its own name in front if there
    are several. What does not exist is among them: to read it says so.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    seen: set[Path] = set()
    for source in sources:
        place = Path(source)
        if place.is_dir():
            inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            visible = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(place).parts)]
            base = place if len(sources) == 1 else place.parent
            pictures = [(p, p.relative_to(base)) for p in visible if out.resolve() not in p.resolve().parents]
            pictures = pictures or [(place, Path(place.name))]
        elif glob.has_magic(source) and not place.exists():
            base = Path(*[part for part in place.parts[: first_magic(place)]])
            matching = sorted(Path(p) for p in glob.glob(source, recursive=True))
            pictures = [(p, p.relative_to(base)) for p in matching if p.is_file()] or [(place, place)]
        else:
            pictures = [(place, Path(place.name))]
        for file, name in pictures:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield Found(file, name.with_suffix("") if name.suffix.lower() in suffixes else name)


def first_magic(pattern: Path) -> int:
    """Which part of a path is the first with a wildcard."""
    return next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))


def write(path: Path, save: Callable[[Any], None]) -> None:
    """A file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            save(file)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Writer:
    """Writes segmentations below a folder: class ids, overlays, and if asked for probabilities or a test server's files."""

    out: Path
    model: Segmenter
    probabilities: bool = False
    submission: str | None = None

    def files(self, found: Found) -> list[tuple[Path, Callable[[Segmentation, Any], None]]]:
        """What is written for a picture, and how.

        Raises:
            UserError: A test server does not take a file of this name.
        """
        name = found.name.name
        files: list[tuple[Path, Callable[[Segmentation, Any], None]]] = [
            (self.place("labels", found, ".png"), lambda result, file: result.mask().save(file, "png")),
            (self.place("overlays", found, ".jpg"), lambda result, file: result.overlay().save(file, "jpeg", quality=90)),
        ]
        if self.probabilities:
            files.append((self.place("probabilities", found, ".npy"), save_probabilities))
        if self.submission == "voc":
            files.append((self.out / VOC_FOLDER / f"{name}.png", lambda result, file: result.mask().save(file, "png")))
        if self.submission == "cityscapes":
            if not CITYSCAPES_NAME.match(name):
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
        0 if all were segmented, 1 if not: the last lines say how many and why.

    Raises:
        UserError: There is nothing to do it with, or the folder cannot be written or holds results of another protocol.
    """
    model = load(checkpoint).to(chosen(device))
    check_submission(submission, model)
    writer = Writer(Path(out), model, probabilities, submission)
    pictures = list(find(sources, writer.out))
    if not any(found.file.is_file() for found in pictures):
        raise UserError(
            f"there is no picture in {', '.join(sources)}: name files, folders, or a pattern such as 'street/*.jpg'"
        )
    begin(writer, inference, crf, overwrite)
    done, failed, left, stopped = 0, 0, 0, None
    written: dict[Path, Path] = {}  # by which picture, in this call
    columns = TextColumn("Segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        for found in progress.track(pictures):
            try:
                files = writer.files(found)
                if other := next((written[path] for path, _ in files if path in written), None):
                    raise UserError(f"{found.file} would be written over what {other} gave: give one of them another name")
                if not overwrite and (there := [path for path, _ in files if path.exists()]):
                    progress.console.print(f"{there[0]} exists: left alone", highlight=False, soft_wrap=True)
                    left += 1
                    continue
                result = attempt(model, found.file, inference, crf, probabilities)
                put(files, result)
                written |= dict.fromkeys((path for path, _ in files), found.file)
                done += 1
            except UserError as error:
                progress.console.print(f"{error}", highlight=False, soft_wrap=True, style="red", markup=False)
                failed += 1
            except OSError as error:  # of writing: reading says UserError
                stopped = f"{error.filename or out}: {error.strerror or error}"
                break
    print(f"{done} of {len(pictures)} pictures segmented into {out}" + (f", {failed} failed" if failed else ""), end="")
    print(f", {left} were there before (--overwrite replaces them)" if left else "")
    if submission and done:
        print(f"for the test server: {writer.out / ('submission' if submission == 'cityscapes' else VOC_FOLDER)}")
    if stopped:
        print(f"dilated-seg: stopped, since it cannot write: {stopped}", file=sys.stderr)
    return 0 if done == len(pictures) else 1


def put(files: Sequence[tuple[Path, Callable[[Segmentation, Any], None]]], result: Segmentation) -> None:
    """Write all files of a picture, or none."""
    begun: list[Path] = []
    try:
        for path, save in files:
            before = path.exists()
            write(path, lambda file, save=save: save(result, file))  # type: ignore[misc]
            begun += [] if before else [path]
    except BaseException:
        for path in begun:
            path.unlink(missing_ok=True)
        raise


def attempt(
    model: Segmenter, file: Path, inference: Inference | None, crf: DenseCRF | None, probabilities: bool
) -> Segmentation:
    """Segment a file; whatever goes wrong is said with its name."""
    if not file.exists():
        raise UserError(f"there is no picture {file}")
    if file.is_dir():
        raise UserError(f"{file} is a folder without pictures")
    try:
        return segment(model, file, inference, crf, probabilities)
    except UserError as error:
        raise UserError(str(error) if str(file) in str(error) else f"{file}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in str(error):
            raise UserError(
                f"{file} needs more memory than there is: look at it in smaller tiles, --inference Tiles"
            ) from error
        raise


def begin(writer: Writer, inference: Inference | None, crf: DenseCRF | None, overwrite: bool) -> None:
    """Make the folder and say in it how its results were made; results of another protocol are not mixed with them."""
    automatic = f"{Whole()}; {Tiles()} above {LARGE // 1_000_000} megapixels"
    facts = {key: writer.model.facts.get(key) for key in ("checkpoint", "sha256", "step")}
    facts |= {"dataset": writer.model.dataset, "inference": str(inference or automatic), "crf": str(crf) if crf else None}
    facts |= {"classes": writer.model.classes, "palette": writer.model.palette, "probabilities": writer.probabilities}
    text = json.dumps(facts, indent=1) + "\n"
    file = writer.out / "protocol.json"
    try:
        writer.out.mkdir(parents=True, exist_ok=True)
        if file.exists() and not overwrite and unlike(file.read_text(), text):
            raise UserError(
                f"{writer.out} holds what was made in another way, see {file}: name another --out, or --overwrite it"
            )
        write_text(file, json.dumps(facts | {"commit": commit()}, indent=1) + "\n")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room, or name another --out" if full else "name another --out"
        raise UserError(f"{writer.out} cannot be written ({error.strerror or error}): {remedy}") from error


def unlike(old: str, new: str) -> bool:
    """Whether two protocols differ in more than the commit."""
    try:
        before: dict[str, Any] = json.loads(old)
        return {key: value for key, value in before.items() if key != "commit"} != json.loads(new)
    except (ValueError, AttributeError):
        return True


def check_submission(submission: str | None, model: Segmenter) -> None:
    """Refuse to write a test server's files with a network that was trained on something else."""
    if submission == "cityscapes" and not (model.submitted and len(model.submitted) == 19):
        raise UserError("--submission cityscapes needs a network that was trained on Cityscapes' 19 classes")
    if submission == "voc" and len(model.classes) != 21:
        raise UserError("--submission voc needs a network of VOC's 21 classes")


def chosen(device: str | None) -> torch.device:
    """The device asked for, or a GPU if there is one."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=found)
        return found
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: there is none here ({str(error).splitlines()[0]})") from error
