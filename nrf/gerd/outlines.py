"""Where a moving shape is, which pixels its outline crosses, and how much of a pixel it covers.

Per frame n an affine map takes pixel (k, l) to the shape's own axes, where its outline stays a circle or a
polygon:
    (u, v) = affine @ (k, l) + shift
`row_spans` says from it which pixels are plainly inside or outside, so that only the few between need a
value. The values come from `TruePictures`, here, the covered area of the true shape, or from
`gerd_pictures.GerdPictures`.
"""

from typing import NamedTuple, Protocol

import numpy as np

f32 = np.float32
Span = tuple[np.ndarray, np.ndarray]  # first columns and those after the last, (n, rows) each


class Poses(NamedTuple):
    """Where a shape is in every frame n: centre x, y (axis -2, -1; cells for GERD, pixels for the true
    shapes), size in pixels, angle in degrees, and shear in degrees along both axes, (n, 2), or None if never
    sheared."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    angle: np.ndarray
    shear: np.ndarray | None


class Outline(NamedTuple):
    """A convex outline in the shape's axes. Polygon: normals (P, 2) and offsets (n, P), inside where every
    normal . (u, v) <= offset.  Circle: normals None, offsets (n, 1) the radius.  slack (n, P): how far from
    the outline a pixel's value may still be neither 0 nor 1, in the same units."""

    normals: np.ndarray | None
    offsets: np.ndarray
    slack: np.ndarray


class Pictures(Protocol):
    """One shape in every frame: `TruePictures`, `GerdPictures`."""

    affine: np.ndarray  # (n, 2, 2)
    shift: np.ndarray  # (n, 2)
    outline: Outline
    box: tuple[int, int, int, int]  # first and last row, first and last column that it can reach, half open

    def values(self, frame: np.ndarray, k: np.ndarray, l: np.ndarray) -> np.ndarray: ...


def row_spans(pictures: Pictures, rows: np.ndarray) -> tuple[Span, Span]:
    """Columns that each row of pixels can see: (low, high) of the outer and of the inner outline, (n, rows)
    each, half open.  Outside the outer span the value is 0, inside the inner span 1; what lies between must
    be evaluated."""
    affine, shift, outline = pictures.affine, pictures.shift, pictures.outline
    start = affine[:, :, 0, None] * rows + shift[:, :, None]  # (n, 2, rows): the point at column 0
    step = affine[:, :, 1]
    if outline.normals is None:
        outer, inner = (
            _circle_span(start, step, outline.offsets[:, 0] + sign * outline.slack[:, 0]) for sign in (1, -1)
        )
    else:
        along = step @ outline.normals.T  # (n, P)
        level = np.einsum("nck,pc->npk", start, outline.normals)
        outer, inner = (
            _polygon_span(along, level, outline.offsets + sign * outline.slack) for sign in (1, -1)
        )
    return outer, inner


def _circle_span(start: np.ndarray, step: np.ndarray, radius: np.ndarray) -> Span:
    a = (step**2).sum(1)[:, None]
    b = (start * step[:, :, None]).sum(1)
    c = (start**2).sum(1) - np.where(radius > 0, radius, 0)[:, None] ** 2
    inside = b * b - a * c
    half = np.sqrt(np.maximum(inside, 0))
    hit = (inside > 0) & (radius > 0)[:, None]
    return _half_open((-b - half) / a, (-b + half) / a, hit)


def _polygon_span(along: np.ndarray, level: np.ndarray, offset: np.ndarray) -> Span:
    low, high = np.full(level[:, 0].shape, -1e9), np.full(level[:, 0].shape, 1e9)
    for p in range(along.shape[1]):
        gap, slope = offset[:, p, None] - level[:, p], along[:, p, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = gap / slope
        flat = np.abs(slope) < 1e-9
        high = np.where(
            flat, np.where(gap < 0, -1e9, high), np.where(slope > 0, np.minimum(high, bound), high)
        )
        low = np.where(~flat & (slope < 0), np.maximum(low, bound), low)
    return _half_open(low, high, high > low)


def _half_open(low: np.ndarray, high: np.ndarray, hit: np.ndarray) -> Span:
    """Whole columns in [low, high]; an empty span keeps its place, so that the next frame's is near."""
    first = np.ceil(np.clip(low, -1e6, 1e6)).astype(np.int32)
    last = np.floor(np.clip(high, -1e6, 1e6)).astype(np.int32) + 1
    return first, np.where(hit, np.maximum(last, first), first)


def _rotation(angle: np.ndarray) -> np.ndarray:
    turn = np.deg2rad(angle)
    cos, sin = np.cos(turn), np.sin(turn)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


class TruePictures:
    """The covered part of each pixel (a ramp one pixel wide across the outline) of the shape as its name
    says.

    circle: diameter = size.  square: side = size.  triangle: base = height = size, placed by its centroid.
    poses: pixels; the centroid is at (x, y), pixel k covers [k, k + 1).  forward: (n, 2, 2), another linear
    map than that of the poses' angle and shear."""

    def __init__(
        self, kind: str, poses: Poses, resolution: tuple[int, int], forward: np.ndarray | None = None
    ) -> None:
        size = np.asarray(poses.size, float)
        forward = (
            self.forward(poses) if forward is None else forward
        )  # shape's axes (u along the columns, v along the rows) to (x, y)
        self.affine = np.linalg.inv(forward)
        centre = np.stack([poses.x, poses.y], -1) - 0.5
        self.shift = -np.einsum("nij,nj->ni", self.affine, centre)
        if kind == "circle":
            normals, offsets = None, size[:, None] / 2
            unit = np.linalg.norm(self.affine, ord=2, axis=(1, 2))[:, None]
        else:
            corners = unit_corners(kind)
            edges = np.roll(corners, -1, 0) - corners
            normals = np.stack([edges[:, 1], -edges[:, 0]], -1) / np.linalg.norm(edges, axis=1, keepdims=True)
            offsets = size[:, None] * (corners * normals).sum(1)
            unit = np.linalg.norm(np.einsum("pc,ncd->npd", normals, self.affine), axis=2)
        self.unit = unit  # length in the shape's axes of one pixel across each edge
        self.outline = Outline(normals, offsets, 0.51 * unit)
        self.box = (0, resolution[0], 0, resolution[1])

    @staticmethod
    def forward(poses: Poses) -> np.ndarray:
        """(n, 2, 2) linear map from the shape's axes (u, v) to (x, y) of the image."""
        turn = _rotation(poses.angle)
        if poses.shear is None:
            return turn
        slant = np.tan(np.deg2rad(poses.shear))
        shear = np.zeros((len(slant), 2, 2))
        shear[:, 0, 0] = shear[:, 1, 1] = 1
        shear[:, 0, 1], shear[:, 1, 0] = slant[:, 0], slant[:, 1]
        return shear @ turn

    def values(self, frame: np.ndarray, k: np.ndarray, l: np.ndarray) -> np.ndarray:
        """Covered part of pixel (k, l) in each frame: three (N,) integer arrays to (N,) float32 in [0, 1]."""
        here = np.stack([k, l], -1)[:, None, :]
        point = (self.affine[frame] * here).sum(2) + self.shift[frame]
        if self.outline.normals is None:
            reach = np.linalg.norm(point, axis=1)
            gradient = np.einsum("ni,nij->nj", point, self.affine[frame])
            unit = np.linalg.norm(gradient, axis=1) / np.maximum(reach, 1e-9)
            depth = (self.outline.offsets[frame, 0] - reach) / np.maximum(unit, 1e-9)
        else:
            depth = (self.outline.offsets[frame] - point @ self.outline.normals.T) / self.unit[frame]
            depth = depth.min(1)
        return np.clip(depth + 0.5, 0, 1).astype(f32)


def unit_corners(kind: str) -> np.ndarray:
    """Corners of a square or triangle of size 1 around its centroid, counter-clockwise, (P, 2)."""
    if kind == "square":
        return np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    return np.array([(-1 / 3, -0.5), (2 / 3, 0.0), (-1 / 3, 0.5)])
