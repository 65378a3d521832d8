"""Convolution over frequencies as torch's matrix products, for any device.

The transforms are matrix products, too (a discrete Fourier transform of 31 pixels is a matrix of 31 x 31):
they run as fast as the processor multiplies, take any size, need no powers of two, and hand on frequencies in
the order that the products need, channels last.  Their cost grows with the size of the matrix, so a field is
cut into tiles of about TILE pixels a side, that overlap by k - 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Spans = Sequence[tuple[slice, slice]]  # pixels of the field, and of a tile
TILE = 25  # pixels: smaller tiles overlap more, larger ones have costlier transforms
# tiles transformed at a time: few fit a cache, many share the transforms of the kernels; on a GPU each chunk
# costs the start of some four hundred kernels
CHUNK = {"cpu": 180, "cuda": 2880}
ADVANTAGE, LEAST = 2.0, 5e7  # how many times fewer multiplications pay, and of how many
LEAST_CHANNELS = 16  # products of fewer are too small to run fast


def pays(frames_shape: Sequence[int], weight_shape: Sequence[int]) -> bool:
    """Whether this is faster than torch's convolution, on a CPU."""
    direct, spectral = multiplications(frames_shape, weight_shape)
    return min(weight_shape[:2]) >= LEAST_CHANNELS and direct > max(LEAST, ADVANTAGE * spectral)


def multiplications(
    frames_shape: Sequence[int], weight_shape: Sequence[int], device: str = "cpu"
) -> tuple[float, float]:
    """Multiplications of the direct and of the spectral way."""
    n, C, H, W = frames_shape
    N, _, k, _ = weight_shape
    rows, columns = layout(H, k), layout(W, k)
    half = rows.circle // 2 + 1
    tiles = rows.tiles * columns.tiles
    chunks = -(-n // frames_at_a_time(tiles, device))
    direct = n * H * W * k * k * C * N
    to = 2 * half * rows.inside * columns.inside + 4 * half * columns.circle * columns.inside
    back = 4 * half * columns.circle * columns.size + 2 * half * rows.size * columns.size
    products = half * columns.circle * 3 * C * N
    kernels = half * columns.circle * 6 * k * C * N * chunks
    return direct, n * tiles * (to * C + back * N + products) + kernels


def frames_at_a_time(tiles: int, device: str = "cpu") -> int:
    """How many frames of so many tiles are transformed at a time on a type of device."""
    return max(1, CHUNK.get(device, CHUNK["cpu"]) // tiles)


def correlate(frames: Tensor, weight: Tensor) -> Tensor:
    """`conv2d(frames, weight, padding="same")` over frequencies, without a gradient."""
    n_out, n_in, k, _ = weight.shape
    H, W = frames.shape[-2:]
    rows, columns = (Transform(n, k, frames.dtype, frames.device) for n in (H, W))
    taps = rows.kernel_rows @ weight.permute(2, 3, 1, 0).flatten(1)  # (2 Kh, k C N)
    taps = taps.view(rows.half, 2 * k, -1)
    frames = _channels_last(frames)
    out = frames.new_empty(len(frames), H, W, n_out)
    workspace = Workspace(frames)
    chunk = frames_at_a_time(rows.count * columns.count, frames.device.type)
    for x, y in zip(frames.split(chunk), out.split(chunk), strict=True):
        tiles = columns.count * rows.count * len(x)  # columns first, then rows, then frames
        spectra = workspace("spectra", 2, rows.half, tiles, columns.size, n_out)
        product = workspace("product", 2, columns.circle, tiles, n_out)
        for kh, band in enumerate(over_rows(x, rows, rows.inputs, workspace, "rows")):
            re, im = over_columns(band, columns, columns.inputs, workspace, "columns")
            kernels = workspace("kernels", 3 * columns.circle, n_in * n_out)
            torch.mm(columns.kernel_columns, taps[kh], out=kernels)
            w_re, w_diff, w_sum = kernels.view(3, columns.circle, n_in, n_out)
            # (re + i im) (w_re + i w_im) in three real products
            both = torch.add(re, im, out=workspace("both", columns.circle, tiles, n_in))
            torch.bmm(both, w_re, out=product[0])
            torch.baddbmm(product[0], re, w_diff, out=product[1])
            product[0].baddbmm_(im, w_sum, alpha=-1)
            for part in range(2):
                inverse = columns.inverse[part].expand(tiles, -1, -1)
                torch.bmm(inverse, product.flatten(0, 1).transpose(0, 1), out=spectra[part, kh])
        from_rows(spectra.flatten(0, 1), rows, columns, y)
    return out.permute(0, 3, 1, 2)


def correlate_frames(frames: Tensor, grad: Tensor, k: int) -> Tensor:
    """The gradient (N, C, k, k) of `correlate` at the weights, from that at its output (F, N, H, W)."""
    H, W = frames.shape[-2:]
    n_in, n_out = frames.shape[1], grad.shape[1]
    rows, columns = (Transform(n, k, frames.dtype, frames.device) for n in (H, W))
    taps = frames.new_zeros(rows.half, 2 * k, n_in * n_out)
    frames, grad = _channels_last(frames), _channels_last(grad)
    workspace = Workspace(frames)
    chunk = frames_at_a_time(rows.count * columns.count, frames.device.type)
    for x, y in zip(frames.split(chunk), grad.split(chunk), strict=True):
        tiles = columns.count * rows.count * len(x)
        bands = (
            over_rows(x, rows, rows.inputs, workspace, "rows"),
            over_rows(y, rows, rows.outputs, workspace, "rows of grad"),
        )
        product = workspace("product", 2, columns.circle, n_in, n_out)
        for kh, (x_band, y_band) in enumerate(zip(*bands, strict=True)):
            re, im = over_columns(x_band, columns, columns.inputs, workspace, "columns")
            y_re, y_im = over_columns(y_band, columns, columns.outputs, workspace, "columns of grad")
            # (re + i im) (y_re - i y_im), summed over frames, in three real products
            both = torch.add(re, im, out=workspace("both", columns.circle, tiles, n_in))
            torch.bmm(both.transpose(1, 2), y_re, out=product[0])
            both = torch.add(y_re, y_im, out=workspace("both of grad", columns.circle, tiles, n_out))
            torch.baddbmm(product[0], re.transpose(1, 2), both, alpha=-1, out=product[1])
            both = torch.sub(y_re, y_im, out=both)
            product[0].baddbmm_(im.transpose(1, 2), both, alpha=-1)
            taps[kh].addmm_(columns.taps, product.view(2 * columns.circle, -1))
    weight = rows.taps_real @ taps.view(rows.half * 2, -1)  # k, k C N
    return weight.view(k, k, n_in, n_out).permute(3, 2, 0, 1)


def _channels_last(frames: Tensor) -> Tensor:
    """(F, H, W, C), each frame in one piece of memory."""
    frames = frames.permute(0, 2, 3, 1)
    return frames if len(frames) and frames[0].is_contiguous() else frames.contiguous()


class Workspace:
    """Working memory by name, taken again as long as the shape stays: fresh memory costs as much as a
    product."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.taken: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self.taken or self.taken[name].shape != shape:
            self.taken[name] = self.like.new_empty(shape)
        return self.taken[name]


def over_rows(
    x: Tensor, rows: Transform, spans: Spans, workspace: Workspace, name: str
) -> tuple[Tensor, ...]:
    """The half spectra along H of the tiles of frames (F, H, W, C): per frequency (tiles F, 2, W, C), real
    parts first."""
    n, _, W, C = x.shape
    out = workspace(name, len(spans), n, 2 * rows.half, W * C)
    for (field, tile), part in zip(spans, out, strict=True):
        torch.bmm(rows.forward_real[:, tile].expand(n, -1, -1), x[:, field].flatten(2), out=part)
    return out.view(-1, rows.half, 2, W, C).unbind(1)


def over_columns(band: Tensor, columns: Transform, spans: Spans, workspace: Workspace, name: str) -> Tensor:
    """The spectra along W of the tiles of (n, 2, W, C): real and imaginary parts, each (Nw, tiles n, C)."""
    n, _, _, C = band.shape
    out = workspace(name, len(spans), n, 2 * columns.circle, C)
    for (field, tile), part in zip(spans, out, strict=True):
        re, im = columns.forward[:, :, tile].unbind()
        torch.bmm(re.expand(n, -1, -1), band[:, 0, field], out=part)
        part.baddbmm_(im.expand(n, -1, -1), band[:, 1, field])
    return out.view(-1, 2, columns.circle, C).permute(1, 2, 0, 3)


def from_rows(spectra: Tensor, rows: Transform, columns: Transform, y: Tensor) -> None:
    """Writes frames y (F, H, W, N) from spectra (2 Kh, tiles F, w, N)."""
    n = len(y)
    spectra = spectra.unflatten(1, (columns.count, rows.count, n))
    for j, (right, _) in enumerate(columns.outputs):
        for i, (down, tile) in enumerate(rows.outputs):
            part = y[:, down, right]
            source = spectra[:, j, i, :, : part.shape[2]].transpose(0, 1).flatten(2)  # F 2Kh wN
            inverse = rows.inverse_real[tile].expand(n, -1, -1)
            torch.bmm(inverse, source, out=part.flatten(2))


class Layout(NamedTuple):
    """How an axis is cut into tiles: how many, of how many pixels of the result; how many pixels of the frame
    they see, the first `before` theirs; on a circle of how many points."""

    tiles: int
    size: int
    inside: int
    before: int
    circle: int


def layout(pixels: int, k: int) -> Layout:
    """The tiles of an axis.  Of a single one what wraps round its circle falls on the padding's zeros."""
    radius, count = k // 2, max(1, round(pixels / TILE))
    if count == 1:
        return Layout(1, pixels, pixels, 0, pixels + radius)
    size = -(-pixels // count)
    return Layout(-(-pixels // size), size, size + 2 * radius, radius, size + 2 * radius)


@functools.lru_cache(maxsize=32)
class Transform:
    """Fourier matrices of an axis of `pixels` for kernels of k taps, real and imaginary parts stacked.

    inputs, outputs: per tile which pixels of the field it sees, or makes, and which of its own those are.
    """

    def __init__(self, pixels: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
        self.count, self.size, inside, before, self.circle = layout(pixels, k)
        self.half = self.circle // 2 + 1
        tops = [i * self.size for i in range(self.count)]
        self.inputs = [spans(top - before, inside, pixels) for top in tops]
        self.outputs = [spans(top, self.size, pixels) for top in tops]
        self.cast = functools.partial(torch.Tensor.to, device=device, dtype=dtype)
        self._of_fields(torch.arange(inside))
        self._of_kernels(torch.arange(k) - k // 2 + before)

    def _wave(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (len(a), len(b)) of 2 pi a b / circle."""
        phase = 2 * math.pi / self.circle * (a[:, None] * b % self.circle).double()
        return torch.cos(phase), torch.sin(phase)

    def _frequencies(self) -> tuple[Tensor, Tensor, Tensor]:
        """All, half of them, and how often each of the half counts for a real result."""
        twice = torch.full((self.half,), 2.0).double()
        if self.circle % 2 == 0:
            twice[-1] = 1
        twice[0] = 1  # the last one, too, of a circle of one point
        return torch.arange(self.circle), torch.arange(self.half), twice

    def _of_fields(self, x: Tensor) -> None:
        (f, half, twice), n = self._frequencies(), self.circle
        # x -> X = sum x exp(-2 pi i f x / n), complex x, and real x with half of the frequencies
        cos, sin = self._wave(f, x)
        self.forward = self.cast(torch.stack([torch.cat([cos, -sin]), torch.cat([sin, cos])]))  # of re, of im
        cos, sin = self._wave(half, x)
        self.forward_real = self.cast(torch.stack([cos, -sin], 1).flatten(0, 1))
        # X -> x = 1/n sum X exp(+...), to the two parts of x, and to a real x
        x = x[: self.size]
        cos, sin = self._wave(x, f)
        self.inverse = self.cast(torch.stack([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)]) / n)
        cos, sin = self._wave(x, half)
        self.inverse_real = self.cast(torch.cat([cos * twice, -sin * twice], 1) / n)

    def _of_kernels(self, tap: Tensor) -> None:
        (f, half, twice), n = self._frequencies(), self.circle
        # w -> W = sum w exp(+...); along columns as W_re, W_im - W_re, W_re + W_im
        cos, sin = self._wave(half, tap)
        self.kernel_rows = self.cast(torch.stack([cos, sin], 1).flatten(0, 1))
        cos, sin = self._wave(f, tap)
        re, im = torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)
        self.kernel_columns = self.cast(torch.cat([re, im - re, re + im]))
        # and back: products at the lags of the taps
        cos, sin = self._wave(tap, f)
        self.taps = self.cast(torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)]) / n)
        cos, sin = self._wave(tap, half)
        self.taps_real = self.cast(torch.stack([cos * twice, -sin * twice], -1).flatten(1) / n)


def spans(start: int, length: int, pixels: int) -> tuple[slice, slice]:
    """Which pixels of a field lie in [start, start + length), and where there they lie."""
    first, last = max(start, 0), min(start + length, pixels)
    return slice(first, last), slice(first - start, last - start)
