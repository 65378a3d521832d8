"""How far kernels on the pixel grid are from the covariance of the theory, over space.

    transform, then filter:   (T_A f) * kernel of A Sigma A^T, derivatives carried along         at x'
    filter, then transform:   f * kernel of Sigma                                                at A^-1 x'

Images are functions of the plane, so that both sides are evaluated without interpolating anything: a kernel
is summed over pixels around any place.  Errors are relative l2 norms over the places x', in the tables named
`error`; `shape_error` is what remains up to the best common gain, the published kernels' gains being what
they are.  Source: paper, Results and Methods (covariance properties).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from nrf.gerd.outlines import Poses, TruePictures
from nrf.theory.affine_gaussian import (
    AffineField,
    Orders,
    affine_gaussian,
    affine_kernels,
    field_from_axes,
    kernel_support,
    mapped,
)
from nrf.theory.receptive_fields import (
    DOMAIN,
    KERNEL_SIZES,
    difference_kernels,
    exact_axes,
    spatial_parameters,
)

MEASURED_ORDERS = ((0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (0, 2))  # up to 2, the network's four first
EPSILON = 1e-4  # part of a kernel that its support may leave out
MEASURED_FAMILIES = ("exact", "published", "norse-1.1.0")
FIELDS = ((1.0, 1.0, 0.0), (1.5, 1.0, 0.5), (2.0, 1.0, -0.9))  # sigma_u, sigma_v in pixels, phi in radians
SHAPES = ("circle", "square", "triangle")
DEVIATIONS = tuple(2 ** (k / 2) for k in range(-3, 5))  # pixels, of what discretisations are compared by
MEASURED_DISCRETISATIONS = ("exact", "integrated", "sampled", "analogue")
BLOBS_PX = 1.5, 4.0  # deviations of what fields of the network's kernels answer
Row = dict[str, Any]  # of a table, by column
PLACES = 11  # along each axis, where responses are compared


class Image(Protocol):
    """Values (...) at points (..., 2): a function of the plane."""

    def __call__(self, points: Tensor, /) -> Tensor: ...


class Blobs(NamedTuple):
    """A sum of Gaussians: centres (n, 2) pixels, covariances (n, 2, 2), integrals (n,)."""

    centres: torch.Tensor
    covariances: torch.Tensor
    integrals: torch.Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Values (...) at points (..., 2)."""
        return self.response(points, None, ((0, 0),))[..., 0]

    def mapped(self, matrix: Tensor) -> "Blobs":
        """f(A^-1 x)."""
        return Blobs(
            self.centres @ matrix.T,
            matrix @ self.covariances @ matrix.T,
            self.integrals * abs(torch.linalg.det(matrix)),
        )

    def response(self, points: Tensor, field: AffineField | None, orders: Orders) -> Tensor:
        """What a field answers truly, (..., len(orders)): derivatives of wider Gaussians."""
        total = points.new_zeros(())
        for centre, covariance, integral in zip(*self, strict=True):
            wider = (
                AffineField(covariance, torch.eye(2, dtype=covariance.dtype))
                if field is None
                else field._replace(covariance=field.covariance + covariance)
            )
            total = total + integral * affine_gaussian((points - centre).reshape(-1, 2), wider, orders)
        return total.view(*points.shape[:-1], len(orders))


class Shape(NamedTuple):
    """A GERD shape around the pixel at 0, under any linear map: how much of the pixel around a point it
    covers."""

    kind: str
    size: float
    matrix: torch.Tensor

    def __call__(self, points: Tensor) -> Tensor:
        where = points.reshape(-1, 2).numpy()
        middle = np.array([0.5])
        pose = Poses(middle, middle, np.array([self.size]), np.zeros(1), None)
        pictures = TruePictures(self.kind, pose, (1, 1), self.matrix.numpy()[None])
        values = pictures.values(np.zeros(len(where), int), *where.T)
        return torch.from_numpy(values).double().view(points.shape[:-1])

    def mapped(self, matrix: Tensor) -> "Shape":
        return self._replace(matrix=matrix @ self.matrix)


def blobs() -> Blobs:
    """Three Gaussians of deviations 2.5 to 3.5 pixels, one of them negative: the analytic image.

    Made half as large it still keeps all but 0.05 % of its spectrum's height below the grid's highest
    frequency, so that what is measured is the kernels, not the sampling of the image."""
    tensor = partial(torch.tensor, dtype=torch.float64)
    axes = tensor([[2.5, 2.5, 0.0], [3.5, 2.5, 0.7], [2.6, 3.2, -0.4]])
    return Blobs(
        tensor([[0.0, 0.0], [3.0, -2.0], [-2.5, 3.0]]),
        field_from_axes(*axes.T).covariance,
        tensor([1.0, 0.8, -0.9]),
    )


def transformations(generator: torch.Generator | None = None) -> list[tuple[str, float, Tensor]]:
    """(kind, value, A) of every map tested: scalings, rotations, shears, and random maps whose singular
    values lie between 0.5 and 2."""
    eye = torch.eye(2, dtype=torch.float64)
    maps = [("scaling", s, s * eye) for s in (0.5, 2**-0.5, 1.3, 2**0.5, 2.0, 2 * 2**0.5, 4.0)]
    maps += [("rotation", a, rotation(math.radians(a))) for a in range(15, 181, 15)]
    maps += [
        ("shear", s, torch.tensor([[1.0, s], [0.0, 1.0]], dtype=torch.float64))
        for s in (-0.5, -0.25, 0.25, 0.5, 1.0)
    ]
    for i in range(8):
        first, second = torch.rand(2, generator=generator, dtype=torch.float64) * 2 * math.pi
        stretch = torch.diag(2 ** (2 * torch.rand(2, generator=generator, dtype=torch.float64) - 1))
        maps.append(("random", i, rotation(first) @ stretch @ rotation(second)))
    return maps


def rotation(angle_rad: float | Tensor) -> Tensor:
    one = torch.ones((), dtype=torch.float64)
    return field_from_axes(one, one, torch.as_tensor(angle_rad, dtype=torch.float64)).directions


def kernels_of(family: str, field: AffineField, orders: Orders, size: int) -> Tensor:
    """Kernels (len(orders), size, size) of one field in pixels.  The published families derive along the
    carried directions, in their units of a kernel, times the geometric mean of the variances."""
    if family not in MEASURED_FAMILIES[1:]:
        return affine_kernels(field, orders, size, "moments" if family == "exact" else family)
    unit = (size - 1) / (2 * DOMAIN)  # pixels
    n = len(orders)
    covariance = (field.covariance / unit**2).expand(n, 2, 2)
    gain = torch.linalg.det(covariance).sqrt()
    directions = [torch.atan2(d[1], d[0]).expand(n) for d in field.directions.unbind(-1)]
    columns = torch.tensor(orders, dtype=gain.dtype).unbind(-1)
    return difference_kernels(covariance, directions, gain, columns, size, family)


def filtered(image: Image, points: Tensor, kernels: Tensor) -> Tensor:
    """Responses (P, n) of kernels (n, size, size) at points (P, 2), any positions."""
    size = kernels.shape[-1]
    steps = torch.arange(size, dtype=points.dtype) - size // 2
    taps = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)
    return image(points[:, None] - taps) @ kernels.flatten(1).T


def support_of(field: AffineField, order: int = 2, epsilon: float = EPSILON) -> int:
    """The size that holds the field's derivatives up to this order, at least the smallest there is."""
    return max(kernel_support(field.covariance.diagonal().sqrt(), epsilon, order), KERNEL_SIZES[-1])


def errors(actual: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Relative l2 error of actual (P, n), and that up to the best gain, (n,) each."""
    norm = wanted.norm(dim=0)
    gain = (actual * wanted).sum(0) / actual.square().sum(0).clamp_min(1e-300)
    return (actual - wanted).norm(dim=0) / norm, (gain * actual - wanted).norm(dim=0) / norm


def compare(
    image: Blobs | Shape,
    field: AffineField,
    matrix: Tensor,
    families: Sequence[str] = MEASURED_FAMILIES,
    sizes: Sequence[int] = (0, *KERNEL_SIZES),
    reach: float = 8.0,
) -> list[Row]:
    """Rows {family, size, order, sigma_px, holds, error, shape_error[, true_error]} of one map.

    sizes: of both kernels; 0 is what the wider of the two needs.  sigma_px: least deviation of the two
    fields. holds: whether the size leaves out less than `EPSILON` of both.  true_error: of transform, then
    filter against the true response, where the image knows it."""
    there, image_there = mapped(field, matrix), image.mapped(matrix)
    line = torch.linspace(-reach, reach, PLACES, dtype=torch.float64)
    here_points = torch.cartesian_prod(line, line) + 0.137  # between pixels too
    there_points = here_points @ matrix.T
    sigma = min(torch.linalg.eigvalsh(f.covariance)[0].sqrt().item() for f in (field, there))
    needed = {order: max(support_of(f, sum(order)) for f in (field, there)) for order in MEASURED_ORDERS}
    truth = (
        image_there.response(there_points, there, MEASURED_ORDERS) if isinstance(image_there, Blobs) else None
    )
    rows = []
    for size in sizes:
        taken = size or max(needed.values())
        here, over = (
            filtered(
                f, points, torch.cat([kernels_of(family, one, MEASURED_ORDERS, taken) for family in families])
            )
            for f, points, one in ((image, here_points, field), (image_there, there_points, there))
        )
        for k, family in enumerate(families):
            own = slice(k * len(MEASURED_ORDERS), (k + 1) * len(MEASURED_ORDERS))
            error, shape = errors(over[:, own], here[:, own])
            true = torch.full_like(error, math.nan) if truth is None else errors(over[:, own], truth)[0]
            for i, order in enumerate(MEASURED_ORDERS):
                rows.append(
                    {
                        "family": family,
                        "size": size or "needed",
                        "order": "{}{}".format(*order),
                        "sigma_px": sigma,
                        "holds": taken >= needed[order],
                        "error": error[i].item(),
                        "shape_error": shape[i].item(),
                        "true_error": true[i].item(),
                    }
                )
    return rows


def network_rows() -> list[Row]:
    """Rows {size, family, order, blob_px, true_error} of all exact fields of the paper's bank in the
    network's own kernels, on blobs of `BLOBS_PX`, against the truth."""
    eye, fields = torch.eye(2, dtype=torch.float64), spatial_parameters(family="exact")[:, :3].double()
    rows, fields = [], fields.unique(dim=0)
    for size, blob in itertools.product(KERNEL_SIZES, BLOBS_PX):
        image = Blobs(torch.zeros(1, 2, dtype=torch.float64), blob**2 * eye[None], torch.ones(1))
        for values in zip(*exact_axes(fields, size), fields[:, 1], strict=True):
            compared = compare(image, field_from_axes(*values), eye, ("exact", "sampled"), (size,))
            rows += [row | {"blob_px": blob} for row in compared]
    return rows


def field_of(*values: float) -> AffineField:
    return field_from_axes(*torch.tensor(values, dtype=torch.float64))


def space_rows(
    images: Mapping[str, Blobs | Shape],
    families: Sequence[str] = MEASURED_FAMILIES,
    sizes: Sequence[int] = (0, *KERNEL_SIZES),
) -> list[Row]:
    """Rows of `compare` for every image {name: image}, field and transformation."""
    rows = []
    for name, image in images.items():
        for field in FIELDS:
            for kind, value, matrix in transformations(torch.Generator().manual_seed(0)):
                about = {"image": name, "field": "{:g} {:g} {:g}".format(*field), "map": kind, "value": value}
                rows += [about | row for row in compare(image, field_of(*field), matrix, families, sizes)]
    return rows


def discretisation_rows() -> list[Row]:
    """Rows {sigma_px, family, order, true_error} of round fields on a blob of 1.5 pixels, against the
    truth."""
    eye = torch.eye(2, dtype=torch.float64)
    image = Blobs(torch.zeros(1, 2, dtype=torch.float64), 1.5**2 * eye[None], torch.ones(1))
    return [
        row | {"sigma_px": sigma}
        for sigma in DEVIATIONS
        for row in compare(image, field_of(sigma, sigma, 0.4), eye, tuple(MEASURED_DISCRETISATIONS), (0,))
    ]
