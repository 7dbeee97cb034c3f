"""Writes .caffemodel files, in both wire forms, from nothing but the protocol buffer format."""

import struct
from itertools import pairwise

import numpy as np


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def chunk(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def integer(number, value):
    return varint(number << 3) + varint(value)


def blob(values, legacy, packed):
    values = np.asarray(values, "<f4")
    if legacy:
        shape = (1,) * (4 - values.ndim) + values.shape
        head = b"".join(integer(n, size) for n, size in enumerate(shape, start=1))
    elif packed:
        head = chunk(7, chunk(1, b"".join(varint(size) for size in values.shape)))
    else:
        head = chunk(7, b"".join(integer(1, size) for size in values.shape))
    if packed:
        return head + chunk(5, values.tobytes()) + chunk(6, b"")
    return head + b"".join(varint(5 << 3 | 5) + struct.pack("<f", v) for v in values.ravel())


def caffemodel(layers, form="v2", packed=True):
    """Bytes of a model: ``layers`` maps a name to its arrays; V1 files have legacy sizes, V2 files a BlobShape."""
    content = chunk(1, b"a network") + (b"" if form == "v1" else integer(5, 1))
    names = ["data", *layers, "loss"]
    for before, name in pairwise([None, *names]):
        blobs = layers.get(name, ())
        if form == "v1":
            body = chunk(2, (before or "data").encode()) + chunk(3, name.encode()) + chunk(4, name.encode()) + integer(5, 4)
            body += b"".join(chunk(6, blob(values, True, packed)) for values in blobs)
            content += chunk(2, body + varint(7 << 3 | 5) + struct.pack("<f", 1.0))
        else:
            body = (
                chunk(1, name.encode()) + chunk(2, b"Convolution") + b"".join(chunk(7, blob(v, False, packed)) for v in blobs)
            )
            content += chunk(100, body + chunk(106, integer(1, 64)))
    return content
