"""A trained network for programs without this package: ONNX or torch.export's pt2, or a folder for the Hugging Face Hub.

A file takes ``image``, plain RGB (B, 3, H, W) in uint8, and gives ``logits`` (B, C, H, W) in float32: normalisation is inside,
softmax and argmax are not. B, H and W are left open, unless a size is asked for. Every file is read again and run beside
torch before it appears.
"""

import contextlib
import errno
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dilated_seg.errors import UserError, describe_error
from dilated_seg.export import hub
from dilated_seg.inference.load import load
from dilated_seg.models.segmenter import Segmenter, normalize
from dilated_seg.models.torch_internals import trace_with_free_sizes
from dilated_seg.runs.version import commit

Format = Literal["onnx", "pt2", "hub"]
Size = tuple[int, int, int]  # images, height, width

# What a network with open sizes is traced on: the first that it takes, and that torch.export can reason about.
OPEN: tuple[Size, ...] = ((2, 224, 240), (2, 252, 236))
CHECKED: tuple[Size, ...] = ((1, 33, 47), (1, 219, 195), (2, 204, 220), (1, 188, 252))  # and what it must give the same on

# Two programs round differently. Where the two highest scores lie this close to each other (a fraction of the highest of all),
# either is right. Where poolings hand on the places of their maxima, rounding may choose other places: for so many pixels.
TIE, MOVED = 1e-4, 1e-3

LARGEST = 20_000  # pixels a side of the images of --size

FACTS = "segmenter.json"  # the extra file of a .pt2


class Plain(nn.Module):
    """The segmenter for tracing: it lets the runtime choose how images lie in memory, which would fix sizes."""

    mean: Tensor
    std: Tensor

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.net = segmenter.net.to(memory_format=torch.contiguous_format)
        self.register_buffer("mean", segmenter.mean)
        self.register_buffer("std", segmenter.std)

    def forward(self, image: Tensor) -> Tensor:
        return self.net(normalize(image, self.mean, self.std)).float()


def export(
    source: str,
    form: Format,
    out: str,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    licence: str | None = None,
) -> None:
    """Write a trained network as a file, or as a folder for the Hub, and say what it takes and how it was checked.

    Raises:
        UserError: The source or an option is wrong, the network cannot be written so, or what was written gives other labels.
    """
    path = Path(out)
    if form != "hub" and path.suffix != f".{form}":
        raise UserError(f"--out {out}: let the name of the file end in .{form}")
    if form == "onnx" and (missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]):
        raise UserError(f"--format onnx needs {' and '.join(missing)}: pip install onnx onnxscript onnxruntime")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"--out {out} exists: name another one, or replace it with --overwrite")
    if form != "hub" and not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}; make it first")
    segmenter = load(source)
    if segmenter.crf and form != "hub":
        raise UserError(f"{source} was trained with a CRF, which builds a lattice for each image: no {form} holds it; take hub")
    if size and max(size) > LARGEST:
        raise UserError(
            f"--size {size[0]} {size[1]}: it is checked on images of this size, of at most {LARGEST:,} pixels a side"
        )
    if form == "hub":
        hub.save(segmenter, path, licence)
        print(compare(segmenter, load(path), CHECKED))
        print(f"written: {path}/ ({', '.join(sorted(file.name for file in path.iterdir()))})")
        return
    partial = path.with_name(f".{os.getpid()}.partial.{form}")  # no other process's, and of a name that is not too long
    try:
        partial.touch()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        plain = Plain(segmenter).eval()
        said_of_it = write(plain, metadata(segmenter), form, partial, size)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    height, width = size or ("H", "W")
    channels = len(segmenter.classes)
    print(f"image: uint8 RGB (B, 3, {height}, {width}); logits: float32 (B, {channels}, {height}, {width})")
    print(f"{said_of_it}\nwritten: {path} ({path.stat().st_size / 1e6:,.1f} MB)")


def write(plain: Plain, facts: dict[str, Any], form: Format, path: Path, size: tuple[int, int] | None = None) -> str:
    """Write a file, read it again, run it beside torch; gives a sentence that says how far they agree."""
    program = traced(plain, size)
    if form == "onnx":
        write_onnx(program, facts, path)
    else:
        content = io.BytesIO()  # torch has no OSError of its own for a disk that is full
        torch.export.save(program, content, extra_files={FACTS: json.dumps(facts)})
        path.write_bytes(content.getbuffer())
    run = read_onnx(path) if form == "onnx" else torch.export.load(path).module()
    return compare(plain, run, tuple((batch, *size) for batch in (1, 2)) if size else CHECKED)


def traced(plain: Plain, size: tuple[int, int] | None = None) -> ExportedProgram:
    """The network as a graph, with every number of images and, without ``size``, every height and width.

    Raises:
        UserError: The network does not take such images, or torch.export does not follow it.
    """
    axes = {0: Dim.DYNAMIC} if size else {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    failed: Exception | None = None
    for example in [(2, *size)] if size else OPEN:
        image = picture(*example)
        try:
            # Else torch takes what is true of this size, such as that nothing is left to be cropped, to be true of all.
            with quiet(), torch.no_grad(), trace_with_free_sizes():
                plain(image)
                return torch.export.export(plain, (image,), dynamic_shapes=(axes,))
        except Exception as error:  # torch.export passes on whatever a network raises
            failed = error
    if isinstance(failed, UserError):
        raise failed
    remedy = "it cannot be exported" if size else "fix the size of its images with --size HEIGHT WIDTH"
    raise UserError(f"torch.export does not follow {type(plain.net).__name__} ({describe_error(failed)}): {remedy}") from failed  # type: ignore[arg-type]


def write_onnx(program: ExportedProgram, facts: dict[str, Any], path: Path) -> None:
    """An .onnx file with what is known of the network in its metadata.

    Raises:
        UserError: ONNX lacks an operation of the network, or the file would be larger than a single one can be (2 GB).
    """
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    try:
        with quiet():
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
            made.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
            shape = made.model.graph.inputs[0].shape
            for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
                if not isinstance(shape[axis], int):
                    shape[axis] = name
            made.save(path, external_data=False)
    except OSError:
        raise
    except Exception as error:  # as torch.export
        cause = describe_error(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise UserError(f"this network cannot be written as ONNX ({cause}): take --format pt2") from error


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """An .onnx file as onnxruntime runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


def compare(plain: nn.Module, run: Callable[[Tensor], Tensor], sizes: tuple[Size, ...]) -> str:
    """What another program gives beside what torch gives, on images of several sizes.

    Raises:
        UserError: It fails, or gives other labels.
    """
    allowed = MOVED if any(isinstance(layer, nn.MaxUnpool2d) for layer in plain.modules()) else 0.0
    seen, tied, moved, pixels = [], 0, 0, 0
    for batch, height, width in sizes:
        image = picture(batch, height, width)
        try:
            with torch.no_grad():
                ours = plain(image)
        except Exception:  # too small for this network, or not of the sides that it takes
            continue
        try:
            with torch.no_grad():
                theirs = run(image)
        except Exception as error:  # every runtime has its own
            size = f"{height} x {width}"
            raise UserError(
                f"what was written does not run on {size} ({describe_error(error)}): nothing is kept; try --size"
            ) from error
        if theirs.shape != ours.shape:
            shapes = f"{tuple(theirs.shape)} where torch gives {tuple(ours.shape)}"
            raise UserError(f"what was written gives {shapes}: nothing is kept")
        if not theirs.isfinite().all():
            raise UserError("what was written gives scores that are no numbers: nothing is kept")
        best = ours.topk(min(2, ours.shape[1]), 1).values
        other = ours.argmax(1) != theirs.argmax(1)
        close = best[:, 0] - best[:, -1] <= TIE * ours.abs().max()
        tied, moved, pixels = tied + int((other & close).sum()), moved + int((other & ~close).sum()), pixels + other.numel()
        seen.append(f"{height} x {width}")
    if not seen:
        raise UserError("the network takes no size that the export is checked on: fix one with --size HEIGHT WIDTH")
    if moved > allowed * pixels:
        raise UserError(f"what was written labels {moved:,} of {pixels:,} pixels otherwise than torch: nothing is kept")
    rest = [f"{tied} where two classes tie"] * bool(tied) + [f"{moved} where a pooling's maxima do"] * bool(moved)
    but = f", but for {' and '.join(rest)}" if rest else ""
    return f"checked on {', '.join(dict.fromkeys(seen))}: the labels are torch's{but}"


def picture(batch: int, height: int, width: int) -> Tensor:
    """Images (B, 3, H, W) with areas of colour and with noise, the same at every call."""
    random = torch.Generator().manual_seed(0)
    areas = F.interpolate(torch.rand(batch, 3, 5, 7, generator=random), (height, width), mode="bilinear")
    return (200 * areas + 55 * torch.rand(batch, 3, height, width, generator=random)).to(torch.uint8)


def metadata(segmenter: Segmenter) -> dict[str, Any]:
    """What a file says of itself, in ONNX's metadata and in a .pt2's extra file."""
    kept: dict[str, Any] = {key: segmenter.facts[key] for key in ("checkpoint", "sha256", "step") if key in segmenter.facts}
    return {
        "input": "image: uint8 RGB (B, 3, H, W), 0 to 255",
        "output": "logits: float32 (B, classes, H, W); the highest is the class",
        "classes": segmenter.classes, "palette": segmenter.palette, "ignore_index": segmenter.ignore_index,
        "submitted": segmenter.submitted, "dataset": segmenter.dataset, "net": segmenter.built, **kept, "commit": commit(),
    }  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings and remarks, which are for those who write them."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
