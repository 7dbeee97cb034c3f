"""Read .caffemodel files, without Caffe: a protocol buffer, ``NetParameter`` of caffe.proto, field by field.

Layers are in field 2 (V1, up to 2014) or 100 (V2); their blobs have four sizes (V1) or a ``BlobShape``. A message is a sequence
of fields: a varint ``number << 3 | wire type``, then a varint (type 0), 8 or 4 bytes (types 1 and 5), or a length and as many
bytes (type 2). Lengths are checked against the file and names, shapes and blobs are limited, so that reading any file needs at
most 4 times its size in memory, and 1 MiB. NVIDIA's Caffe stores half precision as bytes (field 12) of a type (field 10).
"""

import math
import mmap
import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from dilated_seg.errors import CorruptError

# Field numbers in caffe.proto.
V1_LAYERS, V2_LAYERS = 2, 100
LAYER_FIELDS = {V1_LAYERS: (4, 6), V2_LAYERS: (1, 7)}  # name, blobs
V0_LAYER = 1
LEGACY_SIZES, DATA, SHAPE, DOUBLES, RAW_TYPE, RAW = (1, 2, 3, 4), 5, 7, 8, 10, 12
RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}  # of NVIDIA's Caffe, which has integers too

MAX_DIMENSIONS = 32  # of a blob; Caffe's own limit
MAX_NAME_BYTES = 1000
MAX_BLOBS, BYTES_PER_BLOB = 500, 2000  # a file may have 500 blobs, and one more for every 2000 bytes


def read_layers(file: BinaryIO) -> dict[str, dict[str, Tensor]]:
    """Return the blobs of a .caffemodel of either form by layer, numbered "0", "1", ...

    Raises:
        CorruptError: The file is damaged, empty, or of another format.
    """
    if not os.fstat(file.fileno()).st_size:
        raise CorruptError("is empty")
    layers: dict[str, dict[str, Tensor]] = {}
    count = 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as content:
        try:
            for number, _, start, end in iterate_fields(content, 0, len(content)):
                if number not in LAYER_FIELDS:
                    continue
                limit = MAX_BLOBS + len(content) // BYTES_PER_BLOB - count
                name, blobs = read_layer(content, start, end, *LAYER_FIELDS[number], limit)
                count += len(blobs)
                if name in layers and blobs:
                    raise CorruptError(f"has two layers named {name}")
                if blobs:
                    layers[name] = {str(i): blob for i, blob in enumerate(blobs)}
        except (UnicodeDecodeError, OverflowError) as error:
            raise CorruptError(f"is damaged or no Caffe model: {error}") from error
    if not layers:
        raise CorruptError("is damaged or no file of weights: it has no layer with weights")
    return layers


def iterate_fields(content: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of a message: number, wire type, start and end of the value; of varints the value and 0."""
    while at < end:
        tag, at = read_varint(content, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = read_varint(content, at, end)
            yield number, wire, value, 0
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = read_varint(content, at, end)
        if size is None or number == 0 or size > end - at:
            raise CorruptError(f"is damaged or no Caffe model: the field at byte {at:,} is not valid")
        yield number, wire, at, at + size
        at += size


def read_varint(content: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return an integer of up to ten bytes, the lowest 7 bits first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise CorruptError(f"is damaged or no Caffe model: it ends at byte {at:,}, within a number")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise CorruptError(f"is damaged or no Caffe model: the number at byte {at:,} has no end")


def read_layer(
    content: memoryview, start: int, end: int, name_field: int, blob_field: int, limit: int
) -> tuple[str, list[Tensor]]:
    """Return a layer's name and its blobs, at most ``limit``."""
    name, blobs = "", list[Tensor]()
    for number, wire, a, b in iterate_fields(content, start, end):
        if wire == 2 and number == name_field:
            if b - a > MAX_NAME_BYTES:
                raise CorruptError(f"is damaged or no Caffe model: a layer's name has {b - a:,} bytes")
            name = bytes(content[a:b]).decode()
        elif wire == 2 and number == blob_field:
            if len(blobs) == limit:
                raise CorruptError("is damaged or no Caffe model: it has too many blobs for its size")
            blobs.append(read_blob(content, a, b, name))
        elif wire == 2 and number == V0_LAYER and blob_field == LAYER_FIELDS[V1_LAYERS][1]:
            raise CorruptError("is in Caffe's first format (2013): convert it with upgrade_net_proto_binary")
    return name, blobs


def read_blob(content: memoryview, start: int, end: int, name: str) -> Tensor:
    """Return a blob in its shape: that of its BlobShape, or V1's four sizes."""
    legacy: dict[int, int] = {}
    shape: list[int] | None = None
    data = bytearray()
    raw, raw_type = (0, 0), 0
    for number, wire, a, b in iterate_fields(content, start, end):
        if number in LEGACY_SIZES and wire == 0:
            legacy[number] = a
        elif number == SHAPE and wire == 2:
            shape = read_shape(content, a, b, name)
        elif number == RAW_TYPE and wire == 0:
            raw_type = a
        elif number == RAW and wire == 2:
            raw = a, b
        elif number == DATA and wire in (2, 5):
            append_values(data, content, a, b, "<f4", name)
        elif number == DOUBLES and wire == 2:
            append_values(data, content, a, b, "<f8", name)
    if raw_type not in RAW_TYPES:
        raise CorruptError(f"has integers in a blob of layer {name}: save weights as floating-point numbers")
    append_values(data, content, *raw, RAW_TYPES[raw_type], name)
    values = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if shape is None:
        shape = [legacy.get(n, 1) for n in LEGACY_SIZES] if legacy else [len(values)]
    if math.prod(shape) != len(values) or max(shape, default=0) > len(values):
        raise CorruptError(f"is damaged: a blob of layer {name} of shape {shape} has {len(values):,} values")
    return torch.from_numpy(values).reshape(shape)


def append_values(data: bytearray, content: memoryview, start: int, end: int, dtype: str, name: str) -> None:
    """Append values to ``data`` as float32."""
    if (end - start) % np.dtype(dtype).itemsize:
        raise CorruptError(f"is damaged: a blob of layer {name} ends within a value")
    if dtype == "<f4":
        data += content[start:end]
        return
    with np.errstate(all="ignore"):  # values too large for float32 become infinite
        data += np.frombuffer(content[start:end], dtype).astype("<f4").data.cast("B")


def read_shape(content: memoryview, start: int, end: int, name: str) -> list[int]:
    """Return the sizes of a BlobShape, packed or one by one."""
    shape: list[int] = []
    for number, wire, a, b in iterate_fields(content, start, end):
        if number == 1 and wire == 0:
            shape.append(a)
        while number == 1 and wire == 2 and a < b and len(shape) <= MAX_DIMENSIONS:
            value, a = read_varint(content, a, b)
            shape.append(value)
        if len(shape) > MAX_DIMENSIONS:
            raise CorruptError(f"is damaged: a blob of layer {name} has more than {MAX_DIMENSIONS} dimensions")
    return shape
