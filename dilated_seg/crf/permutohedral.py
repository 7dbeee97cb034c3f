"""Gaussian filtering in d dimensions in linear time: splat, blur, slice on the permutohedral lattice.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010. The d features of a
pixel are mapped to x = E p in the hyperplane H_d of R^(d+1) whose coordinates add up to 0. The lattice's vertices there have
integer coordinates that leave the same remainder when divided by d + 1; they cut H_d into equal simplices. A pixel splats its
value onto the d + 1 vertices of its simplex, by barycentric coordinates b; vertices blur along the d + 1 axes of the lattice;
the pixel is sliced from the vertices by the same b.

An example, d = 2, for the pixel at x = (1.2, 0, -1.2):

    nearest point of remainder 0    y = (0, 0, 0)
    rank of the coordinates of x-y  0, 1, 2 (0: the largest)
    vertices of the simplex         v_0 = y = (0, 0, 0), v_1 = (1, 1, -2), v_2 = (2, -1, -1): of remainder 0, 1, 2
    barycentric coordinates         b = (0.2, 0.4, 0.4), since x = 0.2 v_0 + 0.4 v_1 + 0.4 v_2

Each step is a sparse matrix that stays the same for all iterations of mean field, and whose transpose is known (splat and slice
are each other's, a blur is its own), so gradients cost what the values cost.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dilated_seg.errors import UserError

SMALL = 1 << 15  # torch computes on tensors of fewer elements in one thread


class Matrix(NamedTuple):
    """A sparse matrix: row r has ``weights[k]`` in column ``columns[k]``, for k from ``starts[r]`` to ``starts[r + 1]``."""

    columns: Tensor
    starts: Tensor
    weights: Tensor

    def times(self, values: Tensor) -> Tensor:
        """Return the product with a dense matrix; rows are summed in order, the same on any number of threads."""
        weights = self.weights.to(values.dtype)
        return F.embedding_bag(
            self.columns, values, self.starts, mode="sum", per_sample_weights=weights, include_last_offset=True
        )

    def rows(self, part: slice) -> "Matrix":
        """Return rows of a matrix whose rows have equally many entries."""
        width = len(self.columns) // (len(self.starts) - 1)
        entries = slice(part.start * width, part.stop * width)
        return Matrix(self.columns[entries], self.starts[: part.stop - part.start + 1], self.weights[entries])


class Times(torch.autograd.Function):
    """``matrix.times(values)``, whose gradient with respect to the values is a product with the transpose."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, matrix: Matrix, transpose: Matrix) -> Tensor:  # noqa: ANN401
        ctx.matrix, ctx.transpose = matrix, transpose
        return matrix.times(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return Times.apply(gradient.contiguous(), ctx.transpose, ctx.matrix), None, None


class Lattice(NamedTuple):
    """A Gaussian kernel between N pixels by way of M vertices: slice . blurs . splat, symmetrically normalized."""

    splats: Matrix  # M x N
    blurs: list[Matrix]  # M x M, one per axis
    slices: Matrix  # N x M

    def splat_and_blur(self, values: Tensor) -> Tensor:
        """Return the values at the vertices: (N, C) to (M, C)."""
        values = Times.apply(values, self.splats, self.slices)
        for blur in self.blurs:
            values = Times.apply(values, blur, blur)
        return values

    def slice(self, values: Tensor) -> Tensor:
        """Return the values at the pixels: (M, C) to (N, C)."""
        return Times.apply(values, self.slices, self.splats)


class Coding(NamedTuple):
    """Code of a lattice vertex v = (v_0, ..., v_d) as one integer.

    Its coordinates leave one remainder when divided by d + 1 and add up to 0, so it is given by the d integers
    w_j = (v_j - v_0) / (d + 1), j = 1 ... d:

        code(v) = sum_j (w_j - low_j) stride_j,  stride_1 = 1,  stride_(j+1) = stride_j (high_j - low_j + 1)

    A step along axis j adds 1 to all coordinates of v but v_j, which falls by d: that subtracts 1 from w_j, or for j = 0 adds
    1 to all. So with stride_0 = -sum_j stride_j, the neighbours of v along axis j = 0 ... d have the codes code(v) -+ stride_j.
    """

    low: list[int]
    strides: list[int]
    dtype: torch.dtype


@torch.no_grad()
def build_lattice(features: Tensor) -> Lattice:
    """Build the kernel exp(-|f - g|^2 / 2) between all columns of (d, N) features, in Krähenbühl's normalization.

    In float32 and in the order of his code, so that roundings, and with them the simplices, are the same.

    Raises:
        UserError: The features are too far from each other for 64-bit codes.
    """
    d, pixels = features.shape
    scales = [1 / math.sqrt(j * (j + 1)) * torch.tensor(math.sqrt(2 / 3) * (d + 1)).item() for j in range(1, d + 1)]
    coding = choose_coding(features, scales)
    codes = torch.empty(pixels, d + 1, dtype=coding.dtype, device=features.device)
    weights = torch.empty(pixels, d + 1, device=features.device)
    for part in split_pixels(pixels, (SMALL - 1) // (d + 1), features.device):
        find_simplices(features[:, part], scales, coding, codes[part], weights[part])
    # Sorting the codes groups the entries of each vertex, its pixels in order.
    ordered, order = codes.flatten().sort(stable=True)
    vertices, vertex, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    corners = torch.empty_like(order, dtype=torch.int32).scatter_(0, order, vertex.int())
    starts = F.pad(counts.cumsum(0), (1, 0)).int()
    members = order.int() // (d + 1)
    row_starts = torch.arange(0, (d + 1) * pixels + 1, d + 1, dtype=torch.int32, device=features.device)
    blurs = [build_blur(vertices, stride) for stride in coding.strides]

    def kernel(weights: Tensor) -> Lattice:
        flat = weights.flatten()
        return Lattice(Matrix(members, starts, flat.take(order)), blurs, Matrix(corners, row_starts, flat))

    weights *= (1 + 2.0**-d) ** -0.5  # the constant of Adams et al., its root on either side
    unnormalized = kernel(weights)
    norm = unnormalized.slice(unnormalized.splat_and_blur(torch.ones_like(features[:1].T)))
    return kernel(weights / (norm + 1e-20).sqrt())


def choose_coding(features: Tensor, scales: list[float]) -> Coding:
    """Return the coding of the vertices around all features (d, N)."""
    d = len(features)
    extremes = torch.stack([features.amin(1), features.amax(1)]).tolist()
    low, strides, total = [0], [0], 1
    for j in range(1, d + 1):
        # w_j falls with every feature. y is within 2 of x, in units of w_j; vertices are 1 further, and neighbours another.
        highest, lowest = (
            -(sum(f * scale for f, scale in zip(ends[:j], scales, strict=False)) + j * ends[j - 1] * scales[j - 1]) / (d + 1)
            for ends in extremes
        )
        low.append(math.floor(lowest) - 4)
        strides.append(total)
        total *= math.ceil(highest) + 4 - low[j] + 1
    if total >= 2**63:
        raise UserError("DenseCRF: a theta is too small for images of this size: give a larger one")
    strides[0] = -sum(strides)
    return Coding(low, strides, torch.int32 if total < 2**31 else torch.int64)


def find_simplices(features: Tensor, scales: list[float], coding: Coding, codes: Tensor, weights: Tensor) -> None:
    """Find the simplex of each pixel (Adams et al., 2010, Section 4.2).

    Args:
        features: (d, N).
        scales: The scale of each feature in E.
        coding: The coding of the vertices.
        codes: Filled with the codes of the d + 1 vertices (N, d + 1).
        weights: Filled with the barycentric coordinates b (N, d + 1).
    """
    d, pixels = features.shape
    x = elevate(features, scales)
    y, rank = find_remainder_0(x)  # y in units of d + 1

    # b, from the coordinates of (x - y) / (d + 1) in ascending order: b_0 = 1 + delta_0 - delta_d, b_k = delta_k - delta_(k-1)
    target = (torch.arange(d, (d + 1) * pixels, d + 1, device=features.device) - rank.long()).flatten()
    delta = ((x - y * (d + 1)) * features.new_tensor(1 / (d + 1))).flatten()
    delta = torch.empty_like(delta).scatter_(0, target, delta).view(pixels, d + 1)
    weights[:, 0] = delta[:, 0] + (1 - delta[:, d])
    torch.sub(delta[:, 1:], delta[:, :-1], out=weights[:, 1:])

    # v_0 = y. From v_k to v_(k+1) is a step along the axis of the smallest delta that was not used yet.
    strides = torch.tensor(coding.strides, dtype=codes.dtype, device=codes.device)[:, None]
    low = torch.tensor(coding.low, dtype=codes.dtype, device=codes.device)[:, None]
    steps = strides.repeat(1, pixels).flatten()
    steps = torch.empty_like(steps).scatter_(0, target, steps).view(pixels, d + 1)
    codes[:, 0] = ((y - y[0]).to(codes.dtype) - low).mul_(strides).sum(0, dtype=codes.dtype)
    for k in range(d):
        torch.sub(codes[:, k], steps[:, k], out=codes[:, k + 1])


def elevate(features: Tensor, scales: list[float]) -> Tensor:
    """Return x = E p (d + 1, N): with p_j scaled, x_0 = sum of all p_i, x_j = sum of p_i with i > j, minus j p_j."""
    d, pixels = features.shape
    x = features.new_empty(d + 1, pixels)
    total = torch.zeros_like(features[0])
    for j in range(d, 0, -1):
        p = features[j - 1] * scales[j - 1]
        x[j] = total - j * p
        total = total + p
    x[0] = total
    return x


def find_remainder_0(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest point y of remainder 0, divided by d + 1, and the rank of each coordinate of x - y, 0 the largest."""
    sides, pixels = x.shape
    y = (x * x.new_tensor(1 / sides)).round_()
    delta = x - y * sides
    rank = torch.arange(float(sides), device=x.device)[:, None].repeat(1, pixels)
    for i in range(sides - 1):
        below = torch.lt(delta[i], delta[i + 1 :], out=torch.empty_like(delta[i + 1 :]))
        rank[i] += below.sum(0)
        rank[i + 1 :] -= below
    # If rounding left the plane, y adds up to n instead of 0: the n coordinates that were rounded furthest change by 1.
    rank += y.sum(0)
    wrap = ((rank + 0.5) / sides).floor_()
    y -= wrap
    rank -= wrap * sides
    return y, rank


def build_blur(codes: Tensor, stride: int) -> Matrix:
    """Return the blur along an axis, which adds half of both neighbours to each vertex; missing neighbours count as 0."""
    count = len(codes)
    vertices = torch.arange(count, dtype=torch.int32, device=codes.device)
    sought = codes + stride
    after = torch.searchsorted(codes, sought).clamp_(max=count - 1)
    exists = codes[after] == sought
    # The neighbour before a vertex is the vertex whose neighbour after it is this one. Index ``count`` collects the others.
    before = F.pad(vertices, (0, 1)).scatter_(0, torch.where(exists, after, count), vertices)[:count]
    columns = torch.stack([before, vertices, torch.where(exists, after.int(), vertices)], 1)
    weights = torch.ne(columns, vertices[:, None], out=torch.empty(count, 3, device=codes.device)).mul_(0.5)
    weights[:, 1] = 1
    starts = torch.arange(0, 3 * count + 1, 3, dtype=torch.int32, device=codes.device)
    return Matrix(columns.flatten(), starts, weights.flatten())


def split_pixels(pixels: int, size: int, device: torch.device) -> list[slice]:
    """Return slices of at most ``size`` pixels on a CPU, one slice of all pixels elsewhere."""
    size = size if device.type == "cpu" else pixels
    return [slice(first, min(first + size, pixels)) for first in range(0, pixels, size)]
