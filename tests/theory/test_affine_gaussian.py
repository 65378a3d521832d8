"""Affine Gaussian derivatives against symbolic ones, quadrature and pyscsp, and the properties they
promise.
"""

import itertools
import math

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyscsp.affscsp import sampldirderaffgausskernelfromlambda12phi
from pyscsp.discscsp import make1Ddiscgaussderfilter, make1Ddiscgaussfilter
from pyscsp.gaussders import make1Dintgaussderfilter, make1Dsamplgaussderfilter
from scipy.integrate import dblquad

from nrf.theory.affine_gaussian import (
    DISCRETISATIONS,
    ORDERS,
    affine_gaussian,
    affine_kernels,
    field_from_axes,
    field_from_covariance,
    hermite_products,
    kernel_support,
    mapped,
)

LOW = tuple(order for order in ORDERS if sum(order) <= 2)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def field(sigma_u, sigma_v, phi_rad):
    return field_from_axes(*tensor(sigma_u, sigma_v, phi_rad))


def grid(size):
    """Pixel centres (size, size, 2), x before y."""
    steps = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)


def correlation(a, b):
    a, b = (np.asarray(values).ravel() for values in (a, b))
    return a @ b / np.sqrt((a @ a) * (b @ b))


sigmas = st.floats(0.4, 3.0)
angles = st.floats(-7, 7)
fields = st.builds(field, sigmas, sigmas, angles)
matrices = st.lists(st.floats(-2, 2), min_size=4, max_size=4).map(lambda v: tensor(v[:2], v[2:]))
matrices = matrices.filter(lambda matrix: abs(torch.linalg.det(matrix)) > 0.1)
any_fields = st.builds(mapped, fields, matrices).filter(
    lambda f: 0.3 < torch.linalg.eigvalsh(f.covariance)[0].sqrt() < 4
)


# --- the functions ---


def test_derivatives_are_the_symbolic_ones():
    """Any covariance, any two directions, all orders, against sympy."""
    x, y = sympy.symbols("x y")
    covariance = sympy.Matrix([[3, 1], [1, 2]]) / 2
    d1, d2 = sympy.Matrix([1, sympy.Rational(1, 3)]), sympy.Matrix([-sympy.Rational(1, 2), 2])
    exponent = (sympy.Matrix([[x, y]]) * covariance.inv() * sympy.Matrix([x, y]))[0]
    gaussian = sympy.exp(-exponent / 2) / (2 * sympy.pi * sympy.sqrt(covariance.det()))
    points = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6 - 3
    ours = field_from_covariance(tensor([1.5, 0.5], [0.5, 1.0]))._replace(
        directions=tensor([1, -0.5], [1 / 3, 2])
    )
    values = affine_gaussian(points, ours, ORDERS)
    for i, order in enumerate(ORDERS):
        derived = gaussian
        for d in [d1] * order[0] + [d2] * order[1]:
            derived = d[0] * sympy.diff(derived, x) + d[1] * sympy.diff(derived, y)
        wanted = sympy.lambdify((x, y), derived, "numpy")(*points.T.numpy())
        np.testing.assert_allclose(values[:, i], wanted, rtol=1e-9, atol=1e-12)


@given(sigmas, sigmas, angles)
def test_deviations_are_those_along_the_directions(sigma_u, sigma_v, phi_rad):
    one = field(sigma_u, sigma_v, phi_rad)
    along = tensor(math.cos(phi_rad), math.sin(phi_rad))
    torch.testing.assert_close(one.directions[:, 0], sigma_u * along)
    torch.testing.assert_close(one.covariance @ along, sigma_u**2 * along)
    torch.testing.assert_close(torch.linalg.det(one.covariance).sqrt(), tensor(sigma_u * sigma_v)[0])
    for actual, wanted in zip(field_from_covariance(one.covariance, tensor(phi_rad)[0]), one, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)
    turned = field_from_covariance(one.covariance, tensor(phi_rad + 1)[0])  # along no axis of the Gaussian
    unit = tensor(math.cos(phi_rad + 1), math.sin(phi_rad + 1))
    torch.testing.assert_close(turned.directions[:, 0], unit * (unit @ one.covariance @ unit).sqrt())
    longer = field_from_covariance(one.covariance).directions[:, 0]
    assert longer.norm().item() == pytest.approx(max(sigma_u, sigma_v))


@given(any_fields, matrices, st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
def test_every_affine_map_carries_every_derivative_along(one, matrix, point):
    """kernel'(A x) = kernel(x) / |det A|: the covariance the paper claims."""
    points = tensor(point)
    here = affine_gaussian(points, one, ORDERS) / torch.linalg.det(matrix).abs()
    there = affine_gaussian(points @ matrix.T, mapped(one, matrix), ORDERS)
    torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-9 * here.abs().max().item() + 1e-300)


def test_hermite_products_are_those_of_the_table():
    w = tensor([0.7, -1.3])
    wanted = [1, 0.7, -1.3, 0.7**2 - 1, 0.7 * -1.3, 1.3**2 - 1, 0.7**3 - 3 * 0.7, (0.7**2 - 1) * -1.3]
    assert hermite_products(w, 3)[0, :8].tolist() == pytest.approx(wanted)
    assert hermite_products(w, 4).shape == (1, len(ORDERS))


# --- kernels ---


def true_moments(one, degree):
    """Integrals of every derivative times x^a y^b, {(a, b): (orders,)}, by Gauss-Hermite quadrature."""
    nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(9))
    w = torch.cartesian_prod(nodes, nodes)
    root = torch.linalg.cholesky(one.covariance)
    x, y = (w @ root.T).T
    density = affine_gaussian(w @ root.T, one, ORDERS) / affine_gaussian(w @ root.T, one)
    weight = torch.outer(weights, weights).flatten() / (2 * math.pi)
    return {
        (a, b): (weight * x**a * y**b) @ density
        for a, b in itertools.product(range(degree + 1), repeat=2)
        if a + b <= degree
    }


@given(any_fields, st.sampled_from([5, 7, 9, 15]))
def test_moments_up_to_degree_4_are_the_true_ones(one, size):
    kernels = affine_kernels(one, ORDERS, size)
    x, y = grid(size).unbind(-1)
    for (a, b), wanted in true_moments(one, 4).items():
        scale = 1 + (size // 2) ** (a + b)
        actual = (kernels * x**a * y**b).sum((-2, -1))
        assert (actual - wanted).abs().max() < 1e-9 * scale * kernels.abs().sum((-2, -1)).max(), (a, b)


@given(fields, matrices)
def test_kernels_are_covariant_on_polynomials(one, matrix):
    """On an image of degree 4, mapping then filtering equals filtering then mapping, for every order."""
    image = torch.linspace(-1, 1, len(ORDERS), dtype=torch.float64)
    there = mapped(one, matrix)
    if torch.linalg.eigvalsh(there.covariance)[0] < 0.3**2:
        return
    points = grid(9)

    def polynomial(p):
        return hermite_products(p, 4) @ image

    mapped_then_filtered = (affine_kernels(there, ORDERS, 9) * polynomial(points)).sum((-2, -1))
    filtered_then_mapped = (affine_kernels(one, ORDERS, 9) * polynomial(points @ matrix.T)).sum((-2, -1))
    scale = 1 + polynomial(points).abs().max() + polynomial(points @ matrix.T).abs().max()
    assert (mapped_then_filtered - filtered_then_mapped).abs().max() < 1e-8 * scale


@given(any_fields, st.sampled_from(DISCRETISATIONS), st.sampled_from([5, 7, 9]))
def test_constants_pass_unchanged_or_not_at_all(one, discretisation, size):
    sums = affine_kernels(one, ORDERS, size, discretisation).sum((-2, -1))
    largest = affine_kernels(one, ORDERS, size, discretisation).abs().amax()
    assert sums[0].item() == pytest.approx(1, abs=1e-12)
    assert sums[1:].abs().max() < 1e-13 * max(1, largest)


def blob_error(one, order, size, discretisation, deviation):
    """Relative l2 error of the response to a Gaussian of this deviation, whose true response is a Gaussian
    derivative again."""
    image = deviation**2 * torch.eye(2, dtype=torch.float64)
    kernel = affine_kernels(one, [order], size, discretisation)[0]
    places = grid(17).flatten(0, 1) + tensor(0.3, -0.2)
    taps = grid(size).flatten(0, 1)
    values = affine_gaussian((places[:, None] - taps).flatten(0, 1), field_from_covariance(image))
    response = values.view(len(places), -1) @ kernel.flatten()
    truth = affine_gaussian(places, one._replace(covariance=one.covariance + image), [order])[:, 0]
    return ((response - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("sigma_u, sigma_v", [(1, 1), (1.5, 1), (2, 1.2)])
@pytest.mark.parametrize("order", LOW)
def test_responses_are_true_to_1_percent_from_1_pixel_on(sigma_u, sigma_v, order):
    one = field(sigma_u, sigma_v, 0.4)
    size = kernel_support(one.covariance.diagonal().sqrt(), 1e-4, sum(order))
    assert blob_error(one, order, size, "moments", 1.0) < 0.01


@pytest.mark.parametrize("order", LOW)
def test_responses_at_half_a_pixel(order):
    """Below 5 %, and ahead of the plain discretisations; of those the integrated one has the best
    derivatives."""
    one = field(0.5, 0.5, 0.4)
    errors = {name: blob_error(one, order, 5, name, 1.5) for name in DISCRETISATIONS}
    assert errors["moments"] < 0.05
    assert errors["moments"] == min(errors.values())
    if sum(order):
        assert min(errors["integrated"], errors["moments"]) < 0.8 * min(errors["sampled"], errors["analogue"])


@pytest.mark.parametrize("phi_rad", [0.0, 0.3, 1.2, -2.0])
def test_sampled_kernels_are_pyscsps_where_it_is_right(phi_rad):
    """Its y axis points up, so its angles turn the other way; order (1, 1) is wrong there."""
    one = field(2.0, 1.1, -phi_rad)
    kernels = affine_kernels(one, [(0, 0), (1, 0), (0, 1)], 25, "sampled")
    for kernel, order in zip(kernels, [(0, 0), (1, 0), (0, 1)], strict=True):
        wanted = sampldirderaffgausskernelfromlambda12phi(4.0, 1.21, phi_rad, *order, 12)
        # its second direction is turned from the first as y up wants it
        assert (-1) ** order[1] * correlation(kernel, wanted) > 0.9999
        gain = 2.0 ** order[0] * 1.1 ** order[1]
        np.testing.assert_allclose(kernel, (-1) ** order[1] * gain * wanted, atol=1e-6)


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize(
    "discretisation, theirs",
    [
        ("sampled", make1Dsamplgaussderfilter),
        ("integrated", make1Dintgaussderfilter),
        ("analogue", make1Ddiscgaussderfilter),
    ],
)
def test_axis_aligned_kernels_are_products_of_pyscsps(discretisation, theirs, order):
    """Error functions, samples and Bessel functions with central differences, along both axes."""
    sigmas = {"sampled": (1.2, 0.9), "integrated": (0.6, 0.5), "analogue": (1.2, 0.9)}[discretisation]
    one = field(*sigmas, 0.0)
    for i, (m, n) in enumerate([(order, 0), (0, order)]):
        kernel = affine_kernels(one, [(m, n)], 23, discretisation)[0]
        along, across = (theirs(k, s, 11) for k, s in zip((m, n), sigmas, strict=True))
        wanted = np.outer(across, along) * sigmas[i] ** order
        if order == 0:
            wanted = wanted / wanted.sum()
        wanted = wanted - wanted.sum() * np.asarray(affine_kernels(one, [(0, 0)], 23, "sampled")[0]) * bool(
            order
        )
        np.testing.assert_allclose(kernel, wanted, atol=2e-6 * np.abs(wanted).max())


def test_analogue_of_a_round_gaussian_is_made_of_bessel_functions():
    kernel = affine_kernels(field(1.3, 1.3, 0.7), [(0, 0)], 31, "analogue")[0]
    wanted = make1Ddiscgaussfilter(1.3, 1e-12)
    half = len(wanted) // 2
    wanted = np.outer(wanted, wanted)[half - 7 : half + 8, half - 7 : half + 8]
    np.testing.assert_allclose(kernel[8:23, 8:23], wanted, atol=1e-9)


def test_analogue_of_a_wide_turned_gaussian_is_near_it():
    """Its error falls with the variance; a mirrored axis would leave 0.9 of the correlation."""
    one = field(3.0, 2.0, 0.6)
    pairs = (affine_kernels(one, [(0, 0), (1, 0), (1, 1)], 25, name) for name in ("analogue", "sampled"))
    for analogue, sampled in zip(*pairs, strict=True):
        assert correlation(analogue, sampled) > 0.99


@pytest.mark.parametrize("order", [(0, 0), (1, 1), (2, 1)])
def test_integrated_kernels_of_turned_fields_are_the_integrals(order):
    """Against adaptive quadrature; there is no closed form off the axes."""
    one = field(0.7, 0.5, 0.6)
    kernel = affine_kernels(one, [order], 15, "integrated")[0]
    for column, row in [(7, 7), (8, 7), (6, 9)]:
        x, y = column - 7, row - 7
        wanted, _ = dblquad(
            lambda y, x: affine_gaussian(tensor([x, y]), one, [order]).item(),
            *(x - 0.5, x + 0.5, y - 0.5, y + 0.5),
            epsabs=1e-9,
        )
        assert kernel[row, column].item() == pytest.approx(wanted, abs=1e-6 * kernel.abs().max().item())


def test_fields_off_the_centre():
    one, offset = field(1.0, 0.8, 0.4), tensor(0.3, -0.45)
    sampled = affine_kernels(one, ORDERS, 15, "sampled", offset)
    wanted = affine_gaussian((grid(15) - offset).flatten(0, 1), one, ORDERS).T.reshape(15, 15, 15)
    torch.testing.assert_close(sampled, wanted, rtol=1e-4, atol=2e-3)  # apart from what makes the sums exact
    x, y = (grid(15) - offset).unbind(-1)
    for (a, b), moments in true_moments(one, 4).items():
        actual = (affine_kernels(one, ORDERS, 15, offset=offset) * x**a * y**b).sum((-2, -1))
        torch.testing.assert_close(actual, moments, rtol=1e-9, atol=1e-9)


def test_banks_are_their_kernels_one_by_one():
    bank = field_from_axes(tensor(0.7, 1.0, 1.5), tensor([0.6], [1.2]), tensor(0.4)[0])
    for name in DISCRETISATIONS:
        kernels = affine_kernels(bank, ORDERS, 7, name)
        assert kernels.shape == (2, 3, 15, 7, 7)
        one = field(1.0, 1.2, 0.4)
        torch.testing.assert_close(kernels[1, 1], affine_kernels(one, ORDERS, 7, name))


# --- support ---


@given(fields, st.sampled_from([1e-2, 1e-3, 1e-4]))
def test_support_leaves_out_no_more_than_it_says(one, epsilon):
    """Absolute integrals outside the support, on a grid of 1/3 deviation, for orders up to 2."""
    deviations = one.covariance.diagonal().sqrt()
    for i, order in enumerate(LOW):
        half = kernel_support(deviations, epsilon, sum(order)) / 2
        root = torch.linalg.cholesky(one.covariance)
        steps = torch.arange(-9, 9.01, 1 / 3, dtype=torch.float64)
        points = torch.cartesian_prod(steps, steps) @ root.T
        values = affine_gaussian(points, one, LOW)[:, i].abs()
        outside = values[(points.abs() > half).any(-1)].sum() / values.sum()
        assert outside <= epsilon * 1.1


def test_support_is_tight():
    """At 1 pixel the tails beyond 9 and 7 pixels: 2 * erfc(4.5 / sqrt 2) below 1e-4, 2 * erfc(3.5 / sqrt 2)
    above."""
    assert [kernel_support(s) for s in (0.5, 1.0, 2.0)] == [5, 9, 17]
    assert 2 * math.erfc(4.5 / math.sqrt(2)) < 1e-4 < 2 * math.erfc(3.5 / math.sqrt(2))
    assert [kernel_support(1.0, 1e-4, order) for order in range(5)] == [9, 9, 11, 11, 11]
    assert kernel_support(tensor(0.5, 2.0, 1.0)) == kernel_support(2.0)


# --- gradients ---


@pytest.mark.parametrize("discretisation", DISCRETISATIONS)
def test_gradients_are_finite_differences(discretisation):
    def kernels(sigma_u, sigma_v, phi_rad):
        return affine_kernels(field_from_axes(sigma_u, sigma_v, phi_rad), LOW, 5, discretisation)

    parameters = [p.requires_grad_() for p in tensor([0.8, 1.2], [0.6, 1.1], [0.4, -2.0]).unbind()]
    assert torch.autograd.gradcheck(kernels, parameters, atol=1e-6, rtol=1e-5, fast_mode=True)


def test_gradients_of_covariance_map_and_offset():
    def kernels(root, matrix, offset):
        there = mapped(field_from_covariance(root @ root.T), matrix)
        return affine_kernels(there, [(1, 0), (1, 1)], 5, offset=offset)

    parameters = tensor([1, 0.2], [0.3, 0.8]), tensor([1, 0.1], [-0.3, 0.9]), tensor(0.2, 0.1)
    assert torch.autograd.gradcheck(kernels, [p.requires_grad_() for p in parameters], atol=1e-6, rtol=1e-5)


# --- what is refused ---


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: affine_kernels(field(1, 1, 0), [(0, 0)], 4),
            "kernel size 4: expected an odd number, 5 or more",
        ),
        (lambda: affine_kernels(field(1, 1, 0), [(0, 0)], 3), "kernel size 3: expected"),
        (
            lambda: affine_kernels(field(1, 1, 0), [(0, 0)], 5, "exact"),
            "'exact': expected one of moments, int",
        ),
        (
            lambda: affine_kernels(field(1, 1, 0), [(3, 2)], 5),
            r"order \(3, 2\): expected \(m, n\) with m \+ n from",
        ),
        (lambda: affine_gaussian(tensor([0, 0]), field(1, 1, 0), [(-1, 0)]), r"order \(-1, 0\): expected"),
        (
            lambda: affine_kernels(field(1, 1, 0), [(0, 0)], 5, "analogue", tensor(0.1, 0)),
            "expected no offset",
        ),
        (lambda: kernel_support(1.0, 0.0), "epsilon 0.0, order 0: expected within"),
        (lambda: kernel_support(1.0, 1e-4, 5), "order 5: expected within"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
