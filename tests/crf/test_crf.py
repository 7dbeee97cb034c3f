"""DenseCRF: against pydensecrf's recorded marginals, against mean field written out, and as a layer that learns."""

import numpy as np
import pytest
import torch

from dilated_seg.crf import DenseCRF
from dilated_seg.crf.dense_crf import DEEPLAB, build_appearance, build_smoothness
from dilated_seg.crf.permutohedral import Coding, elevate, find_remainder_0, find_simplices
from dilated_seg.errors import UserError
from tests.support import crf_marginals
from tests.support.commands import THREADS
from tests.support.tolerance import assert_equal_but_for_rounding


def drawn(size, classes, seed=0):
    """Two-sided pictures: an edge of colour at half the width, and probabilities that guess it by blurred noise."""
    generator = torch.Generator().manual_seed(seed)
    width = size[1]
    image = torch.randint(90, 110, (1, 3, *size), generator=generator)
    image[..., width // 2 :] += 60
    logits = torch.randn(1, classes, *size, generator=generator)
    logits[:, 0, :, : width // 2] += 1
    logits[:, -1, :, width // 2 :] += 1
    return logits.softmax(1), image.to(torch.uint8)


def corner(name, size):
    """The upper left of a recorded picture, and its probabilities."""
    arrays = crf_marginals.example(name)
    image, probabilities = torch.from_numpy(arrays[0]).permute(2, 0, 1), torch.from_numpy(arrays[1])
    return probabilities[None, :, : size[0], : size[1]], image[None, :, : size[0], : size[1]]


def written_out(probabilities, image, iterations, w1, theta_alpha, theta_beta, w2, theta_gamma):
    """Mean field with every pair of pixels, in float64: (C, H, W) and (3, H, W) to (C, H, W)."""
    classes, height, width = probabilities.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([rows, columns], -1).view(-1, 2).double()
    colour = image.reshape(3, -1).T.double()

    def kernel(features):
        k = torch.exp(-torch.cdist(features, features).square() / 2)
        norm = k.sum(1).rsqrt()
        return norm[:, None] * k * norm

    k = w1 * kernel(torch.cat([position / theta_alpha, colour / theta_beta], 1)) + w2 * kernel(position / theta_gamma)
    own = probabilities.double().clamp(1e-5, 1).log().reshape(classes, -1).T
    marginals = own.softmax(1)
    for _ in range(iterations):
        marginals = (own + k @ marginals).softmax(1)
    return marginals.T.view(classes, height, width)


@pytest.mark.parametrize("name", crf_marginals.CASES)
def test_labels_and_marginals_equal_pydensecrfs(name):
    image, probabilities = (torch.from_numpy(array) for array in crf_marginals.example(name))
    with np.load(crf_marginals.RECORDED) as recorded:
        labels, expected = (torch.from_numpy(recorded[f"{name}_{part}"]) for part in ("labels", "marginals"))
    (found,) = DenseCRF(**crf_marginals.CASES[name][2])(probabilities[None], image.permute(2, 0, 1)[None])
    assert (found.argmax(0) == labels).double().mean() >= 0.999
    assert (found.flatten(1)[:, :: crf_marginals.EVERY] - expected).abs().mean() <= 1e-5


@pytest.mark.parametrize("numbers", [crf_marginals.COMMON, crf_marginals.DEEPLAB])
@pytest.mark.parametrize("name", crf_marginals.CASES)
def test_small_images_agree_with_mean_field_over_all_pairs_but_for_the_lattice(name, numbers):
    probabilities, image = corner(name, (32, 40))
    found = DenseCRF(**numbers)(probabilities, image)[0]
    exact = written_out(probabilities[0], image[0], 10, **numbers)
    assert (probabilities[0].argmax(0) == exact.argmax(0)).double().mean() < 0.95
    assert (found.argmax(0) == exact.argmax(0)).double().mean() >= 0.99
    assert (found - exact).abs().mean() < 2e-3


def test_noise_goes_and_the_edge_stays():
    probabilities, image = drawn((40, 64), 2)
    truth = torch.arange(64).ge(32).long().expand(1, 40, 64)
    assert (probabilities.argmax(1) == truth).double().mean() < 0.8
    assert (DenseCRF()(probabilities, image).argmax(1) == truth).all()


def test_a_batch_equals_its_images_alone_in_bytes_or_not():
    pairs = [drawn((23, 31), 3, seed) for seed in range(3)]
    probabilities, image = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    crf = DenseCRF(3)
    together = crf(probabilities, image.float())
    assert torch.equal(together, torch.cat([crf(*pair) for pair in pairs]))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 3), (150, 170)])
@pytest.mark.parametrize("classes", [1, 17])
def test_any_size_and_number_of_classes_gives_probabilities(size, classes):
    found = DenseCRF(2)(*drawn(size, classes))
    assert found.shape == (1, classes, *size)
    torch.testing.assert_close(found.sum(1), torch.ones(1, *size))


def test_results_are_the_same_bits_on_any_number_of_threads():
    probabilities, image = drawn((150, 170), 21)
    found = []
    try:
        for threads in (1, 2, 3):
            build_smoothness.cache_clear()
            torch.set_num_threads(threads)
            found.append(DenseCRF(3)(probabilities, image))
    finally:
        torch.set_num_threads(int(THREADS))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_with_and_without_gradients_the_values_are_the_same():
    probabilities, image = drawn((100, 120), 4)
    probabilities = probabilities.double()
    crf = DenseCRF(4)
    assert_equal_but_for_rounding(crf(probabilities.requires_grad_(), image).detach(), crf(probabilities.detach(), image))


def test_gradients_of_probabilities_weights_and_compatibility_pass_gradcheck():
    probabilities, image = drawn((4, 5), 3)
    crf = DenseCRF(3, theta_alpha=3, theta_beta=30, num_classes=3, learnable=True).double()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter += torch.randn_like(parameter)
    parameters = dict(crf.named_parameters())

    def marginals(probabilities, *values):
        return torch.func.functional_call(crf, dict(zip(parameters, values, strict=True)), (probabilities, image))

    inputs = [probabilities.double().requires_grad_(), *(p.detach().clone().requires_grad_() for p in parameters.values())]
    assert len(inputs) == 4
    assert torch.autograd.gradcheck(marginals, inputs)


def test_the_simplex_of_the_example_in_the_documentation():
    x = torch.tensor([[1.2], [0.0], [-1.2]])
    y, rank = find_remainder_0(x)
    assert y.flatten().tolist() == [0, 0, 0] and rank.flatten().tolist() == [0, 1, 2]
    features = torch.tensor([[1.2], [0.6]])  # x_0 = p_1 + p_2, x_1 = p_2 - p_1, x_2 = -2 p_2
    coding = Coding([0, -5, -5], [-12, 1, 11], torch.int64)
    codes, weights = torch.empty(1, 3, dtype=torch.int64), torch.empty(1, 3)
    torch.testing.assert_close(elevate(features, [0.5, 1.0]), x)
    find_simplices(features, [0.5, 1.0], coding, codes, weights)
    torch.testing.assert_close(weights, torch.tensor([[0.2, 0.4, 0.4]]))
    vertices = [(0, 0, 0), (1, 1, -2), (2, -1, -1)]
    assert codes[0].tolist() == [(v[1] - v[0]) // 3 + 5 + ((v[2] - v[0]) // 3 + 5) * 11 for v in vertices]


def test_the_backward_of_a_kernel_is_its_transpose_though_the_blurs_do_not_commute():
    _, image = drawn((9, 11), 1)
    kernel = build_appearance(image[0], 4.0, 20.0)
    identity = torch.eye(99, dtype=torch.float64, requires_grad=True)
    matrix = kernel.slice(kernel.splat_and_blur(identity))
    left = torch.randn(99, 99, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((matrix * left).sum(), identity)
    torch.testing.assert_close(gradient, matrix.detach().T @ left)


def test_the_free_energy_does_not_rise_but_for_the_lattices_asymmetry():
    # With Potts and a kernel that is symmetric and positive, a pixel with itself included, the free energy is a convex function
    # less a convex one, and updating all pixels at once is the concave-convex procedure: it cannot raise it (Krähenbühl and
    # Koltun, 2013). The lattice's kernel is not quite symmetric, as vertices are missing on the way of its blurs. So this is
    # measured, not proved: near the end the energy may rise by a ten-millionth of what it fell.
    probabilities, image = corner("many", (60, 80))
    probabilities = probabilities.double()
    own = probabilities[0].clamp(1e-5, 1).log().flatten(1).T
    kernels = ((10.0, build_appearance(image[0], 80.0, 13.0)), (3.0, build_smoothness(60, 80, 3.0, image.device)))

    def energy(marginals):
        heard = sum(weight * kernel.slice(kernel.splat_and_blur(marginals)) for weight, kernel in kernels)
        return (torch.special.xlogy(marginals, marginals) - marginals * (own + heard / 2)).sum()

    steps = [DenseCRF(n)(probabilities, image)[0].flatten(1).T.contiguous() for n in range(1, 16)]
    energies = torch.stack([energy(marginals) for marginals in [own.softmax(1), *steps]])
    fall = energies[0] - energies[-1]
    assert fall > 0.5 * energies[0].abs()
    assert (energies.diff() <= 1e-7 * fall).all()


def test_it_has_neither_parameters_nor_state_unless_it_learns():
    assert not DenseCRF().state_dict()
    learning = DenseCRF(num_classes=5, learnable=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in learning.named_parameters()}
    assert shapes == {"w1": (5,), "w2": (5,), "compatibility": (5, 5)}
    probabilities, image = drawn((20, 30), 5)
    pair = probabilities.double(), image
    assert_equal_but_for_rounding(learning.double()(*pair).detach(), DenseCRF()(*pair))


def test_unrolled_it_learns_after_an_evaluation_too():
    probabilities, image = drawn((24, 36), 3)
    probabilities = probabilities.double()  # in float32 the losses, of 1e-5, would fall by as little as they round
    truth = torch.arange(36).ge(18).long().mul(2).expand(1, 24, 36)
    crf = DenseCRF(5, num_classes=3, learnable=True).double()
    with torch.inference_mode():
        crf(probabilities, image)
    optimizer = torch.optim.SGD(crf.parameters(), lr=1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = torch.nn.functional.nll_loss(crf(probabilities, image).log(), truth)
        loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in crf.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_improbable_classes_count_as_a_hundred_thousandth():
    probabilities, image = drawn((6, 7), 3)
    probabilities[:, 1] = 0
    found = DenseCRF(2)(probabilities, image)
    assert found.isfinite().all()
    assert torch.equal(found, DenseCRF(2)(probabilities.clamp(1e-5, 1), image))


def test_autocast_and_half_probabilities_are_computed_in_single_precision():
    probabilities, image = drawn((20, 30), 3)
    crf = DenseCRF(2, num_classes=3, learnable=True)
    expected = crf(probabilities.bfloat16().float(), image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = crf(probabilities.bfloat16(), image)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_deeplabs_parameters_are_available():
    pair = drawn((20, 30), 3)
    assert not torch.equal(DenseCRF(**DEEPLAB)(*pair), DenseCRF()(*pair))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"theta_alpha": 0.0}, "theta_alpha is 0"),
        ({"theta_beta": -1.0}, "theta_beta is -1"),
        ({"theta_gamma": float("nan")}, "theta_gamma is nan"),
    ],
)
def test_invalid_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        DenseCRF(**options)


def test_a_theta_that_no_lattice_can_hold_is_refused():
    with pytest.raises(UserError, match="theta is too small"):
        DenseCRF(theta_beta=1e-6)(*drawn((4, 5), 2))


def test_an_image_of_another_size_or_other_classes_are_refused():
    probabilities, image = drawn((4, 5), 2)
    with pytest.raises(ValueError, match="4, 5"):
        DenseCRF()(probabilities, image[..., 1:])
    with pytest.raises(ValueError, match="num_classes is 3"):
        DenseCRF(num_classes=3)(probabilities, image)


def test_a_learnable_crf_needs_the_number_of_classes_before_it_is_called():
    crf = DenseCRF(1, learnable=True)
    probabilities, image = torch.full((1, 3, 2, 2), 1 / 3), torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="num_classes"):
        crf(probabilities, image)
    crf.add_parameters(3)
    torch.testing.assert_close(crf(probabilities, image), probabilities)


def test_a_crf_is_named_by_its_parameters():
    assert DenseCRF().name == "crf"
    assert DenseCRF(5, w1=4.5).name == "crf-iterations_5-w1_4.5"
    assert str(DenseCRF()) == "dense CRF (iterations 10, w1 10, theta_alpha 80, theta_beta 13, w2 3, theta_gamma 3)"
