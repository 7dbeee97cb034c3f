"""Write the layers of a Keras file (.h5, .weights.h5) to standard output as .npz: a program, which `readers` runs.

A damaged HDF5 file can crash or hang its library, so that no other process should open it. Kernels get torch's layout.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

MAX_EXPANSION = 200  # size of all arrays over that of the file; compressed constant arrays stay below it
POOL5_CELLS = 7  # a side of the maps that Keras' VGG flattens before fc1


def iterate_layers(file: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - h5py has no types
    """Yield the layer's name and the array of each weight, in the order of the layer's weights.

    Keras 3 stores layers in groups with an array for each number below ``vars``. Before, lists of names were attributes.
    """
    root = file.get("model_weights", file)
    if "layer_names" in root.attrs:
        for group_name in map(decode, root.attrs["layer_names"]):
            for name in map(decode, root[group_name].attrs["weight_names"]):
                yield name.rpartition("/")[0].rpartition("/")[2] or group_name, root[group_name][name]
        return
    groups: list[tuple[str, Any]] = []
    root.visititems(lambda path, item: groups.append((path, item)) if path.rpartition("/")[2] == "vars" else None)
    for path, group in groups:
        if not path.startswith("optimizer/"):
            name = decode(group.attrs.get("name", path.removesuffix("/vars")))
            yield from ((name, group[number]) for number in sorted(group, key=int))


def decode(name: str | bytes) -> str:
    """Return text that HDF5 stores as text or as bytes."""
    return name.decode() if isinstance(name, bytes) else name


def transpose(layer: str, values: np.ndarray) -> np.ndarray:
    """Return a kernel in torch's layout: output channels first; inputs of VGG's fc1 by channel, then row and column."""
    if layer == "fc1" and values.ndim == 2 and values.shape[0] % POOL5_CELLS**2 == 0:
        values = values.reshape(POOL5_CELLS, POOL5_CELLS, -1, values.shape[1])
    return values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T


def main(path: str) -> None:
    """Write the arrays, named LAYER/0, LAYER/1, ... in the order of the layer's weights."""
    arrays: dict[str, np.ndarray] = {}
    count: dict[str, int] = {}
    room = MAX_EXPANSION * max(os.path.getsize(path), 1 << 20)
    with h5py.File(path) as file:
        for layer, weight in iterate_layers(file):
            room -= weight.nbytes
            if weight.is_virtual or weight.external:
                sys.exit(f"holds {layer} in other files: save it in one")
            if room < 0:
                sys.exit("would unpack to far more bytes than weights do")
            number = count[layer] = count.get(layer, -1) + 1
            arrays[f"{layer}/{number}"] = np.ascontiguousarray(transpose(layer, weight[()]))
    np.savez(sys.stdout.buffer, **arrays)  # type: ignore[arg-type] # mypy takes the names for allow_pickle


if __name__ == "__main__":
    main(sys.argv[1])
