"""Counts of a prediction's pixels, stratified by object size and by distance to a boundary.

A valid pixel is in one bin of each of three stratifications. Pixels are counted by (bin, class, predicted class), so the
bins of an image add up to its confusion matrix. Where a mask has ``ignore_index``, the prediction is ignored too, so that
a perfect prediction has the mask's boundaries. Ignored pixels count nowhere, but they end objects and have a boundary like a
class. The image's border is not a boundary.

- ``size``: the number of pixels of the connected region of one class (8 neighbours) of the mask that a pixel is part of.
- ``boundary``: the chessboard distance to the nearest pixel of another value in the mask.
- ``boundary_iou``: whether a pixel is within d of another value: in the mask, in the prediction, in both. It serves Boundary
  IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021,
  https://arxiv.org/abs/2103.16562), which counts the image's border as a boundary too.
"""

import math

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIZES = (16, 64, 256, 1024, 4096, 16384)  # pixels: the smallest region of each bin but the first
MAX_BOUNDARY_DISTANCE = 40  # pixels: all larger distances are one bin
DIAGONAL = 0.02  # d, the width of Boundary IoU's band, as a fraction of the image's diagonal

NEITHER, TRUTH, PREDICTION, BOTH = range(4)  # bins of ``boundary_iou``: which of the two has a boundary within d

# Number of bins. Those of ``boundary`` are 0, which is empty, the distances 1 to MAX_BOUNDARY_DISTANCE, and all larger.
STRATA = {"size": len(SIZES) + 1, "boundary": MAX_BOUNDARY_DISTANCE + 2, "boundary_iou": 4}


def count_strata(prediction: np.ndarray, mask: np.ndarray, num_classes: int, ignore_index: int = 255) -> dict[str, np.ndarray]:
    """Count the pixels of each bin by class and predicted class, for images of one size.

    Args:
        prediction: Class ids (B, H, W).
        mask: Class ids, and ``ignore_index`` where unlabelled (B, H, W).
        num_classes: C, not counting the ignored label.
        ignore_index: The mask value of ignored pixels.

    Returns:
        For each name in ``STRATA``: int64 (B, bins, C, C), whose entry [b, s, t, p] counts the pixels of image b in bin s of
        class t that are predicted as p.
    """
    side = num_classes + 1  # ignored pixels are counted as one more class, removed at the end: faster than selecting pixels
    shapes: dict[str, tuple[int, ...]] = {name: (len(mask), count, side, side) for name, count in STRATA.items()}
    if not mask.size:
        return {name: np.zeros(shape, np.int64)[..., 1:, 1:] for name, shape in shapes.items()}
    values = np.empty((2, *mask.shape), np.min_scalar_type(side))
    values[0], values[1] = mask, prediction
    np.copyto(values, num_classes, where=mask == ignore_index)
    d = get_band_width(*mask.shape[1:])
    edges = differ_from_neighbour(values)
    distance = measure_boundary_distance(edges[0], max(MAX_BOUNDARY_DISTANCE, d))
    bands = (distance <= d) * np.uint8(TRUTH) + (measure_boundary_distance(edges[1], d) <= d) * np.uint8(PREDICTION)
    pair = values[0] * np.min_scalar_type(4 * side**2).type(side) + values[1]
    counts = count_by_run(values, pair, bands, shapes)
    counts["boundary"] = count_by_pixel(np.minimum(distance, MAX_BOUNDARY_DISTANCE + 1), pair, shapes["boundary"])
    return {name: counts[name][..., :num_classes, :num_classes] for name in STRATA}


def count_by_pixel(stratum: np.ndarray, pair: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Count each combination of bin (B, H, W) and pair of true and predicted class in each image; see `count_by_run`."""
    kind: type[np.integer] = np.uint16 if math.prod(shape) < 2**16 else np.int64
    index = stratum * kind(math.prod(shape[2:])) + pair
    index += np.arange(0, math.prod(shape), math.prod(shape[1:])).astype(kind)[:, None, None]
    return np.bincount(index.ravel(), minlength=math.prod(shape)).reshape(shape)


def count_by_run(
    values: np.ndarray, pair: np.ndarray, bands: np.ndarray, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Count bins of sizes and bands, which are constant in runs of pixels along a row, once per run instead of per pixel.

    Args:
        values: The masks and the predictions (2, B, H, W).
        pair: True class times the number of values, plus predicted class (B, H, W).
        bands: The bins of ``boundary_iou`` (B, H, W).
        shapes: Shape of each stratification's counts: images, bins, values, values.
    """
    starts = find_runs(pair * pair.dtype.type(4) + bands)
    lengths = np.diff(starts, append=pair.size)
    sizes, run = bin_regions(values[0])
    strata = {"size": sizes[run[starts]], "boundary_iou": bands.ravel()[starts]}
    image, pairs = starts // math.prod(pair.shape[1:]), pair.ravel()[starts]
    counts = {}
    for name, stratum in strata.items():
        shape = shapes[name]
        index = (image * shape[1] + stratum) * math.prod(shape[2:]) + pairs
        counts[name] = np.bincount(index, lengths, math.prod(shape)).astype(np.int64).reshape(shape)
    return counts


def get_band_width(height: int, width: int) -> int:
    """Return Boundary IoU's d for an image of this size, in pixels."""
    return max(1, round(DIAGONAL * math.hypot(height, width)))


def find_runs(values: np.ndarray) -> np.ndarray:
    """Return where each run of equal values in a row (..., H, W) starts, as indices into the flat array."""
    first = np.ones(values.shape, bool)
    np.not_equal(values[..., 1:], values[..., :-1], out=first[..., 1:])
    return np.flatnonzero(first)


def bin_regions(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the size bin of the region that each run is part of, and the run that each pixel is part of (flat).

    Regions are the connected components of a graph whose nodes are the runs, far fewer than pixels. An image of three rows,
    its runs numbered, and the graph's edges between runs of one value that touch:

        a a b b      0 0 1 1      0-3 (a; columns 0 and 1)      1-4 (b; column 3)
        a a a b      3 3 3 4      3-5 (a; by the corner of columns 2 and 3)
        b b b a      ...          regions: a = {0, 3, 5}, b = {1, 4}, and the b of the last row
    """
    starts = find_runs(values)
    lengths = np.diff(starts, append=values.size)
    run = np.repeat(np.arange(len(starts), dtype=np.int32), lengths)
    pixel, neighbour = find_touching(values, starts)
    graph = coo_array((np.ones(len(pixel), bool), (run[pixel], run[neighbour])), shape=(len(starts), len(starts)))
    region = connected_components(graph, directed=False)[1]
    return np.searchsorted(SIZES, np.bincount(region, lengths), "right")[region], run


def find_touching(values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two neighbouring pixels (flat indices) for every two runs of one value that touch, by a side or a corner.

    Args:
        values: Images (..., H, W).
        starts: The starts of their runs; see `find_runs`.
    """
    height, width = values.shape[-2:]
    row, column = np.divmod(starts % (height * width), width)
    # The columns that two runs of neighbouring rows share begin where one of the two starts: look above and below each start.
    # Runs that share no column touch by a corner where the lower one starts: of its first pixel, or of the one before it.
    above, below, corner = starts[row > 0], starts[row < height - 1], starts[(row > 0) & (column > 0)]
    pixel = np.concatenate([above, below, corner, corner - 1])
    neighbour = np.concatenate([above - width, below + width, corner - width - 1, corner - width])
    same = values.ravel()[pixel] == values.ravel()[neighbour]
    return pixel[same], neighbour[same]


def differ_from_neighbour(values: np.ndarray) -> np.ndarray:
    """Return whether one of a pixel's 8 neighbours has another value (..., H, W)."""
    return reduce_3x3(np.minimum, values, 1) != reduce_3x3(np.maximum, values, 1)


def reduce_3x3(extreme: np.ufunc, values: np.ndarray, step: int) -> np.ndarray:
    """Return the minimum or maximum of each pixel and the 8 at ``step`` pixels from it, straight or diagonally (..., H, W)."""
    for axis in (-1, -2):
        reduced = values.copy()
        target, source = reduced.swapaxes(axis, 0), values.swapaxes(axis, 0)
        extreme(target[step:], source[:-step], out=target[step:])
        extreme(target[:-step], source[step:], out=target[:-step])
        values = reduced
    return values


def measure_boundary_distance(edges: np.ndarray, limit: int) -> np.ndarray:
    """Return the chessboard distance to another value (..., H, W): 1 at the edges; limit + 1 where it is larger.

    Distances grow by doubling. Let all distances up to n be known. A pixel at distance D, n < D <= n + s, has a pixel at
    distance D - s among those s pixels from it, and none that is nearer: so its distance is their minimum plus s. With
    2 s <= n + 1 that pixel is on the way to the edge, so it is inside the image. From n = 1: s = 1, 1, 2, 3, 4, ...
    """
    distance = np.where(edges, 1, limit + 1).astype(np.min_scalar_type(2 * limit + 1))
    known = 1
    while known < limit:
        step = min((known + 1) // 2, limit - known)
        np.minimum(distance, reduce_3x3(np.minimum, distance, step) + distance.dtype.type(step), out=distance)
        known += step
    return distance
