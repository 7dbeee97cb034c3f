"""Trace of a forward pass that computes the receptive field of each column of each map.

No values are computed: tensors are on the "meta" device, which has shapes only. For each column of a map, the first and the
last image column that it depends on are known; an operation combines these as it combines values. Networks have square
kernels, so only the width is traced. A convolution of kernel 3, stride 2 and padding 1 on an image of 5 columns:

    columns combined, -1 is padding     (-1, 0, 1)   (1, 2, 3)   (3, 4, -1)
    first and last column                  0, 1        1, 3        3, 4
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dilated_seg.models.layers import mirror_indices
from dilated_seg.models.torch_internals import TorchDispatchMode

NOTHING = (1 << 60, -(1 << 60))  # first and last column of a position that depends on no column
Field = tuple[np.ndarray, np.ndarray]  # of each column of a map: first and last column of the image that it depends on

aten = torch.ops.aten


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, traces the receptive fields of all maps that depend on an image, multiply-adds and new memory.

    Multiply-adds count all taps of convolutions, those in the padding too.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        columns = np.arange(image.shape[-1])
        # Fields and storages by id of the tensor, which is unique while a reference to the tensor is kept.
        self._kept: list[Any] = [image]
        self._fields: dict[int, Field | None] = {id(image): (columns, columns)}  # None of maps whose columns were mixed
        self._storages = {id(image.untyped_storage()): image.untyped_storage()}
        self._windows: dict[int, tuple[int, int, int]] = {}  # kernel, stride, padding of each pooling, by its outputs
        self.lost = ""  # the first operation after which fields are unknown, such as attention
        self.multiply_adds = 0
        self.bytes = 0

    def field(self, maps: Tensor) -> Field | None:
        """Return the first and last image column that each column of ``maps`` depends on; None if on none, or if unknown."""
        return self._fields.get(id(maps))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        outputs = [out for out in (result if isinstance(result, tuple | list) else [result]) if isinstance(out, Tensor)]
        self._kept.append((args, outputs))
        if not outputs or outputs[0].dim() < 2:
            return result
        follow = FOLLOW.get(func.overloadpacket)
        if follow:
            source = self._fields.get(id(args[0][0] if isinstance(args[0], list | tuple) else args[0]))
            field = follow(self, source, args, outputs) if source is not None else None
        else:
            field = self._union(args, outputs[0].shape[-1])
        depends = field is not None or any(id(a) in self._fields for a in flatten(args))
        if depends and field is None:
            self.lost = self.lost or str(func.overloadpacket)
        for out in outputs:
            if depends:
                self._fields[id(out)] = field
            storage = out.untyped_storage()
            if depends and id(storage) not in self._storages:
                self._storages[id(storage)] = storage
                self.bytes += out.numel() * out.element_size()
        return result

    def _union(self, args: Any, width: int) -> Field | None:  # noqa: ANN401
        """Return the field of an elementwise operation: the union of its inputs' fields, None if one is unknown."""
        fields = [self._fields[id(a)] for a in flatten(args) if id(a) in self._fields and a.shape[-1] in (1, width)]
        known = [np.broadcast_arrays(*field, np.empty(width))[:2] for field in fields if field is not None]
        if not known or len(known) < len(fields):
            return None
        return np.minimum.reduce([f[0] for f in known]), np.maximum.reduce([f[1] for f in known])


def flatten(args: Any) -> list[Tensor]:  # noqa: ANN401
    """Return the tensors among the arguments of an operation, those in lists too."""
    flat = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg])]
    return [a for a in flat if isinstance(a, Tensor)]


def gather(field: Field, indices: np.ndarray) -> Field:
    """Return the field of outputs that each combine the columns ``indices`` (outputs, taps), -1 for padding."""
    first, last = (np.append(side, nothing) for side, nothing in zip(field, NOTHING, strict=True))
    return first[indices].min(1), last[indices].max(1)


def windows(n: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> np.ndarray:
    """Return the columns, of n, that each output of a convolution or pooling combines (outputs, kernel); -1 for padding."""
    columns = np.arange(outputs)[:, None] * stride - padding + np.arange(kernel)[None, :] * dilation
    return np.where((columns >= 0) & (columns < n), columns, -1)


def last(sizes: Any) -> int:  # noqa: ANN401
    """Return the width's value of a number or of a pair (height, width)."""
    return int(sizes[-1] if isinstance(sizes, list | tuple) else sizes)


def convolution(trace: Trace, source: Field, args: Any, outputs: list[Tensor]) -> Field:  # noqa: ANN401
    """Trace a convolution: a column depends on its taps; of a transposed one, on the cells whose kernels contain it."""
    maps, weight, _, stride, padding, dilation, transposed, _, _ = args
    taps, n, out = weight[0].numel(), maps.shape[-1], outputs[0].shape[-1]
    trace.multiply_adds += (maps if transposed else outputs[0])[0].numel() * taps
    if not transposed:
        return gather(source, windows(n, out, weight.shape[-1], last(stride), last(padding), last(dilation)))
    at = np.arange(out)[:, None] + last(padding) - np.arange(weight.shape[-1])[None, :] * last(dilation)
    cell = at // last(stride)
    return gather(source, np.where((at % last(stride) == 0) & (cell >= 0) & (cell < n), cell, -1))


def pooling(trace: Trace, source: Field, args: Any, outputs: list[Tensor]) -> Field:  # noqa: ANN401
    """Trace a max pooling: a column depends on its whole window."""
    kernel = last(args[1])
    stride = last(args[2]) if len(args) > 2 and args[2] else kernel
    padding = last(args[3]) if len(args) > 3 else 0
    for out in outputs:
        trace._windows[id(out)] = (kernel, stride, padding)
    return gather(source, windows(args[0].shape[-1], outputs[0].shape[-1], kernel, stride, padding))


def unpooling(trace: Trace, source: Field, args: Any, outputs: list[Tensor]) -> Field:  # noqa: ANN401
    """Trace an unpooling: a column has the value of one of the cells whose windows contain it, or 0."""
    maps, indices = args[0], args[1]
    kernel, stride, padding = trace._windows[id(indices)]
    at = np.arange(outputs[0].shape[-1])[:, None] + padding - np.arange(kernel)[None, :]
    cell = at // stride
    return gather(source, np.where((at % stride == 0) & (cell >= 0) & (cell < maps.shape[-1]), cell, -1))


def bilinear(trace: Trace, source: Field, args: Any, outputs: list[Tensor]) -> Field:  # noqa: ANN401
    """Trace a bilinear interpolation: a column depends on the one or two nearest cells."""
    n, out = args[0].shape[-1], outputs[0].shape[-1]
    at = np.arange(out)
    aligned = args[2]
    position = at * (n - 1) / max(out - 1, 1) if aligned else np.maximum((at + 0.5) * n / out - 0.5, 0)
    position = np.round(position, 6)
    left, right = np.floor(position).astype(int), np.minimum(np.ceil(position).astype(int), n - 1)
    return gather(source, np.stack([left, right], axis=1))


def slicing(trace: Trace, source: Field, args: Any, outputs: list[Tensor]) -> Field:  # noqa: ANN401
    """Trace a slice along the width; others leave the columns."""
    maps, dim, start, end, step = list(args) + [0, None, None, 1][len(args) - 1 :]
    if dim % maps.dim() != maps.dim() - 1:
        return source
    return source[0][start:end:step], source[1][start:end:step]


def padding(trace: Trace, source: Field, args: Any, outputs: list[Tensor]) -> Field:  # noqa: ANN401
    """Trace a padding: zeros depend on no column, a replicated edge on those of the edge."""
    left, right = args[1][0], args[1][1]
    n = args[0].shape[-1]
    at = np.arange(-left, n + right)
    repeated = len(args) < 3  # replication has no fill value
    return gather(source, (np.clip(at, 0, n - 1) if repeated else np.where((at >= 0) & (at < n), at, -1))[:, None])


def selection(trace: Trace, source: Field, args: Any, outputs: list[Tensor]) -> Field:  # noqa: ANN401
    """Trace a reflection: a mirrored column depends on the same columns as its original."""
    maps, dim = args[0], args[1]
    if dim % maps.dim() != maps.dim() - 1:
        return source
    margin = (outputs[0].shape[-1] - maps.shape[-1]) // 2  # networks select rows and columns only to reflect their image
    return gather(source, mirror_indices(maps.shape[-1], margin).numpy()[:, None])


def averaging(trace: Trace, source: Field, args: Any, outputs: list[Tensor]) -> Field | None:  # noqa: ANN401
    """Trace a mean: one of all columns, as in squeeze and excitation, depends on all."""
    if args[0].dim() - 1 not in [axis % args[0].dim() for axis in args[1]]:
        return source
    whole = source[0].min(keepdims=True), source[1].max(keepdims=True)
    return whole if outputs[0].dim() == args[0].dim() else None


def permutation(trace: Trace, source: Field, args: Any, outputs: list[Tensor]) -> Field | None:  # noqa: ANN401
    """Trace a permutation of axes: unknown if columns are no longer the last axis."""
    return source if args[1][-1] % args[0].dim() == args[0].dim() - 1 else None


def mixing(trace: Trace, source: Field, args: Any, outputs: list[Tensor]) -> None:  # noqa: ANN401
    """Trace an exchange of axes or a product of matrices: unknown, since columns need not be the last axis."""


FOLLOW: dict[Any, Callable[[Trace, Field, Any, list[Tensor]], Field | None]] = {
    aten.convolution: convolution,
    aten.max_pool2d_with_indices: pooling,
    aten.avg_pool2d: pooling,
    aten.max_unpool2d: unpooling,
    aten.upsample_bilinear2d: bilinear,
    aten.slice: slicing,
    aten.constant_pad_nd: padding,
    aten.replication_pad2d: padding,
    aten.index_select: selection,
    aten.mean: averaging,
    aten.permute: permutation,
    aten.transpose: mixing,
    aten.mm: mixing,
    aten.bmm: mixing,
    aten.addmm: mixing,
}
