"""The fully connected CRF, on the permutohedral lattice, in torch alone: the same code on every device, differentiable.

Krähenbühl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011. Every pixel is joined
to every other by two Gaussian kernels: appearance, of positions and colours, and smoothness, of positions. Mean field takes
turns: each pixel hears how likely each class is at all others, weighed by the kernels, and changes its mind. The sum over all
pixels is a Gaussian filter in 5 or 2 dimensions, which a permutohedral lattice (Adams et al., 2010) does in linear time: splat
the pixels onto the corners of their simplices, blur along the lattice's axes, slice at the pixels.

Each of these steps is a sparse matrix that stays the same for all iterations, and whose transpose is at hand (splat and slice
are each other's, a blur is its own), so gradients cost what the values cost.
"""

import math
from functools import lru_cache
from inspect import signature
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dilated_seg.errors import UserError
from dilated_seg.tensors import Pixels, Probabilities

LEAST = 1e-5  # a probability below counts as this, as in pydensecrf's unary_from_softmax
BLOCK = 1 << 13  # pixels a thread, whose scores of all classes stay in a core's cache
SMALL = 1 << 15  # torch does not wake its threads for fewer numbers than this
LANES, LEAST_LANES = 8, 16  # classes are padded to a multiple, and to this many: a CPU's softmax over fewer is far slower

# DeepLab-LargeFOV's, from run_densecrf.sh of its release.
DEEPLAB = {"w1": 4.0, "theta_alpha": 49.0, "theta_beta": 5.0, "w2": 3.0, "theta_gamma": 3.0}


class DenseCRF(nn.Module):
    """Mean field in the fully connected CRF: probabilities and the image they are of, to probabilities that keep to its edges.

    Unrolled it is CRF-RNN (Zheng et al., "Conditional random fields as recurrent neural networks", 2015): gradients flow to the
    probabilities, and with ``learnable`` to the weights and the compatibility of classes; not to the image, nor to the thetas.
    Without ``learnable`` it has no parameters and no state, so it goes with any checkpoint.

    The defaults are those of pydensecrf's example, which most code took over; ``DenseCRF(**DEEPLAB)`` is DeepLab's.

    Args:
        iterations: Of mean field; the papers take 10, and 5 while CRF-RNN is trained.
        w1: Weight of the appearance kernel.
        theta_alpha: How far it reaches, in pixels.
        theta_beta: How unlike colours may be, in steps of 0 to 255.
        w2: Weight of the smoothness kernel.
        theta_gamma: How far that reaches, in pixels.
        num_classes: Needed by ``learnable``; SegmentationTask says it.
        learnable: Whether w1 and w2 (one a class, starting at the numbers given) and the compatibility (C, C; what a class
            costs in the company of another, starting at Potts, -1 beside itself) are parameters.

    Raises:
        UserError: A theta or the number of iterations is not positive.
    """

    w1: float | Tensor
    w2: float | Tensor
    compatibility: Tensor | None

    def __init__(
        self,
        iterations: int = 10,
        *,
        w1: float = 10.0,
        theta_alpha: float = 80.0,
        theta_beta: float = 13.0,
        w2: float = 3.0,
        theta_gamma: float = 3.0,
        num_classes: int | None = None,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        if type(iterations) is not int or not 1 <= iterations <= 1000:
            raise UserError(f"DenseCRF: iterations is {iterations}: take a whole number from 1 to 1000")
        if type(learnable) is not bool:
            raise UserError(f"DenseCRF: learnable is {learnable}: take true or false")
        for name, weight in (("w1", w1), ("w2", w2)):
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise UserError(f"DenseCRF: {name} is {weight}: take a finite number, not below 0")
        for name, theta in (("theta_alpha", theta_alpha), ("theta_beta", theta_beta), ("theta_gamma", theta_gamma)):
            if not isinstance(theta, int | float) or not 0 < theta < math.inf:
                raise UserError(f"DenseCRF: {name} is {theta}: take a positive number")
        self.iterations, self.num_classes = iterations, num_classes
        self.theta_alpha, self.theta_beta, self.theta_gamma = theta_alpha, theta_beta, theta_gamma
        self.w1, self.w2, self.compatibility, self.learnable = w1, w2, None, learnable
        self.start = {"iterations": iterations, "w1": w1, "theta_alpha": theta_alpha, "theta_beta": theta_beta}
        self.start |= {"w2": w2, "theta_gamma": theta_gamma}
        if learnable and num_classes is not None:
            self.learn(num_classes)

    def learn(self, num_classes: int) -> None:
        """Make parameters of the weights and the compatibility, for so many classes."""
        self.num_classes = num_classes
        self.w1 = nn.Parameter(torch.full((num_classes,), float(self.start["w1"])))
        self.w2 = nn.Parameter(torch.full((num_classes,), float(self.start["w2"])))
        self.compatibility = nn.Parameter(-torch.eye(num_classes))

    @property
    def name(self) -> str:
        """For names of files: ``crf``, and the numbers that are not the defaults."""
        defaults = signature(DenseCRF).parameters
        return "-".join(["crf", *(f"{k}_{value:g}" for k, value in self.start.items() if value != defaults[k].default)])

    def __str__(self) -> str:
        return f"dense CRF ({', '.join(f'{name} {value:g}' for name, value in self.start.items())})"

    def forward(self, probabilities: Probabilities, image: Pixels) -> Probabilities:
        """The marginals after the last iteration, in float32, or float64 if the probabilities are.

        Args:
            probabilities: The network's, (B, C, H, W). Less than 1e-5 counts as that much, and has no gradient.
            image: Plain RGB, 0 to 255 (B, 3, H, W).

        Raises:
            ValueError: The image is of another size, there are other than ``num_classes`` classes, or what is ``learnable``
                lacks their number.
        """
        if self.learnable and self.num_classes is None:
            raise ValueError("DenseCRF: what is learnable is by class: give num_classes too")
        count, classes, *size = probabilities.shape
        if [count, *size] != [len(image), *image.shape[2:]]:
            raise ValueError(
                f"DenseCRF has {count} images' probabilities of {size}, but {len(image)} images of {list(image.shape[2:])}"
            )
        if self.num_classes not in (None, classes):
            raise ValueError(f"DenseCRF has probabilities of {classes} classes, but num_classes is {self.num_classes}")
        precise = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
        learning = torch.is_grad_enabled() and (precise.requires_grad or self.compatibility is not None)
        with torch.autocast(precise.device.type, enabled=False), torch.set_grad_enabled(learning):
            return torch.stack([self.infer(*pair) for pair in zip(precise, image, strict=True)])

    def infer(self, probabilities: Tensor, image: Tensor) -> Tensor:
        """One image: (C, H, W) and (3, H, W) to (C, H, W)."""
        classes, height, width = probabilities.shape
        kernels = [
            appearance(image, self.theta_alpha, self.theta_beta),
            smoothness(height, width, self.theta_gamma, image.device),
        ]
        # A pixel is a row, its classes side by side, and impossible ones after them.
        more = max(LEAST_LANES - classes, -classes % LANES)
        unary = F.pad(probabilities.clamp(LEAST, 1).log().flatten(1).T, (0, more), value=-math.inf).contiguous()
        mixing = None if self.compatibility is None else -self.compatibility
        weights = [w if mixing is None else F.pad(mixing * w, (0, more, 0, more)).T for w in (self.w1, self.w2)]
        marginals = unary.softmax(1)
        for _ in range(self.iterations):
            marginals = update(marginals, unary, kernels, weights)
        return marginals[:, :classes].T.reshape(classes, height, width)


def update(marginals: Tensor, unary: Tensor, kernels: "list[Lattice]", weights: list[float | Tensor]) -> Tensor:
    """The next marginals (N, C), in place, block by block, unless gradients are kept.

    Args:
        marginals: (N, C).
        unary: The pixels' own scores (N, C).
        kernels: Through which pixels hear of each other.
        weights: What each counts: a number, or what each class says for each other (C, C).
    """
    heard = [kernel.gather(marginals) for kernel in kernels]
    # Weighed at the vertices: photographs have fewer of them than pixels.
    heard = [h @ w if isinstance(w, Tensor) else h.mul_(w) for h, w in zip(heard, weights, strict=True)]
    if torch.is_grad_enabled():
        return sum((k.spread(h) for k, h in zip(kernels, heard, strict=True)), unary).softmax(1)
    for part in blocks(len(marginals), BLOCK * torch.get_num_threads(), marginals.device):
        message, *others = (k.slice.rows(part).times(h) for k, h in zip(kernels, heard, strict=True))
        for other in (*others, unary[part]):
            message += other
        torch.softmax(message, 1, out=marginals[part])
    return marginals


def blocks(pixels: int, size: int, device: torch.device) -> list[slice]:
    """All pixels: on a CPU so many at a time, elsewhere at once."""
    size = size if device.type == "cpu" else pixels
    return [slice(first, min(first + size, pixels)) for first in range(0, pixels, size)]


def appearance(image: Tensor, theta_alpha: float, theta_beta: float) -> "Lattice":
    """The kernel between pixels that are near and of similar colour; image (3, H, W)."""
    _, height, width = image.shape
    position = positions(height, width, image.device) / torch.tensor(theta_alpha, device=image.device)
    return lattice(torch.cat([position, image.flatten(1).float() / torch.tensor(theta_beta, device=image.device)]))


@lru_cache(maxsize=2)
@torch.inference_mode(False)  # what an evaluation leaves here may serve in training
def smoothness(height: int, width: int, theta_gamma: float, device: torch.device) -> "Lattice":
    """The kernel between pixels that are near, made once for images of one size."""
    return lattice(positions(height, width, device) / torch.tensor(theta_gamma, device=device))


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """The column and the row of each pixel (2, N)."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.stack([columns.repeat(height), rows.repeat_interleave(width)])


class Matrix(NamedTuple):
    """A sparse matrix: row r has ``weights[k]`` in column ``columns[k]``, for k from ``starts[r]`` to ``starts[r + 1]``."""

    columns: Tensor
    starts: Tensor
    weights: Tensor

    def times(self, values: Tensor) -> Tensor:
        """The product with dense rows of numbers, each row added up in order, so it is the same on any number of threads."""
        weights = self.weights.to(values.dtype)
        return torch.embedding_bag(values, self.columns, self.starts, False, 0, False, weights, True)[0]

    def rows(self, part: slice) -> "Matrix":
        """Some rows, of a matrix that has as many entries in each."""
        width = len(self.columns) // (len(self.starts) - 1)
        entries = slice(part.start * width, part.stop * width)
        return Matrix(self.columns[entries], self.starts[: part.stop - part.start + 1], self.weights[entries])


class Times(torch.autograd.Function):
    """``matrix.times(values)``, with the gradient of the values by the transpose."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, matrix: Matrix, transpose: Matrix) -> Tensor:  # noqa: ANN401
        ctx.matrix, ctx.transpose = matrix, transpose
        return matrix.times(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return Times.apply(gradient.contiguous(), ctx.transpose, ctx.matrix), None, None


class Lattice(NamedTuple):
    """A Gaussian kernel between N pixels as matrices over M vertices: slice . blurs . splat, symmetrically normalised."""

    splat: Matrix  # M x N
    blurs: list[Matrix]  # M x M, one an axis
    slice: Matrix  # N x M

    def gather(self, values: Tensor) -> Tensor:
        """What the vertices hear of the pixels' values: (N, C) to (M, C)."""
        values = Times.apply(values, self.splat, self.slice)
        for blur in self.blurs:
            values = Times.apply(values, blur, blur)
        return values

    def spread(self, values: Tensor) -> Tensor:
        """What the pixels hear of the vertices: (M, C) to (N, C)."""
        return Times.apply(values, self.slice, self.splat)


@torch.no_grad()
def lattice(features: Tensor) -> Lattice:
    """The kernel exp(-|f - g|^2 / 2) between all columns of (d, N) features, in Krähenbühl's normalisation.

    In float32 and in the order of his code, so that roundings, and with them the simplices, are the same.

    Raises:
        UserError: The features are too far from each other for 64 bits.
    """
    d, pixels = features.shape
    scales = [1 / math.sqrt(j * (j + 1)) * torch.tensor(math.sqrt(2 / 3) * (d + 1)).item() for j in range(1, d + 1)]
    low, strides, kind = grid(features, scales)
    codes = torch.empty(pixels, d + 1, dtype=kind, device=features.device)
    weights = torch.empty(pixels, d + 1, device=features.device)
    for part in blocks(pixels, (SMALL - 1) // (d + 1), features.device):
        simplices(features[:, part], scales, low, strides, codes[part], weights[part])
    # One sort brings together what belongs to a vertex, its pixels in order.
    ordered, order = codes.flatten().sort(stable=True)
    vertices, vertex, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    corners = torch.empty_like(order, dtype=torch.int32).scatter_(0, order, vertex.int())
    starts = F.pad(counts.cumsum(0), (1, 0)).int()
    members = order.int() // (d + 1)
    every = torch.arange(0, (d + 1) * pixels + 1, d + 1, dtype=torch.int32, device=features.device)
    blurs = [blur(vertices, stride) for stride in strides]

    def kernel(weights: Tensor) -> Lattice:
        flat = weights.flatten()
        return Lattice(Matrix(members, starts, flat.take(order)), blurs, Matrix(corners, every, flat))

    weights *= (1 + 2.0**-d) ** -0.5  # Adams et al.'s constant, half of it on either side
    raw = kernel(weights)
    norm = raw.spread(raw.gather(torch.ones_like(features[:1].T)))
    return kernel(weights / (norm + 1e-20).sqrt())


def grid(features: Tensor, scales: list[float]) -> tuple[list[int], list[int], torch.dtype]:
    """How to code a vertex of the lattice as one whole number.

    A vertex has d + 1 coordinates, which add up to 0 and leave the same remainder when divided by d + 1. So their differences
    to the first, divided by d + 1, are d whole numbers that say it all. The code is the sum of each times its stride. With the
    stride of the first such that all add up to 0, the neighbours along axis j are the codes plus and minus stride j.

    Returns:
        The least difference for each coordinate, the strides, and the type of whole number that holds the codes.
    """
    d = len(features)
    extremes = torch.stack([features.amin(1), features.amax(1)]).tolist()
    low, strides, total = [0], [0], 1
    for j in range(1, d + 1):
        # The difference falls with every feature. A simplex starts within 2 of its pixels; vertices lie 1 further, and
        # neighbours another.
        most, least = (
            -(sum(f * scale for f, scale in zip(ends[:j], scales, strict=False)) + j * ends[j - 1] * scales[j - 1]) / (d + 1)
            for ends in extremes
        )
        low.append(math.floor(least) - 4)
        strides.append(total)
        total *= math.ceil(most) + 4 - low[j] + 1
    if total >= 2**63:
        raise UserError("DenseCRF: a theta is too small for images of this size: take a larger one")
    strides[0] = -sum(strides)
    return low, strides, torch.int32 if total < 2**31 else torch.int64


def simplices(
    features: Tensor, scales: list[float], low: list[int], strides: list[int], codes: Tensor, weights: Tensor
) -> None:
    """Find the simplex of the lattice that each pixel lies in (Adams et al., 2010, section 4.2).

    Args:
        features: (d, N).
        scales: What each is multiplied by.
        low: What each coordinate counts from, see ``grid``.
        strides: What each is multiplied by in a code.
        codes: Takes the codes of the d + 1 vertices (N, d + 1).
        weights: Takes the pixels' barycentric coordinates (N, d + 1).
    """
    d, pixels = features.shape
    elevated = features.new_empty(d + 1, pixels)
    total = torch.zeros_like(features[0])
    for j in range(d, 0, -1):
        part = features[j - 1] * scales[j - 1]
        elevated[j] = total - j * part
        total = total + part
    elevated[0] = total
    down = features.new_tensor(1 / (d + 1))

    # The nearest point of remainder 0, coordinate by coordinate, and the order of what is left, from the largest.
    nearest = (elevated * down).round_()
    left = elevated - nearest * (d + 1)
    rank = torch.arange(d + 1.0, device=features.device)[:, None].repeat(1, pixels)
    for i in range(d):
        below = torch.lt(left[i], left[i + 1 :], out=torch.empty_like(left[i + 1 :]))
        rank[i] += below.sum(0)
        rank[i + 1 :] -= below
    rank += nearest.sum(0)  # not 0 if rounding led off the plane: then the ranks say which coordinates to correct
    wrap = ((rank + 0.5) / (d + 1)).floor_()
    nearest -= wrap
    rank -= wrap * (d + 1)

    # The coordinates of each pixel side by side, from the smallest left to the largest.
    place = (torch.arange(d, (d + 1) * pixels, d + 1, device=features.device) - rank.long()).flatten()
    left = ((elevated - nearest * (d + 1)) * down).flatten()
    left = torch.empty_like(left).scatter_(0, place, left).view(pixels, d + 1)
    weights[:, 0] = left[:, 0] + (1 - left[:, d])
    torch.sub(left[:, 1:], left[:, :-1], out=weights[:, 1:])

    # From each vertex to the next, the coordinate with the least left, of those not yet taken, falls by d + 1.
    steps = torch.tensor(strides, dtype=codes.dtype, device=codes.device)[:, None]
    origin = torch.tensor(low, dtype=codes.dtype, device=codes.device)[:, None]
    falls = steps.repeat(1, pixels).flatten()
    falls = torch.empty_like(falls).scatter_(0, place, falls).view(pixels, d + 1)
    codes[:, 0] = ((nearest - nearest[0]).to(codes.dtype) - origin).mul_(steps).sum(0, dtype=codes.dtype)
    for k in range(d):
        torch.sub(codes[:, k], falls[:, k], out=codes[:, k + 1])


def blur(codes: Tensor, stride: int) -> Matrix:
    """Half of either neighbour along an axis is added to each vertex; one that no pixel touches is 0."""
    count = len(codes)
    own = torch.arange(count, dtype=torch.int32, device=codes.device)
    sought = codes + stride
    after = torch.searchsorted(codes, sought).clamp_(max=count - 1)
    found = codes[after] == sought
    # Whose neighbour one is, that is one's own on the other side; vertices without any share a place at the end.
    before = F.pad(own, (0, 1)).scatter_(0, torch.where(found, after, count), own)[:count]
    columns = torch.stack([before, own, torch.where(found, after.int(), own)], 1)
    weights = torch.ne(columns, own[:, None], out=torch.empty(count, 3, device=codes.device)).mul_(0.5)
    weights[:, 1] = 1
    starts = torch.arange(0, 3 * count + 1, 3, dtype=torch.int32, device=codes.device)
    return Matrix(columns.flatten(), starts, weights.flatten())
