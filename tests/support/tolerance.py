"""How far two results may differ when only the order of their sums differs, which processors, threads and batch sizes choose.

Two orders of a sum of n terms differ by at most n * eps of the sum of the terms' magnitudes; typically by sqrt(n) * eps, since
rounding errors have either sign (Higham and Mary, SIAM Journal on Scientific Computing 41, 2019).

In float32 this is too much to tell a mistake from rounding after many layers or steps: Adam divides a gradient by its own
magnitude, so a weight whose gradient is nothing but rounding moves by the learning rate. (Twenty steps with AdamW, rate 0.002:
5e-6 on one processor, 1e-3 on the next; in float64 1e-14.) So two orders are compared in float64.
"""

import torch

SUM = 8192  # terms of the longest sums in these tests: 4 x 32 x 48 pixels of a batch, 512 x 3 x 3 inputs of a kernel
LAYERS = 128  # of the deepest network, each of which may add its own rounding
DOUBLE, SINGLE = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps
FORWARD = LAYERS * SUM * DOUBLE  # 2.3e-10, relative to the largest value


def assert_equal_but_for_rounding(found: torch.Tensor, expected: torch.Tensor, relative: float = FORWARD) -> None:
    """Compare two results in float64, up to a share of the largest value: smaller values may be what larger ones left over."""
    assert found.dtype == expected.dtype == torch.float64, "compare two orders of summation in float64"
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * expected.abs().max().item())


def training(steps: int, rate: float, divisor: float = 1.0, eps: float = DOUBLE) -> float:
    """Return how far a weight may move by rounding alone where gradients are clipped to a norm of 1.

    Args:
        steps: Steps of the optimizer.
        rate: The learning rate.
        divisor: What the optimizer divides a gradient by at least: 1 for SGD, its eps for Adam.
        eps: Of the precision.
    """
    return steps * rate * SUM**0.5 * eps / divisor
