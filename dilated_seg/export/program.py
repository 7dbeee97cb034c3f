"""Export a trained network as ONNX or torch.export's pt2, for programs without this package, or as a directory for the Hub.

A file maps ``image``, plain RGB (B, 3, H, W) in uint8, to ``logits`` (B, C, H, W) in float32: normalization is part of it,
softmax and argmax are not. Images of other than three channels are float32, 0 to 255. B, H and W are free unless a size is
given. Every file is loaded and its labels are compared with torch's before it replaces ``--out``.
"""

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dilated_seg.errors import UserError, describe_error, require_extra
from dilated_seg.export import hub
from dilated_seg.export.agreement import CHECKED, Size, compare, create_images
from dilated_seg.inference.load import load
from dilated_seg.models.outputs import resize_to_image, resizes, split_outputs
from dilated_seg.models.segmenter import Segmenter, normalize
from dilated_seg.models.torch_internals import trace_with_free_sizes
from dilated_seg.runs.version import commit
from dilated_seg.storage import atomic_path, require_writable

Format = Literal["onnx", "pt2", "hub"]

# Images on which a network with free sizes is traced: the first that it accepts and that torch.export can generalize.
TRACED: tuple[Size, ...] = ((2, 224, 240), (2, 252, 236))

MAX_SIDE = 20_000  # pixels, of --size

FACTS = "segmenter.json"  # the extra file of a .pt2


class Plain(nn.Module):
    """A segmenter for tracing, in contiguous memory format: channels last would fix the sizes."""

    mean: Tensor
    std: Tensor

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.net = segmenter.net.to(memory_format=torch.contiguous_format)
        self.resizes = False  # whether the last image that was not traced had logits of another size
        self.register_buffer("mean", segmenter.mean)
        self.register_buffer("std", segmenter.std)

    def forward(self, image: Tensor) -> Tensor:
        logits, _ = split_outputs(self.net(normalize(image, self.mean, self.std)))
        if not torch.compiler.is_exporting():
            self.resizes = resizes(self.net, logits, image)  # in an export, a comparison of free sizes would fix them
        return resize_to_image(logits, image) if self.resizes else logits.float()


def export_network(
    source: str,
    form: Format,
    out: str,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    licence: str | None = None,
) -> None:
    """Write a trained network as a file, or as a directory for the Hub, and print its input, its output and the check.

    Raises:
        UserError: The source or an option is wrong, the network cannot be exported, or the exported one gives other labels.
    """
    path = Path(out)
    check_output(path, form, size, overwrite)
    segmenter = load(source)
    if segmenter.crf and form != "hub":
        raise UserError(f"{source} was trained with a CRF, whose lattice differs for each image: use --format hub, not {form}")
    if form == "hub":
        hub.save(segmenter, path, licence)
        print(compare(segmenter, load(path), CHECKED))
        print(f"written: {path}/ ({', '.join(sorted(file.name for file in path.iterdir()))})")
        return
    try:
        with atomic_path(path) as partial:
            partial.touch()  # fails now instead of after minutes of tracing
            agreement = write(Plain(segmenter).eval(), describe_segmenter(segmenter), form, partial, size)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error.strerror or error}") from error
    height, width = size or ("H", "W")
    channels = len(segmenter.classes)
    print(f"{describe_input(segmenter, height, width)}; logits: float32 (B, {channels}, {height}, {width})")
    print(f"{agreement}\nwritten: {path} ({path.stat().st_size / 1e6:,.1f} MB)")


def check_output(path: Path, form: Format, size: tuple[int, int] | None, overwrite: bool) -> None:
    """Raise UserError unless the output can be written, its format's packages are installed and its size can be checked."""
    if form != "hub":
        require_writable(path, f".{form}", overwrite)
    elif os.path.lexists(path) and not overwrite:
        raise UserError(f"--out {path} exists: give another name, or replace it with --overwrite")
    if form == "onnx":
        require_extra("--format onnx", "onnx", "onnx", "onnxscript", "onnxruntime")
    if size and max(size) > MAX_SIDE:
        raise UserError(f"--size {size[0]} {size[1]} is too large to be checked: give at most {MAX_SIDE:,} pixels a side")


def write(plain: Plain, facts: dict[str, Any], form: Format, path: Path, size: tuple[int, int] | None = None) -> str:
    """Write a file, load it and return a sentence on how its labels agree with torch's."""
    program = trace(plain, size)
    if form == "onnx":
        write_onnx(program, facts, path)
    else:
        content = io.BytesIO()  # torch raises no OSError if the disk is full
        torch.export.save(program, content, extra_files={FACTS: json.dumps(facts)})
        path.write_bytes(content.getbuffer())
    run = read_onnx(path) if form == "onnx" else torch.export.load(path).module()
    return compare(plain, run, tuple((batch, *size) for batch in (1, 2)) if size else CHECKED)


def trace(plain: Plain, size: tuple[int, int] | None = None) -> ExportedProgram:
    """Return the network as a graph for any number of images and, without ``size``, any height and width.

    Raises:
        UserError: The network does not accept images of the traced size, or torch.export cannot trace it.
    """
    axes = {0: Dim.DYNAMIC} if size else {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    failed: Exception | None = None
    for example in [(2, *size)] if size else TRACED:
        image = create_images(*example, len(plain.mean))
        try:
            with silence_exporters(), torch.no_grad(), trace_with_free_sizes():
                plain(image)
                return torch.export.export(plain, (image,), dynamic_shapes=(axes,))
        except Exception as error:  # a network may raise anything
            failed = error
    if isinstance(failed, UserError):
        raise failed
    remedy = "use --format hub" if size else "fix the size of its images with --size HEIGHT WIDTH"
    raise UserError(f"torch.export cannot trace {type(plain.net).__name__} ({describe_error(failed)}): {remedy}") from failed  # type: ignore[arg-type]


def write_onnx(program: ExportedProgram, facts: dict[str, Any], path: Path) -> None:
    """Write an .onnx file with a description of the network in its metadata.

    Raises:
        UserError: ONNX lacks an operation of the network, or the file would be larger than a single one can be (2 GB).
    """
    try:
        with silence_exporters():
            exported: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=["image"], output_names=["logits"]
            )
            exported.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
            shape = exported.model.graph.inputs[0].shape
            for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
                if not isinstance(shape[axis], int):
                    shape[axis] = name
            exported.save(path, external_data=False)
    except OSError:
        raise
    except Exception as error:  # as torch.export
        cause = describe_error(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise UserError(f"this network cannot be written as ONNX ({cause}): use --format pt2") from error


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an .onnx file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


def describe_input(segmenter: Segmenter, height: int | str = "H", width: int | str = "W") -> str:
    """Return type and shape of a program's images: bytes of RGB, or floats of other channels, which may have had 16 bits."""
    channels = len(segmenter.mean)
    return f"image: {'uint8 RGB' if channels == 3 else 'float32'} (B, {channels}, {height}, {width})"


def describe_segmenter(segmenter: Segmenter) -> dict[str, Any]:
    """Return the description of a file, for ONNX's metadata and a .pt2's extra file."""
    kept: dict[str, Any] = {key: segmenter.facts[key] for key in ("checkpoint", "sha256", "step") if key in segmenter.facts}
    return {
        "input": f"{describe_input(segmenter)}, 0 to 255",
        "output": "logits: float32 (B, classes, H, W); the highest is the class",
        "classes": segmenter.classes, "palette": segmenter.palette, "ignore_index": segmenter.ignore_index,
        "submitted": segmenter.submitted, "dataset": segmenter.dataset, "net": segmenter.built, **kept, "commit": commit(),
    }  # fmt: skip


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Suppress the warnings and log messages of torch's exporters, which users cannot act on."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
