"""The affine Gaussian, its directional derivatives, and what a pixel grid can hold of them.

    g(x; Sigma) = exp(-x^T Sigma^-1 x / 2) / (2 pi sqrt(det Sigma))
    kernel of order (m, n) = (d1 . grad)^m (d2 . grad)^n g

A field is its covariance Sigma and the two vectors d1, d2 that its derivatives go along, whose lengths are
the deviations there: that is scale normalisation with gamma = 1, and an affine map x' = A x takes a field to
Sigma' = A Sigma A^T, d' = A d, and a kernel to kernel'(x') = kernel(x) / |det A|: nothing else to carry
along. With Sigma = L L^T and w = L^-1 x, every derivative is a sum of Hermite polynomials of w times the
Gaussian.

On the grid a kernel is, by default ("moments"), the sampled Gaussian times the polynomial of degree 4 that
gives it the moments of the true kernel up to degree 4.  So it answers every polynomial up to that degree as
the true kernel does (a constant by exactly 0, or exactly 1 without derivatives), and is covariant there for
every A; for wide kernels the polynomial is the Hermite polynomial itself, as in sampling, which is then exact
to rounding. "sampled", "integrated" over pixels and Lindeberg's discrete "analogue" are there to compare
with; `covariance.py` measures all four.
Source: paper, Methods; Lindeberg 2013, 2017 (affine scale space, its discretisation), 2024 (comparison).
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from numpy.polynomial.hermite_e import hermeroots, hermeval
from numpy.polynomial.legendre import leggauss
from torch import Tensor
from torch.nn.functional import pad

MAX_ORDER = 4  # of derivatives, and degree of the polynomials answered exactly; a 5 x 5 kernel holds no more
ORDERS = tuple((order - n, n) for order in range(MAX_ORDER + 1) for n in range(order + 1))  # all 15
NODES = 7  # Gauss-Legendre nodes per pixel and axis: within 1e-6 of the greatest value from 0.5 pixels on
Orders = Sequence[tuple[int, int]]  # (m, n), of derivatives along d1 and d2
DISCRETISATIONS = ("moments", "integrated", "sampled", "analogue")


class AffineField(NamedTuple):
    """covariance: (..., 2, 2), squared pixels.  directions: (..., 2, 2), pixels; its columns are d1 and d2, x
    before y, of the length of the deviation along them."""

    covariance: Tensor
    directions: Tensor


def field_from_axes(sigma_u: Tensor, sigma_v: Tensor, phi_rad: Tensor) -> AffineField:
    """The field of deviation sigma_u along the angle phi_rad, sigma_v across; derivatives go along these
    axes.

    Arguments broadcast to any shape.  x runs along columns, y along rows, so that angles turn from x to y.
    """
    sigma_u, sigma_v, phi_rad = torch.broadcast_tensors(sigma_u, sigma_v, phi_rad)
    cos, sin = torch.cos(phi_rad), torch.sin(phi_rad)
    rows = [cos * sigma_u, -sin * sigma_v], [sin * sigma_u, cos * sigma_v]
    directions = torch.stack([torch.stack(row, -1) for row in rows], -2)
    return AffineField(directions @ directions.mT, directions)


def field_from_covariance(covariance: Tensor, phi_rad: Tensor | None = None) -> AffineField:
    """The field of a covariance (..., 2, 2), derived along the angle phi_rad (...) and across it, each times
    the deviation that the Gaussian has in that direction.  phi_rad None: along the longer axis, which a round
    Gaussian has not: its angle is 0 and has no gradient."""
    if phi_rad is None:
        xx, xy, yy = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
        phi_rad = torch.atan2(2 * xy, xx - yy) / 2
    one = torch.ones((), dtype=covariance.dtype, device=covariance.device)
    unit = field_from_axes(one, one, phi_rad).directions
    deviations = torch.einsum("...ki,...kl,...li->...i", unit, covariance, unit).sqrt()
    return AffineField(covariance, unit * deviations[..., None, :])


def mapped(field: AffineField, matrix: Tensor) -> AffineField:
    """The field as the affine map turns it into x' = matrix x, matrix (..., 2, 2)."""
    return AffineField(matrix @ field.covariance @ matrix.mT, matrix @ field.directions)


def hermite_products(w: Tensor, degree: int) -> Tensor:
    """He_j(w1) He_k(w2) of the probabilists' Hermite polynomials, (..., 2) to (..., number of j + k <=
    degree), in the order of `ORDERS`."""
    powers = [torch.ones_like(w), w]
    for k in range(2, degree + 1):
        powers.append(w * powers[-1] - (k - 1) * powers[-2])
    products = [powers[s - k][..., 0] * powers[k][..., 1] for s in range(degree + 1) for k in range(s + 1)]
    return torch.stack(products, -1)


def affine_gaussian(points: Tensor, field: AffineField, orders: Orders = ((0, 0),)) -> Tensor:
    """Derivatives of the affine Gaussian at points (..., P, 2), any positions in pixels, x before y:
    (..., P, len(orders)).  orders: pairs (m, n), m + n <= 4.  ValueError for others."""
    root, w = _whitened(points, field)
    return _hermite_gaussian(root, w) @ _expansion(root, field, orders).mT


def affine_kernels(
    field: AffineField,
    orders: Orders,
    size: int,
    discretisation: str = "moments",
    offset: Tensor | None = None,
) -> Tensor:
    """Kernels (..., len(orders), size, size) of fields (...), y along dim -2, x along dim -1, dtype of the
    field (float64 expected), differentiable in all of it.

    orders: pairs (m, n), m + n <= 4.  size: odd, 5 or more; `kernel_support` says how large it should be.
    offset: (..., 2) pixels, where the field's centre lies from that of the kernel.  Deviations below 0.25
    pixels leave too little of the Gaussian on the grid for "moments". A convolution layer, which correlates,
    answers an odd order with the opposite sign."""
    if size < 5 or size % 2 == 0:
        raise ValueError(f"kernel size {size}: expected an odd number, 5 or more")
    if discretisation not in DISCRETISATIONS:
        raise ValueError(f"discretisation {discretisation!r}: expected one of {', '.join(DISCRETISATIONS)}")
    points = _grid(size, field.covariance)
    if offset is not None:
        points = points - offset[..., None, :]
    root, w = _whitened(points, field)
    expansion = _expansion(root, field, orders)
    sampled = _hermite_gaussian(root, w)
    if discretisation == "analogue":
        values = _analogue(field, orders, size, offset)
    elif discretisation == "integrated":
        nodes, weights = _quadrature(field.covariance)
        values = sum(
            weight * _hermite_gaussian(*_whitened(points + node, field))
            for node, weight in zip(nodes, weights, strict=True)
        )
        values = values @ expansion.mT
    else:
        values = sampled @ expansion.mT
    if discretisation == "moments":
        for _ in range(2):  # the second time what rounding left, of fields far too large for the kernel
            values = _with_moments(values, sampled[..., 0], w, expansion, MAX_ORDER)
    values = _with_moments(values, sampled[..., 0], w, expansion, 0)  # after "moments": what rounding left
    return values.mT.unflatten(-1, (size, size))


def kernel_support(sigma: Tensor | float, epsilon: float = 1e-4, order: int = 0) -> int:
    """The smallest odd size, in pixels, of a kernel that leaves out at most the part epsilon of the absolute
    integral of a derivative of this order, epsilon / 2 along either axis.

    sigma: deviation in pixels along the pixel axes, sqrt(Sigma_xx) or sqrt(Sigma_yy), the greatest if
    several."""
    if not 0 < epsilon < 1 or not 0 <= order <= MAX_ORDER:
        raise ValueError(f"epsilon {epsilon}, order {order}: expected within (0, 1) and 0 to {MAX_ORDER}")
    sigma = float(torch.as_tensor(sigma).max())
    size = 1
    while _tail(size / 2 / sigma, order) > epsilon / 2:
        size += 2
    return size


def _tail(reach: float, order: int) -> float:
    """Part of the absolute integral of the order-th derivative of a Gaussian of deviation 1 beyond
    +-reach."""
    if order == 0:
        return math.erfc(reach / math.sqrt(2))
    coefficients = [0] * (order - 1) + [1]  # of the derivative before, whose changes are this one's integrals

    def before(x: float) -> float:
        return float(hermeval(x, coefficients) * math.exp(-x * x / 2))

    zeros = sorted(hermeroots([0] * order + [1]))
    stops = [0.0, *(before(x) for x in zeros), 0.0]
    total = sum(abs(b - a) for a, b in itertools.pairwise(stops))
    return float(2 * abs(before(max(reach, zeros[-1]))) / total)


def _grid(size: int, like: Tensor) -> Tensor:
    """Pixel centres (size^2, 2), x before y, row by row."""
    steps = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def _quadrature(like: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes (NODES^2, 2) in the pixel around 0, and their weights (NODES^2,)."""
    nodes, weights = (torch.tensor(v / 2, dtype=like.dtype, device=like.device) for v in leggauss(NODES))
    return torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten()


def _whitened(points: Tensor, field: AffineField) -> tuple[Tensor, Tensor]:
    """L (..., 2, 2), lower triangular, of Sigma = L L^T, and w = L^-1 x, (..., P, 2)."""
    root = torch.linalg.cholesky(field.covariance)
    a, b, d = root[..., 0, 0, None], root[..., 1, 0, None], root[..., 1, 1, None]
    w1 = points[..., 0] / a
    return root, torch.stack([w1, (points[..., 1] - b * w1) / d], -1)


def _hermite_gaussian(root: Tensor, w: Tensor) -> Tensor:
    """Derivatives of the Gaussian along the columns of L, (..., P, 15): Hermite products times the
    Gaussian."""
    scale = 2 * math.pi * root[..., 0, 0] * root[..., 1, 1]
    gaussian = torch.exp(-w.square().sum(-1) / 2) / scale[..., None]
    return hermite_products(w, MAX_ORDER) * _signs(w) * gaussian[..., None]


def _signs(like: Tensor) -> Tensor:
    return torch.tensor([(-1.0) ** (m + n) for m, n in ORDERS], dtype=like.dtype, device=like.device)


def _expansion(root: Tensor, field: AffineField, orders: Orders) -> Tensor:
    """Coefficients (..., len(orders), 15) of the derivatives along d1, d2 in those along the columns of L."""
    bad = [order for order in orders if tuple(order) not in ORDERS]
    if bad:
        raise ValueError(f"order {bad[0]}: expected (m, n) with m + n from 0 to {MAX_ORDER}")
    x, y = field.directions[..., 0, :], field.directions[..., 1, :]
    first = x / root[..., 0, 0, None]
    second = (y - root[..., 1, 0, None] * first) / root[..., 1, 1, None]
    rows = []
    for m, n in orders:
        polynomial = torch.ones_like(first[..., :1])  # coefficients of D1^s, D1^(s-1) D2, ..., D2^s
        for i in [0] * m + [1] * n:
            along_1, along_2 = first[..., i, None], second[..., i, None]
            polynomial = pad(polynomial, (0, 1)) * along_1 + pad(polynomial, (1, 0)) * along_2
        before = (m + n) * (m + n + 1) // 2
        rows.append(pad(polynomial, (before, len(ORDERS) - before - m - n - 1)))
    return torch.stack(rows, -2)


def _with_moments(values: Tensor, gaussian: Tensor, w: Tensor, expansion: Tensor, degree: int) -> Tensor:
    """Kernels (..., P, n) plus the polynomials times `gaussian` (..., P) that give them the moments of the
    true kernels up to `degree`.  In Hermite polynomials the true ones are factorials at the kernel's own
    order."""
    basis = hermite_products(w, degree)
    count = basis.shape[-1]
    factorials = [(-1.0) ** (m + n) * math.factorial(m) * math.factorial(n) for m, n in ORDERS[:count]]
    true = expansion[..., :count] * torch.tensor(factorials, dtype=w.dtype, device=w.device)
    weighted = basis * gaussian[..., None]
    missing = true.mT - basis.mT @ values
    return values + weighted @ torch.linalg.solve(basis.mT @ weighted, missing)


def _analogue(field: AffineField, orders: Orders, size: int, offset: Tensor | None) -> Tensor:
    """Lindeberg's discrete analogue, central differences of it, (..., size^2, n): the diffusion equation on
    the grid, exact in time, by its Fourier transform on a period of 4 sizes and 32 pixels."""
    if offset is not None:
        raise ValueError("discretisation 'analogue': expected no offset, it lives on the grid alone")
    period, covariance = 4 * size + 32, field.covariance
    frequency = 2 * math.pi * torch.fft.fftfreq(period, dtype=covariance.dtype, device=covariance.device)
    v, u = torch.meshgrid(frequency, frequency, indexing="ij")
    xx, xy, yy = (covariance[..., i, j, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    flat_u, flat_v = u.cos() - 1, v.cos() - 1
    smooth = torch.exp(xx * flat_u + yy * flat_v - xy * u.sin() * v.sin() + xy.abs() * flat_u * flat_v)
    differences = [
        [torch.ones_like(u) + 0j, 1j * f.sin(), 2 * flat + 0j, 2j * flat * f.sin(), 4 * flat**2 + 0j]
        for f, flat in ((u, flat_u), (v, flat_v))
    ]
    along_axes = torch.stack([differences[0][m] * differences[1][n] for m, n in ORDERS])
    identity = torch.eye(2, dtype=covariance.dtype, device=covariance.device)
    coefficients = _expansion(identity.expand_as(covariance), field, orders).to(along_axes.dtype)
    transform = torch.einsum("...ok,kvu->...ovu", coefficients, along_axes) * smooth[..., None, :, :]
    kernels = torch.fft.fftshift(torch.fft.ifft2(transform).real, dim=(-2, -1))
    first = period // 2 - size // 2
    return kernels[..., first : first + size, first : first + size].flatten(-2).mT
