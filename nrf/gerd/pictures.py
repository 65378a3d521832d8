"""GERD's float32 pictures of a moving shape, sampled without drawing them, equal to the last bit.

GERD draws each frame at eight times the resolution: a mask of S x S cells is rotated and sheared (nearest
neighbour), cropped, laid into the field at a sub-cell position (bilinear, transposed) and read back at 4 of
64 cells per pixel. `GerdPictures` evaluates, for the pixels asked for, only the mask cells that they read,
every float32 rounding in GERD's own order. Source: GERD and torch, by running
them; FIDELITY 30-37.
"""

import math
from functools import lru_cache, reduce

import numpy as np

from nrf.gerd.masks import TriangleMasks, fma
from nrf.gerd.outlines import Outline, Poses, f32

UPSAMPLING = 8  # cells per pixel and axis in GERD's drawings
Size = tuple[np.ndarray | int, np.ndarray | int]  # rows and columns of a picture


class GerdPictures:
    """GERD's pictures of one shape, value by value.  poses: centre in cells (float32), size in pixels."""

    def __init__(self, kind: str, poses: Poses, resolution: tuple[int, int]) -> None:
        self.kind, self.sheared = kind, poses.shear is not None
        self.side = np.array([int(s * UPSAMPLING) for s in poses.size])
        turned = [_turned(int(s), float(a)) for s, a in zip(self.side, poses.angle, strict=True)]
        self.turned_rows = np.array([t[0] for t in turned])
        self.turned_cols = np.array([t[1] for t in turned])
        self.turn = np.array([t[2] for t in turned], f32)  # (n, 2, 2), as torchvision scales it
        self.rotated = bool(np.any(poses.angle != 0))
        self.masks = TriangleMasks(self.side) if kind == "triangle" else None
        turn = self.turn * (self.side / 2)[:, None, None].astype(float)
        self.linear = turn
        if poses.shear is not None:
            self.shear = _shear_matrices(poses.shear, 5 * self.turned_cols, 5 * self.turned_rows)
            scale = np.stack([5 * self.turned_cols, 5 * self.turned_rows], -1)[:, :, None] / 2
            self.linear = turn @ (self.shear * scale)  # centred sheared (column, row) to centred mask (u, v)
        self._crop(poses)
        self._place(poses, resolution)

    def _crop(self, poses: Poses) -> None:
        """Rows and columns of the sheared picture that GERD keeps: top, left, height, width, (n,) each."""
        count = len(self.side)
        if poses.shear is None:
            self.top = self.left = np.zeros(count, int)
            self.height, self.width = self.turned_rows, self.turned_cols
            return
        corners = self._corners()
        low_row, high_row = (self._extreme(corners, 1, sign) for sign in (-1, 1))
        low_col, high_col = (self._extreme(corners, 0, sign) for sign in (-1, 1))
        straight = ~poses.shear.any(
            1
        )  # kept: cropped only where sheared, and then the last row and column are lost
        self.top = np.where(straight, 2 * self.turned_rows, low_row)
        self.left = np.where(straight, 2 * self.turned_cols, low_col)
        self.height = np.where(straight, self.turned_rows, high_row - low_row)
        self.width = np.where(straight, self.turned_cols, high_col - low_col)

    def _corners(self) -> np.ndarray | None:
        """Corners of the mask's shape in its centred axes, (n, P, 2); for a circle None."""
        half = self.side / 2
        if self.kind == "circle":
            return None
        if self.masks is None:  # a square
            return half[:, None, None] * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        base, apex = self.masks.base, self.masks.apex
        return np.stack(
            [np.stack([base, -half], -1), np.stack([apex, 0 * half], -1), np.stack([base, half], -1)], 1
        )

    def _extreme(self, corners: np.ndarray | None, axis: int, sign: int) -> np.ndarray:
        """Index of the last non-zero row (axis 1) or column (axis 0) of the sheared picture towards `sign`,
        exact."""
        inverse = np.linalg.inv(self.linear)
        direction = sign * inverse[:, axis]  # (n, 2): how far along the axis a mask point lies
        if corners is None:
            half = self.side / 2
            norm = np.linalg.norm(direction, axis=1)
            point = np.einsum("nij,nj->ni", inverse, direction) * (half / norm)[:, None]
            chord = half / np.linalg.norm(self.linear[:, :, 1 - axis], axis=1)
            width = chord * np.sqrt(np.minimum(2 * 4 / (half * norm), 1))
            width += 4 * np.abs(point[:, 1 - axis] / np.maximum(np.abs(point[:, axis]), 1))
        else:
            mapped = np.einsum("nij,npj->npi", inverse, corners)
            best = (sign * mapped[:, :, axis]).argmax(1)
            every = np.arange(len(best))
            point = mapped[every, best]
            others = [mapped[every, (best + d) % corners.shape[1]] - point for d in (1, -1)]
            width = np.max([_reach(o[:, 1 - axis], o[:, axis], 3.5) for o in others], axis=0)
        size = 5 * (self.turned_cols if axis == 0 else self.turned_rows)
        centre = (size - 1) / 2
        window = np.arange(-int(width.max()) - 4, int(width.max()) + 5)
        line = np.round(point[:, axis] + centre).astype(int)
        across = np.round(point[:, 1 - axis] + centre).astype(int)[:, None] + window
        found, frame = np.zeros(len(line), int), np.arange(len(line))
        for depth in (2, 12):
            again = []
            for step in range(depth, -depth - 1, -1):  # from outside; the outermost line must be empty
                lines = line[frame] + sign * step
                seen = self._any_on(frame, lines, across[frame], axis)
                found[frame[seen]] = lines[seen]
                again.append(frame[seen & (step == depth)])
                frame = frame[~seen]
                if len(frame) == 0:
                    break
            frame = np.concatenate([*again, frame])
            if len(frame) == 0:
                return found
        raise ArithmeticError(f"no edge of the {self.kind} found where its outline says it is")

    def _any_on(self, frame: np.ndarray, lines: np.ndarray, across: np.ndarray, axis: int) -> np.ndarray:
        """Whether lines (n,) have a non-zero cell at across (n, W): bool (n,)."""
        rows, cols = (across, lines[:, None]) if axis == 0 else (lines[:, None], across)
        return (self._sheared(frame[:, None], rows, cols) != 0).any(1)

    def _place(self, poses: Poses, resolution: tuple[int, int]) -> None:
        """Where the cropped picture lies in the field of cells, and the affine map that follows from it."""
        height, width = self.height, self.width
        corner_x = poses.x - f32(height / 2)
        corner_y = poses.y - f32(width / 2)
        round_x, round_y = np.round(corner_x), np.round(corner_y)
        self.offset_x = (corner_x - round_x) / f32(height / 2)
        self.offset_y = (corner_y - round_y) / f32(width / 2)
        self.at_x = np.maximum(0, round_x).astype(int)  # kept: shifted, not cropped, at the low border
        self.at_y = np.maximum(0, round_y).astype(int)
        # pixel k reads around cell 8 k + 3.5; dim 0 walks the picture's columns and dim 1 its rows (kept:
        # transposed)
        step_x, step_y = width / (height - 1), height / (width - 1)
        col0 = (3.5 - self.at_x) * step_x - self.offset_x * (width / 2) - 0.5
        row0 = (3.5 - self.at_y) * step_y - self.offset_y * (height / 2) - 0.5
        size = 5 if self.sheared else 1
        col0 = col0 + self.left - (size * self.turned_cols - 1) / 2
        row0 = row0 + self.top - (size * self.turned_rows - 1) / 2
        scale = np.zeros((len(height), 2, 2))
        scale[:, 0, 0], scale[:, 1, 1] = UPSAMPLING * step_x, UPSAMPLING * step_y
        self.affine = self.linear @ scale
        self.shift = np.einsum("nij,nj->ni", self.linear, np.stack([col0, row0], -1))
        reach = (
            np.stack([0.5 * step_x, 0.5 * step_y], -1) + 1 + 0.5 * self.sheared
        )  # cells read beyond the centre
        self.outline = self._outline(reach)
        self.box = (
            max(0, int(self.at_x.min() - 4) // UPSAMPLING),
            min(resolution[0], int((self.at_x + height).max()) // UPSAMPLING + 1),
            max(0, int(self.at_y.min() - 4) // UPSAMPLING),
            min(resolution[1], int((self.at_y + width).max()) // UPSAMPLING + 1),
        )

    def _outline(self, reach: np.ndarray) -> Outline:
        rounding = 0.5 * self.rotated
        half = (self.side / 2)[:, None]
        if self.kind == "circle":
            slack = (
                np.linalg.norm(self.linear, ord=2, axis=(1, 2)) * np.linalg.norm(reach, axis=1)
                + 1.5 * rounding
            )
            return Outline(None, half, slack[:, None] + 0.3)
        if self.masks is None:  # a square
            normals, extra = np.array([(1.0, 0), (-1, 0), (0, 1), (0, -1)]), 0.3
            offsets = np.repeat(half, 4, 1)
        else:
            base, apex = self.masks.base, self.masks.apex
            slope = float((half[:, 0] / (apex - base)).mean())
            normals, extra = (
                np.array([(-1.0, 0), (slope, 1), (slope, -1)]),
                2.3,
            )  # two grey cells at the edges
            offsets = np.stack([-base, slope * apex, slope * apex], 1)
            extra = extra + np.abs(half - slope * (apex - base)[:, None])
        cells = np.abs(np.einsum("pc,ncd->npd", normals, self.linear))
        slack = (cells * reach[:, None]).sum(2) + 2 * rounding * np.abs(normals).sum(1) + extra
        return Outline(normals, offsets, slack)

    def values(self, frame: np.ndarray, k: np.ndarray, l: np.ndarray) -> np.ndarray:
        """Value of pixel (k, l) in each frame: three (N,) integer arrays to (N,) float32, equal to GERD's."""
        col, east, seen_x = self._taps(UPSAMPLING * k + 3 - self.at_x[frame], frame, 0)
        row, south, seen_y = self._taps(UPSAMPLING * l + 3 - self.at_y[frame], frame, 1)
        cells = self._cropped(
            frame, row[:, :, None, None], col[None, None]
        )  # (row of 2, tap, column of 2, tap, N)
        west, north = f32(1) - east, f32(1) - south
        read = []
        for a in (0, 1):
            for b in (0, 1):
                value = cells[b, 0, a, 0] * (west[a] * north[b])
                value = fma(cells[b, 0, a, 1], east[a] * north[b], value)
                value = fma(cells[b, 1, a, 0], west[a] * south[b], value)
                value = fma(cells[b, 1, a, 1], east[a] * south[b], value)
                read.append(np.where(seen_x[a] & seen_y[b], value, f32(0)))
        return reduce(np.add, read) / f32(4)

    def _taps(
        self, first: np.ndarray, frame: np.ndarray, axis: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The two cells of a pixel along one axis: tap indices (2, 2, N), weight of the farther tap (2, N),
        in picture."""
        count, other = (self.height, self.width) if axis == 0 else (self.width, self.height)
        count, other = count[frame], other[frame]
        offset = (self.offset_x if axis == 0 else self.offset_y)[frame]
        index = first + np.arange(2)[:, None]
        step = f32(2) / (count - 1).astype(f32)
        low = index < count // 2
        line = np.where(low, fma(step, index, -1.0), fma(-step, count - 1 - index, 1.0))
        place = fma((line - offset) + f32(1), other / 2, -0.5)
        below = np.floor(place)
        tap = below.astype(np.int32)
        return np.stack([tap, tap + 1], 1), place - below, (index >= 0) & (index < count)

    def _cropped(self, frame: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        inside = (row >= 0) & (row < self.height[frame]) & (col >= 0) & (col < self.width[frame])
        return np.where(inside, self._sheared(frame, row + self.top[frame], col + self.left[frame]), f32(0))

    def _sheared(self, frame: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Cells of the sheared picture (five times as wide as the turned one), through both
        nearest-neighbour maps."""
        if self.sheared:
            rows, cols = self.turned_rows[frame], self.turned_cols[frame]
            row, col = _nearest(row, col, self.shear[frame], (5 * rows, 5 * cols), (5 * rows, 5 * cols))
            row, col = row - 2 * rows, col - 2 * cols
            inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
            return np.where(inside, self._turned(frame, row, col), f32(0))
        return self._turned(frame, row, col)

    def _turned(self, frame: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        side = self.side[frame]
        if self.rotated:
            size = (self.turned_rows[frame], self.turned_cols[frame])
            row, col = _nearest(row, col, self.turn[frame], size, (side, side))
        inside = (row >= 0) & (row < side) & (col >= 0) & (col < side)
        if self.kind == "circle":
            inside &= (2 * row - side + 1) ** 2 + (2 * col - side + 1) ** 2 < side * side
        if self.masks is None:
            return inside.astype(f32)
        return np.where(inside, self.masks.values(frame, row, col), f32(0))


def _reach(across: np.ndarray, along: np.ndarray, depth: float) -> np.ndarray:
    """How far across the axis an edge goes before it is `depth` deep."""
    share = np.minimum(1, depth / np.maximum(np.abs(along), 1e-9))
    return np.abs(across) * share


def _nearest(
    row: np.ndarray, col: np.ndarray, matrix: np.ndarray, size_out: Size, size_in: Size
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest source cell of an affine sampling, rounded as torch rounds it.  matrix (..., 2, 2) float32,
    scaled."""
    x = (col - (size_out[1] - 1) / 2).astype(f32)
    y = (row - (size_out[0] - 1) / 2).astype(f32)
    grid_x = x * matrix[..., 0, 0] + y * matrix[..., 0, 1]
    grid_y = x * matrix[..., 1, 0] + y * matrix[..., 1, 1]
    source_col = fma(grid_x + f32(1), size_in[1] / 2, -0.5)
    source_row = fma(grid_y + f32(1), size_in[0] / 2, -0.5)
    return np.rint(source_row).astype(np.int32), np.rint(source_col).astype(np.int32)


@lru_cache(maxsize=512)
def _turned(side: int, angle: float) -> tuple[int, int, np.ndarray]:
    """Rows, columns and scaled matrix (2, 2) of a picture of side x side cells turned by `angle` degrees,
    uncropped."""
    turn = math.radians(-angle)
    theta = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], f32)
    half = f32(side / 2)
    x, y = half * np.array([(-1, -1, 1, 1), (-1, 1, 1, -1)], f32)
    corners = np.stack([x * row[0] + y * row[1] for row in theta], 1)  # unfused, as torch multiplies here
    tolerance = f32(1e-4)
    high = np.ceil(np.trunc((corners.max(0) + half) / tolerance) * tolerance)
    low = np.floor(np.trunc((corners.min(0) + half) / tolerance) * tolerance)
    cols, rows = (high - low).astype(int)
    return int(rows), int(cols), theta / half


def _shear_matrices(shear: np.ndarray, cols: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n, 2, 2) float32 matrices of a shear by (x, y) degrees, scaled to grids of rows x cols."""
    sx, sy = np.deg2rad(shear[:, 0]), np.deg2rad(shear[:, 1])
    a, b = np.cos(-sy) / np.cos(sy), -np.cos(-sy) * np.tan(sx) / np.cos(sy)
    c, d = np.sin(-sy) / np.cos(sy), -np.sin(-sy) * np.tan(sx) / np.cos(sy) + 1
    theta = np.stack([np.stack([d, -b], -1), np.stack([-c, a], -1)], -2).astype(f32)
    return theta / np.stack([cols / 2, rows / 2], -1)[:, :, None].astype(f32)
