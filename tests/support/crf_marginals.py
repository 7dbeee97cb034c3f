"""What pydensecrf2 1.1 makes of three drawn images, recorded in crf_marginals.npz: labels, and some pixels' marginals.

run:    pip install pydensecrf2==1.1 && python -m tests.support.crf_marginals
"""

from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_name("crf_marginals.npz")
EVERY = 20  # whose pixels' marginals are recorded
COMMON = {"w1": 10.0, "theta_alpha": 80.0, "theta_beta": 13.0, "w2": 3.0, "theta_gamma": 3.0}
DEEPLAB = {"w1": 4.0, "theta_alpha": 49.0, "theta_beta": 5.0, "w2": 3.0, "theta_gamma": 3.0}

# Height and width, classes, the CRF's numbers.
CASES = {"many": ((120, 160), 21, COMMON), "few": ((120, 160), 4, COMMON), "deeplab": ((97, 131), 21, DEEPLAB)}


def smooth(values, radius):
    """Sums over squares of whole numbers, around the borders: the same on every machine."""
    for axis in (-2, -1):
        values = sum(np.roll(values, k, axis) for k in range(-radius, radius + 1))
    return values


def example(name):
    """A shaded, noisy picture of regions (H, W, 3) and unsure, blurred probabilities of their classes (C, H, W)."""
    size, classes, _ = CASES[name]
    rng = np.random.default_rng([*size, classes])
    mask = smooth(smooth(rng.integers(-99, 100, (classes, *size)), 8), 8).argmax(0)
    shade = smooth(rng.integers(0, 2, (3, *size)), 12) // 6
    image = rng.integers(0, 160, (classes, 3))[mask] + shade.transpose(1, 2, 0) % 60 + rng.integers(-9, 10, (*size, 3))
    unsure = smooth(30 * (mask == np.arange(classes)[:, None, None]), 3) + smooth(rng.integers(-99, 100, (classes, *size)), 2)
    odds = np.exp((unsure - unsure.max(0)) / 300)
    return image.clip(0, 255).astype(np.uint8), (odds / odds.sum(0)).astype(np.float32)


def pydensecrf(image, probabilities, w1, theta_alpha, theta_beta, w2, theta_gamma, iterations=10):
    """The marginals (C, H, W), by pydensecrf."""
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    classes, height, width = probabilities.shape
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities)))
    crf.addPairwiseGaussian(sxy=theta_gamma, compat=w2)
    crf.addPairwiseBilateral(sxy=theta_alpha, srgb=theta_beta, rgbim=np.ascontiguousarray(image), compat=w1)
    return np.array(crf.inference(iterations)).reshape(classes, height, width)


def main():
    recorded = {}
    for name, (_, classes, numbers) in CASES.items():
        image, probabilities = example(name)
        marginals = pydensecrf(image, probabilities, **numbers)
        recorded[f"{name}_labels"] = marginals.argmax(0).astype(np.uint8)
        recorded[f"{name}_marginals"] = marginals.reshape(classes, -1)[:, ::EVERY]
        labels = marginals.argmax(0)
        changed = 100 * (labels != probabilities.argmax(0)).mean()
        print(f"{name}: the CRF changed {changed:.1f} % of labels and left {len(np.unique(labels))} classes")
    np.savez_compressed(RECORDED, **recorded)


if __name__ == "__main__":
    main()
