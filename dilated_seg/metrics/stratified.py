"""Where in an image a network errs: a valid pixel lies in one stratum, by the size of its object or by how near a boundary is.

An evaluation counts pixels of (stratum, class, class predicted) for each of three stratifications, so what stands in the strata
of an image adds up to its confusion matrix. Void, where a mask has ``ignore_index``, is in no stratum; it is void in the
prediction as well, so that a perfect prediction has the truth's boundaries. In all of them it is a value like a class: it ends
objects and has a boundary. The image's border is no boundary.

``size`` is by the pixels of the connected region of one class (8 neighbours) in the mask that a pixel lies in. ``boundary`` is
by the chessboard distance to the nearest pixel of another value in the mask. ``boundary_iou`` says whether a pixel lies within
d of another value: in truth, in the prediction, in both. It is for Boundary IoU (Cheng et al., "Boundary IoU: Improving
Object-Centric Image Segmentation Evaluation", CVPR 2021, https://arxiv.org/abs/2103.16562), which takes the image's border for
a boundary too.
"""

import math

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIZES = (16, 64, 256, 1024, 4096, 16384)  # pixels, with which a bin of larger regions begins
WIDTH = 40  # pixels: the largest distance from a boundary that is told apart
DIAGONAL = 0.02  # of the image's diagonal is d, the width of Boundary IoU's band

NEITHER, TRUTH, PREDICTION, BOTH = range(4)  # which of them has a boundary near: the strata of ``boundary_iou``

# Strata of each stratification. Those of ``boundary`` are 0, which is empty, the distances 1 to WIDTH, and all beyond.
STRATA = {"size": len(SIZES) + 1, "boundary": WIDTH + 2, "boundary_iou": 4}


def strata(prediction: np.ndarray, mask: np.ndarray, num_classes: int, ignore_index: int = 255) -> dict[str, np.ndarray]:
    """Pixels in each stratum of each stratification, by class and class predicted, of images of one size.

    Args:
        prediction: Class ids (B, H, W).
        mask: Class ids, and ``ignore_index`` where unlabelled (B, H, W).
        num_classes: C, not counting the ignored label.
        ignore_index: The mask value that counts nowhere.

    Returns:
        By the names of ``STRATA``: int64 (B, strata, C, C), entry [b, s, t, p] of pixels of image b in stratum s, of class t,
        predicted as p.
    """
    side = num_classes + 1  # void has a row and a column of its own: no pass over the pixels is spent on leaving it out
    shapes: dict[str, tuple[int, ...]] = {name: (len(mask), count, side, side) for name, count in STRATA.items()}
    if not mask.size:
        return {name: np.zeros(shape, np.int64)[..., 1:, 1:] for name, shape in shapes.items()}
    values = np.empty((2, *mask.shape), np.min_scalar_type(side))
    values[0], values[1] = mask, prediction
    np.copyto(values, num_classes, where=mask == ignore_index)
    d = band_width(*mask.shape[1:])
    edges = has_other_neighbour(values)
    distance = distances(edges[0], max(WIDTH, d))
    bands = (distance <= d) * np.uint8(TRUTH) + (distances(edges[1], d) <= d) * np.uint8(PREDICTION)
    pair = values[0] * np.min_scalar_type(4 * side**2).type(side) + values[1]
    found = counts_of_runs(values, pair, bands, shapes) | {
        "boundary": counts_of_pixels(np.minimum(distance, WIDTH + 1), pair, shapes["boundary"])
    }
    return {name: found[name][..., :num_classes, :num_classes] for name in STRATA}


def counts_of_pixels(stratum: np.ndarray, pair: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """How often each stratum (B, H, W) meets each pair of truth and prediction in each image: see ``counts_of_runs``."""
    kind: type[np.integer] = np.uint16 if math.prod(shape) < 2**16 else np.int64
    index = stratum * kind(math.prod(shape[2:])) + pair
    index += np.arange(0, math.prod(shape), math.prod(shape[1:])).astype(kind)[:, None, None]
    return np.bincount(index.ravel(), minlength=math.prod(shape)).reshape(shape)


def counts_of_runs(
    values: np.ndarray, pair: np.ndarray, bands: np.ndarray, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The counts of the strata that stay the same for a while in a row, by run instead of by pixel: sizes and bands.

    Args:
        values: The truth and the predictions (2, B, H, W).
        pair: Truth times the number of values, plus prediction (B, H, W).
        bands: The strata of ``boundary_iou`` (B, H, W).
        shapes: Of the counts: images, strata, values, values.
    """
    starts = runs(pair * pair.dtype.type(4) + bands)
    lengths = np.diff(starts, append=pair.size)
    sizes, run = regions(values[0])
    strata = {"size": sizes[run[starts]], "boundary_iou": bands.ravel()[starts]}
    image, pairs = starts // math.prod(pair.shape[1:]), pair.ravel()[starts]
    found = {}
    for name, stratum in strata.items():
        shape = shapes[name]
        index = (image * shape[1] + stratum) * math.prod(shape[2:]) + pairs
        found[name] = np.bincount(index, lengths, math.prod(shape)).astype(np.int64).reshape(shape)
    return found


def band_width(height: int, width: int) -> int:
    """Boundary IoU's d for an image of this size, in pixels."""
    return max(1, round(DIAGONAL * math.hypot(height, width)))


def runs(values: np.ndarray) -> np.ndarray:
    """Where each stretch of one value in a row begins, as indices into the flat array (..., H, W)."""
    first = np.ones(values.shape, bool)
    np.not_equal(values[..., 1:], values[..., :-1], out=first[..., 1:])
    return np.flatnonzero(first)


def regions(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of the size of the region that each run is part of, and which run each pixel is part of (flat)."""
    starts = runs(values)
    lengths = np.diff(starts, append=values.size)
    run = np.repeat(np.arange(len(starts), dtype=np.int32), lengths)
    one, other = touching(values, starts)
    graph = coo_array((np.ones(len(one), bool), (run[one], run[other])), shape=(len(starts), len(starts)))
    region = connected_components(graph, directed=False)[1]
    return np.searchsorted(SIZES, np.bincount(region, lengths), "right")[region], run


def touching(values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two pixels of one value, as indices into the flat array, for any two runs of it that touch, by corners at least.

    Args:
        values: Images (..., H, W).
        starts: Where their ``runs`` begin.
    """
    height, width = values.shape[-2:]
    row, column = np.divmod(starts % (height * width), width)
    # The columns that two runs share begin where one of them does; those that share none touch where the lower one begins.
    above, below, corner = starts[row > 0], starts[row < height - 1], starts[(row > 0) & (column > 0)]
    one = np.concatenate([above, below, corner, corner - 1])
    other = np.concatenate([above - width, below + width, corner - width - 1, corner - width])
    same = values.ravel()[one] == values.ravel()[other]
    return one[same], other[same]


def has_other_neighbour(values: np.ndarray) -> np.ndarray:
    """Whether one of a pixel's 8 neighbours has another value than it (..., H, W)."""
    return among_nine(np.minimum, values, 1) != among_nine(np.maximum, values, 1)


def among_nine(extreme: np.ufunc, values: np.ndarray, step: int) -> np.ndarray:
    """The least or greatest value of a pixel and the 8 that are a step away, straight or diagonally (..., H, W)."""
    for axis in (-1, -2):
        found = values.copy()
        into, here = found.swapaxes(axis, 0), values.swapaxes(axis, 0)
        extreme(into[step:], here[:-step], out=into[step:])
        extreme(into[:-step], here[step:], out=into[:-step])
        values = found
    return values


def distances(edges: np.ndarray, furthest: int) -> np.ndarray:
    """Chessboard distance to another value (..., H, W): 1 at the edges, and furthest + 1 for all beyond.

    When distances up to n are known, one up to n + step is a step more than that of some pixel a step away; with
    2 * step <= n + 1 this one lies no further than the edge itself, so inside the image.
    """
    found = np.where(edges, 1, furthest + 1).astype(np.min_scalar_type(2 * furthest + 1))
    known = 1
    while known < furthest:
        step = min((known + 1) // 2, furthest - known)
        np.minimum(found, among_nine(np.minimum, found, step) + found.dtype.type(step), out=found)
        known += step
    return found
