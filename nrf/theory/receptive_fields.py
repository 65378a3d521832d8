"""The theory over space: covariance matrices, affine Gaussian kernels, their directional derivatives, banks.

A field is a row (variance, angle_rad, ratio, dx, dy): the Gaussian of covariance `covariance_matrix(...)`,
derived dx times along the direction `angle_rad` and dy times across it.  A bank is a set of rows; its kernels
are built in float64 and cast last.  The families "published" and "norse-1.1.0" are built here, as those
systems do; "exact" are the fields of `affine_gaussian.py`. Source: paper, Methods (spatial receptive fields);
FIDELITY 1-4, 50-52.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nrf.theory.affine_gaussian import affine_kernels, field_from_axes

KERNEL_SIZES = (9, 7, 5)  # pixels, of layers 1, 2, 3
DERIVATIVES = ((0, 0), (1, 0), (0, 1), (1, 1))  # orders along and across the direction of a field
DOMAIN = 6.0  # a kernel of any size covers [-6, 6]^2: sigma shrinks in taps from layer to layer (FIDELITY 2)
SMALLEST_SIGMA = 0.4  # pixels, of the short axis of an exact field of variance 1
KERNEL_DEVIATIONS = 6  # size of a kernel over the long axis's deviation of an exact field of variance 8
SIGMA_RANGE = 0.3, 0.2  # pixels, and parts of the kernel's size, that no deviation of an exact field leaves
MIXING_GAIN = (
    2.0  # norm of the weights over the inputs of an exact field: about what rectification takes away
)
COLUMNS = ("variance", "angle_rad", "ratio", "dx", "dy")
SCHEMES = ("rf", "uniform")  # to draw weights and time constants at the start


class Family(NamedTuple):
    """A row of `FAMILIES`: one family of receptive fields.

    kernels: (rows (N, 5), size) -> the bank (N, size, size), cast by its callers.
    half_turn: fields repeat after half a turn, and directions are spread over that.
    round_once: round fields come once, not again for every angle.
    mixed: layers of filtered inputs start with random orthogonal mixtures of them, not with their sum.
    """

    kernels: Callable[[Tensor, int], Tensor]
    half_turn: bool = False
    round_once: bool = True
    mixed: bool = False


def family_of(name: str) -> Family:
    """The row of this name.  ValueError, with those that exist, for another."""
    if name not in FAMILIES:
        raise ValueError(f"receptive fields {name!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def spatial_angles(n_angles: int, family: str = "published", further: int = 0) -> Tensor:
    """Directions of a bank in radians, float32 (n_angles + further,): evenly from 0 to 2 pi - pi / n_angles,
    as published, so that further ones do not move the last (FIDELITY 90); exact ones evenly over the half
    turn after which a field repeats."""
    count = n_angles + further
    if family_of(family).half_turn:
        return torch.arange(count) * (math.pi / count)
    return torch.linspace(0, 2 * math.pi - math.pi / n_angles, count)


def spatial_parameters(
    n_scales: int = 4, n_angles: int = 4, n_ratios: int = 3, n_angles_grow: int = 0, family: str = "published"
) -> Tensor:
    """Rows of the bank, float32 (N, 5), columns `COLUMNS`, in the published order.

    Variances 2^0 .. 2^(n_scales-1); ratios sqrt(1.5)^0 .. sqrt(1.5)^(n_ratios-1).  First the elongated
    fields, then the round ones (ratio 1): these for the first angle only ("published", "exact": 144 rows of
    the paper's 4, 4, 3), or repeated for every angle ("norse-1.1.0": 192 rows; FIDELITY 1).  n_angles_grow >
    0 adds to the i-th ratio fields at n_angles + i * n_angles_grow angles and, as published, sorts the rows.
    ValueError for counts below 1."""
    if min(n_scales, n_angles, n_ratios) < 1 or n_angles_grow < 0:
        raise ValueError(
            f"n_scales {n_scales}, n_angles {n_angles}, n_ratios {n_ratios}: expected at least 1, "
            f"n_angles_grow {n_angles_grow}: expected at least 0"
        )
    variances = 2.0 ** torch.arange(n_scales)
    ratios = torch.sqrt(1.5 ** torch.arange(n_ratios))
    angles = spatial_angles(n_angles, family)
    fields = list(itertools.product(variances, angles, ratios[1:]))
    round_angles = angles[:1] if family_of(family).round_once else angles
    fields += itertools.product(variances, round_angles, ratios[:1])
    if n_angles_grow:
        for i, ratio in enumerate(ratios[1:], start=1):
            grown = spatial_angles(n_angles, family, further=i * n_angles_grow)
            fields += itertools.product(variances, grown, [ratio])
    rows = torch.tensor([[*field, *order] for field in fields for order in DERIVATIVES])
    return rows.unique(dim=0) if n_angles_grow else rows


def covariance_matrix(variance: Tensor, angle_rad: Tensor, ratio: Tensor) -> Tensor:
    """Sigma = variance * R diag(ratio^2, ratio^-2) R^T with R the rotation by angle_rad.

    Arguments broadcast to any shape (...); returns (..., 2, 2), first axis x (along columns), second y
    (along rows).
    Source: paper, Methods (affine Gaussian kernel).
    """
    cos, sin = torch.cos(angle_rad), torch.sin(angle_rad)
    major, minor = variance * ratio**2, variance / ratio**2
    xx = major * cos**2 + minor * sin**2
    yy = major * sin**2 + minor * cos**2
    xy = (major - minor) * cos * sin
    return torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)


def gaussian_kernels(covariance: Tensor, size: int, domain: float = DOMAIN) -> Tensor:
    """Sampled Gaussians of the covariances (..., 2, 2) on a size x size grid over [-domain, domain]^2, each
    summing to 1: (..., size, size), y along dim -2 and x along dim -1, in the dtype of the covariance."""
    grid = torch.linspace(-domain, domain, size, dtype=covariance.dtype, device=covariance.device)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    points = torch.stack([x, y], -1)
    exponent = torch.einsum("hwi,...ij,hwj->...hw", points, torch.linalg.inv(covariance), points)
    density = torch.exp(-exponent / 2)
    return density / density.sum((-2, -1), keepdim=True)


def exact_axes(rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Deviations in pixels along and across the direction of exact fields, float64 (N,) each, in kernels of
    this size.

    The published deviations would be 1.5 pixels and less too large for the kernel, or too small for the grid.
    These keep the ratio and go, in equal steps of log variance, from a short axis of `SMALLEST_SIGMA` at
    variance 1 to a long axis of size / `KERNEL_DEVIATIONS` at variance 8; where that leaves no space, both
    meet in between."""
    variance, _, ratio, *_ = rows.double().unbind(-1)
    low, high = torch.log(SMALLEST_SIGMA * ratio), torch.log(size / KERNEL_DEVIATIONS / ratio)
    middle = (low + high) / 2
    low, high = torch.minimum(low, middle), torch.maximum(high, middle)
    sigma = torch.exp(low + (high - low) * (torch.log2(variance) / 3).clamp(0, 1))
    return (sigma * ratio).clamp(max=SIGMA_RANGE[1] * size), (sigma / ratio).clamp(min=SIGMA_RANGE[0])


def derivative_index(rows: Tensor) -> Tensor:
    """Where in `DERIVATIVES` the order of each row stands, (N,)."""
    return torch.tensor([DERIVATIVES.index(order) for order in map(tuple, rows[:, -2:].int().tolist())])


def spatial_kernels(
    rows: Tensor, size: int, family: str = "published", dtype: torch.dtype = torch.float32
) -> Tensor:
    """The bank: kernels (N, size, size) of `rows` (N, 5)."""
    return family_of(family).kernels(rows, size).to(dtype)


def exact_kernels(rows: Tensor, size: int) -> Tensor:
    """The affine Gaussian derivatives of `exact_axes`."""
    fields, which = rows[:, :3].double().unique(dim=0, return_inverse=True)
    kernels = affine_kernels(field_from_axes(*exact_axes(fields, size), fields[:, 1]), DERIVATIVES, size)
    return kernels[which, derivative_index(rows)]


def published_kernels(rows: Tensor, size: int, family: str = "published") -> Tensor:
    """Kernels as the published system builds them.

    Each derivative is a central difference with unit step (one-sided at the borders) along the field's
    direction, or across it, times the field's variance; those along come first, in alternation.
    "norse-1.1.0" takes the direction's cosine along rows instead of columns, as that release does (FIDELITY
    3). Source: FIDELITY 1-3; `norse.torch.functional.receptive_field` of either version.
    """
    variance, angle_rad, ratio, *orders = rows.double().unbind(-1)
    directions = angle_rad, angle_rad + math.pi / 2
    covariance = covariance_matrix(variance, angle_rad, ratio)
    return difference_kernels(covariance, directions, variance, orders, size, family)


def difference_kernels(
    covariance: Tensor,
    directions_rad: Sequence[Tensor],
    gain: Tensor,
    orders: Sequence[Tensor],
    size: int,
    family: str = "published",
) -> Tensor:
    """The published way to derive sampled Gaussians of covariances (N, 2, 2), in units of `DOMAIN`, along two
    directions (N,), as often as the two orders (N,) say, each time times the gain (N,): (N, size, size)."""
    kernels = gaussian_kernels(covariance, size)
    for step in range(int(max(order.max() for order in orders))):
        for order, direction in zip(orders, directions_rad, strict=True):
            derived = _directional_difference(kernels, direction, family) * gain[:, None, None]
            kernels = torch.where((order > step)[:, None, None], derived, kernels)
    return kernels


def _directional_difference(kernels: Tensor, direction_rad: Tensor, family: str) -> Tensor:
    along_rows, along_columns = torch.gradient(kernels, dim=(-2, -1))
    if family == "norse-1.1.0":
        along_rows, along_columns = along_columns, along_rows
    cos, sin = torch.cos(direction_rad)[:, None, None], torch.sin(direction_rad)[:, None, None]
    return along_columns * cos + along_rows * sin


def bank_layout(
    n: int, out_channels: int, in_channels: int, family: str = "published"
) -> tuple[Tensor, Tensor]:
    """Which of n fields each pair of channels takes, int64 (out_channels, in_channels), and times what,
    float32.

    More outputs than inputs: field o on output o.  Otherwise field i on input i, so that all outputs start
    identical, as published (FIDELITY 4); "exact" mixes the inputs by random orthogonal weights, so that
    outputs start different (FIDELITY 52).  More inputs than fields, where the published code breaks: field o
    on output o."""
    amplitude = torch.ones(out_channels, in_channels)
    if out_channels > in_channels or in_channels > n:
        return (torch.arange(out_channels) % n)[:, None].repeat(1, in_channels), amplitude
    if family_of(family).mixed:
        amplitude = MIXING_GAIN * torch.linalg.qr(torch.randn(in_channels, in_channels)).Q[:out_channels]
    return torch.arange(in_channels).repeat(out_channels, 1), amplitude


def bank_weights(kernels: Tensor, field: Tensor, amplitude: Tensor) -> Tensor:
    """Convolution weights (out_channels, in_channels, size, size) from the bank `kernels` (N, size, size), as
    `bank_layout` lays it out."""
    return kernels[field] * amplitude[..., None, None]


def temporal_rates_hz(
    n_scales: int = 4, scheme: str = "rf", generator: torch.Generator | None = None
) -> Tensor:
    """Rates 1 / tau of the temporal channels in Hz (n_scales,), fast to slow.

    "rf": logarithmic, tau_k = sqrt(30 * 4^k) ms, k = 0 .. n_scales - 1: 5.5, 11.0, 21.9, 43.8 ms.
    "uniform": drawn uniformly between the fastest and the slowest of those, unsorted; a single one stays.
    Source: paper, Methods (temporal scales); Norse's `temporal_scale_distribution`.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"time constants {scheme!r}: expected one of {', '.join(SCHEMES)}")
    rates = 1000 / torch.sqrt(30 * 4.0 ** torch.arange(n_scales))
    if scheme == "uniform" and n_scales > 1:
        rates.uniform_(float(rates[-1]), float(rates[0]), generator=generator)
    return rates


FAMILIES = {
    "published": Family(published_kernels),
    "norse-1.1.0": Family(partial(published_kernels, family="norse-1.1.0"), round_once=False),
    "exact": Family(exact_kernels, half_turn=True, mixed=True),
}
