"""The fully connected CRF on the permutohedral lattice, in torch alone: one implementation for all devices, differentiable.

Krähenbühl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", NeurIPS 2011,
https://arxiv.org/abs/1210.5644. Every pair of pixels is joined by two Gaussian kernels (their Equation 3): appearance, of
positions and colors, and smoothness, of positions. With the unary potentials psi = -log p, the kernels k_m of weight w_m and
the compatibility mu, mean field repeats (their Algorithm 1)

    Q_i(l) = softmax_l( -psi_i(l) - sum_l' mu(l, l') sum_m w_m sum_j k_m(i, j) Q_j(l') )

The sum over all pixels j is a Gaussian filter in 5 or 2 dimensions; see `dilated_seg.crf.permutohedral`.
"""

import math
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dilated_seg.crf.permutohedral import Lattice, build_lattice, split_pixels
from dilated_seg.errors import UserError
from dilated_seg.tensors import Pixels, Probabilities

MIN_PROBABILITY = 1e-5  # lower bound of the input, as in pydensecrf's unary_from_softmax
BLOCK = 1 << 13  # pixels per thread: their values of all classes fit into a core's cache
LANES, MIN_LANES = 8, 16  # classes are padded to a multiple, and to this many: a CPU's softmax over fewer is far slower

# DeepLab-LargeFOV's, from run_densecrf.sh of its release.
DEEPLAB = {"w1": 4.0, "theta_alpha": 49.0, "theta_beta": 5.0, "w2": 3.0, "theta_gamma": 3.0}


class DenseCRF(nn.Module):
    """Mean-field inference in the fully connected CRF: from probabilities and their image to probabilities refined at edges.

    Unrolled, it is CRF-RNN (Zheng et al., "Conditional random fields as recurrent neural networks", ICCV 2015). Gradients are
    computed for the probabilities and, if ``learnable``, for the weights and the compatibility, but not for the image or the
    thetas. If not ``learnable``, it has no parameters and no state, so it can be used with any checkpoint.

    The defaults are those of pydensecrf's example, which most code uses; ``DenseCRF(**DEEPLAB)`` is DeepLab's.

    Args:
        iterations: Number of mean-field iterations; 10 in the papers, 5 for training CRF-RNN.
        w1: Weight of the appearance kernel.
        theta_alpha: Standard deviation of positions in the appearance kernel, in pixels.
        theta_beta: Standard deviation of colors in the appearance kernel (0 to 255).
        w2: Weight of the smoothness kernel.
        theta_gamma: Standard deviation of positions in the smoothness kernel, in pixels.
        num_classes: C, required if ``learnable``; SegmentationTask sets it.
        learnable: Whether w1 and w2 (one per class, with these initial values) and the compatibility mu (C, C; initially -1
            between equal classes and 0 between others, which is Potts's up to a constant) are parameters.

    Raises:
        ValueError: An argument is out of its range, which the message states.
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
            raise ValueError(f"DenseCRF: iterations is {iterations}: give an integer from 1 to 1000")
        if type(learnable) is not bool:
            raise ValueError(f"DenseCRF: learnable is {learnable}: give true or false")
        for name, weight in (("w1", w1), ("w2", w2)):
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"DenseCRF: {name} is {weight}: give a finite number, not below 0")
        for name, theta in (("theta_alpha", theta_alpha), ("theta_beta", theta_beta), ("theta_gamma", theta_gamma)):
            if not isinstance(theta, int | float) or not 0 < theta < math.inf:
                raise ValueError(f"DenseCRF: {name} is {theta}: give a positive finite number")
        self.iterations, self.num_classes = iterations, num_classes
        self.theta_alpha, self.theta_beta, self.theta_gamma = theta_alpha, theta_beta, theta_gamma
        self.w1, self.w2, self.compatibility, self.learnable = w1, w2, None, learnable
        self.start = {"iterations": iterations, "w1": w1, "theta_alpha": theta_alpha, "theta_beta": theta_beta}
        self.start |= {"w2": w2, "theta_gamma": theta_gamma}
        if learnable and num_classes is not None:
            self.add_parameters(num_classes)

    def add_parameters(self, num_classes: int) -> None:
        """Make w1, w2 and the compatibility parameters."""
        self.num_classes = num_classes
        self.w1 = nn.Parameter(torch.full((num_classes,), float(self.start["w1"])))
        self.w2 = nn.Parameter(torch.full((num_classes,), float(self.start["w2"])))
        self.compatibility = nn.Parameter(-torch.eye(num_classes))

    @property
    def description(self) -> dict[str, Any]:
        """Class and arguments that build this CRF again, for checkpoints, which also have its tensors."""
        kind = type(self)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": self.start | {"learnable": self.learnable}}

    @property
    def name(self) -> str:
        """Name for files: ``crf``, the name of a subclass, and the arguments that differ from the defaults."""
        defaults, kind = signature(DenseCRF).parameters, [] if type(self) is DenseCRF else [type(self).__name__]
        return "-".join(["crf", *kind, *(f"{k}_{value:g}" for k, value in self.start.items() if value != defaults[k].default)])

    def __str__(self) -> str:
        kind = "dense CRF" if type(self) is DenseCRF else type(self).__name__
        return f"{kind} ({', '.join(f'{name} {value:g}' for name, value in self.start.items())})"

    def forward(self, probabilities: Probabilities, image: Pixels) -> Probabilities:
        """Return the marginals Q after the last iteration, in float32, or float64 if the probabilities are.

        Args:
            probabilities: The network's (B, C, H, W). Those below 1e-5 are replaced by 1e-5 and have no gradient.
            image: Plain RGB, 0 to 255 (B, 3, H, W).

        Raises:
            ValueError: The image has another size, there are not ``num_classes`` classes, or ``num_classes`` is not given for a
                learnable one.
            UserError: The image is not RGB.
        """
        if image.shape[1] != 3:
            raise UserError(f"a dense CRF compares colors (RGB), but images have {image.shape[1]} channels: leave the CRF out")
        if self.learnable and self.num_classes is None:
            raise ValueError("DenseCRF: a learnable CRF has parameters for each class: give num_classes too")
        count, classes, *size = probabilities.shape
        if [count, *size] != [len(image), *image.shape[2:]]:
            raise ValueError(
                f"DenseCRF: the probabilities are {count} of {size}, but the images {len(image)} of {list(image.shape[2:])}"
            )
        if self.num_classes not in (None, classes):
            raise ValueError(f"DenseCRF: the probabilities are of {classes} classes, but num_classes is {self.num_classes}")
        precise = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
        keep_gradients = torch.is_grad_enabled() and (precise.requires_grad or self.compatibility is not None)
        with torch.autocast(precise.device.type, enabled=False), torch.set_grad_enabled(keep_gradients):
            return torch.stack([self.infer(*pair) for pair in zip(precise, image, strict=True)])

    def infer(self, probabilities: Tensor, image: Tensor) -> Tensor:
        """Return the marginals (C, H, W) of one image (3, H, W)."""
        classes, height, width = probabilities.shape
        kernels = [
            build_appearance(image, self.theta_alpha, self.theta_beta),
            build_smoothness(height, width, self.theta_gamma, image.device),
        ]
        # A pixel is a row of classes, padded by classes of probability 0.
        padding = max(MIN_LANES - classes, -classes % LANES)
        unary = F.pad(probabilities.clamp(MIN_PROBABILITY, 1).log().flatten(1).T, (0, padding), value=-math.inf).contiguous()
        mixing = None if self.compatibility is None else -self.compatibility
        weights = [w if mixing is None else F.pad(mixing * w, (0, padding, 0, padding)).T for w in (self.w1, self.w2)]
        marginals = unary.softmax(1)
        for _ in range(self.iterations):
            marginals = update_marginals(marginals, unary, kernels, weights)
        return marginals[:, :classes].T.reshape(classes, height, width)


def update_marginals(marginals: Tensor, unary: Tensor, kernels: list[Lattice], weights: list[float | Tensor]) -> Tensor:
    """Return the marginals after one more iteration: in place and block by block, unless gradients are kept.

    Args:
        marginals: (N, C).
        unary: The negative unary potentials, log p (N, C).
        kernels: The Gaussian filters.
        weights: For each kernel its weight, or the learned weights times the compatibility (C, C).
    """
    blurred = [kernel.splat_and_blur(marginals) for kernel in kernels]
    # Weights are applied at the vertices, which are fewer than the pixels.
    blurred = [b @ w if isinstance(w, Tensor) else b.mul_(w) for b, w in zip(blurred, weights, strict=True)]
    if torch.is_grad_enabled():
        return sum((k.slice(b) for k, b in zip(kernels, blurred, strict=True)), unary).softmax(1)
    for part in split_pixels(len(marginals), BLOCK * torch.get_num_threads(), marginals.device):
        message, *others = (k.slices.rows(part).times(b) for k, b in zip(kernels, blurred, strict=True))
        for other in (*others, unary[part]):
            message += other
        torch.softmax(message, 1, out=marginals[part])
    return marginals


def build_appearance(image: Tensor, theta_alpha: float, theta_beta: float) -> Lattice:
    """Build the kernel of positions and colors of an image (3, H, W)."""
    _, height, width = image.shape
    position = list_positions(height, width, image.device) / torch.tensor(theta_alpha, device=image.device)
    return build_lattice(torch.cat([position, image.flatten(1).float() / torch.tensor(theta_beta, device=image.device)]))


@lru_cache(maxsize=2)
@torch.inference_mode(False)  # a lattice cached in evaluation may be used in training
def build_smoothness(height: int, width: int, theta_gamma: float, device: torch.device) -> Lattice:
    """Build the kernel of positions, cached for images of one size."""
    return build_lattice(list_positions(height, width, device) / torch.tensor(theta_gamma, device=device))


def list_positions(height: int, width: int, device: torch.device) -> Tensor:
    """Return the column and the row of each pixel (2, N)."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.stack([columns.repeat(height), rows.repeat_interleave(width)])
