"""GERD's triangle mask, cell by cell, and the float32 arithmetic that it shares with the pictures.

Circle and square are plain tests of a cell's place. The triangle is drawn larger and resized with
antialiasing, which leaves grey edges and an inside a few last bits away from 1. Source: GERD and
torch's resize, by running them.
"""

import numpy as np
from numpy.typing import ArrayLike

from nrf.gerd.outlines import f32

ROW_TAPS, COL_TAPS = 4, 5  # source cells that one cell of the resized triangle can read


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> np.ndarray:
    """a * b + c rounded once to float32 (the product of two float32 is exact in float64)."""
    return (np.multiply(a, b, dtype=float) + c).astype(f32)


class TriangleMasks:
    """Triangle masks of the sides asked for, cell by cell.  side: (n,) cells, one per frame.

    The source is a triangle of 2 S - 1 rows and S + 2 pad columns, base on the left, resized with
    antialiasing to S x S and divided by its maximum. `base` and `apex` (n,): where it ends up, in centred
    columns."""

    def __init__(self, side: np.ndarray) -> None:
        sides, which = np.unique(side, return_inverse=True)
        tables = [_triangle_table(int(s)) for s in sides]
        self.start = np.concatenate([[0], np.cumsum(sides)])[which]
        self.side = side
        self.first_row, self.row_weights, self.first_col, self.partial = (
            np.concatenate([t[i] for t in tables]) for i in range(4)
        )
        self.largest = np.array([t[4] for t in tables], f32)[which]
        pad = 3 * side // 5
        scale = (side + 2 * pad) / side
        self.base, self.apex = pad / scale - side / 2, (pad + side) / scale - side / 2

    def values(self, frame: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Mask cell (row, col) in each frame, arrays that broadcast, to float32; clipped to the mask."""
        side = self.side[frame]
        row = self.start[frame] + np.clip(row, 0, side - 1)
        col = self.start[frame] + np.clip(col, 0, side - 1)
        first, before = self.first_row[row], self.first_col[col]
        total: np.ndarray | np.floating = f32(0)
        for t in range(ROW_TAPS):
            source = first + t
            filled = np.minimum(source, 2 * side - 2 - source) + 1 - before  # taps on the triangle
            inner = self.partial[col, np.clip(filled, 0, COL_TAPS)]
            total = fma(inner, self.row_weights[row, t], total)
        return total / self.largest[frame]


def _triangle_table(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.floating]:
    """First source rows (S,), weights (S, ROW_TAPS), first columns right of the base (S,), partial sums of
    the columns' weights up to each count (S, COL_TAPS + 1), and the largest cell, for a mask of S x S."""
    pad = 3 * side // 5
    first_row, row_weights = _resize_weights(2 * side - 1, side, ROW_TAPS)
    first_col, col_weights = _resize_weights(side + 2 * pad, side, COL_TAPS)
    first_col = first_col - pad
    drawn = np.where(first_col[:, None] + np.arange(COL_TAPS) >= 0, col_weights, f32(0))
    partial = np.zeros((side, COL_TAPS + 1), f32)
    for t in range(COL_TAPS):
        partial[:, t + 1] = partial[:, t] + drawn[:, t]
    # the largest cell: every row of weights against every different full column sum that it can meet
    last_source = np.minimum(first_row, 2 * side - 2 - first_row - (row_weights != 0).sum(1) + 1)
    last_tap = first_col + (col_weights != 0).sum(1) - 1
    full = np.where(first_col >= 0, partial[:, COL_TAPS], f32(0))
    largest = f32(0)
    for value in np.unique(full):
        met = last_source >= last_tap[full == value].min()
        if met.any():
            total = np.zeros(met.sum(), f32)
            for t in range(ROW_TAPS):
                total = fma(value, row_weights[met, t], total)
            largest = max(largest, total.max())
    return first_row, row_weights, first_col, partial, largest


def _resize_weights(size_in: int, size_out: int, taps: int) -> tuple[np.ndarray, np.ndarray]:
    """torch's antialiased bilinear resize along one axis: first source cells (S,) and float32 weights (S,
    TAPS)."""
    scale = f32(size_in) / f32(size_out)
    centre = scale * (np.arange(size_out, dtype=f32) + f32(0.5))
    first = np.maximum((centre - scale + f32(0.5)).astype(int), 0)
    count = np.minimum((centre + scale + f32(0.5)).astype(int), size_in) - first
    tap = np.arange(taps)
    place = (tap.astype(f32) + (first.astype(f32) - centre)[:, None]) + f32(0.5)
    weight = np.maximum(f32(1) - np.abs(place * (f32(1) / scale)), f32(0))
    weight = np.where(tap < count[:, None], weight, f32(0))
    total = np.zeros(size_out, f32)
    for t in range(taps):
        total = total + weight[:, t]
    return first, weight / total[:, None]
