"""Convolution over frequencies of few channels as compiled kernels (spectral.cpp), for a CPU.

Of few channels the matrix products of `spectral_torch.py` are too small to run fast, and its transforms take
more than the products.  Here transforms are fast ones, of sizes without prime factors above 5.  Tiles are
transformed in pairs: errors of rounding are relative to the larger one, and NaN in one reaches the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nrf.fast import native

MOST_CHANNELS = 64  # spectra of the weights of more fall out of the cache
CIRCLE = 32  # points: transforms of more fall out of it, too
ADVANTAGE, LEAST = 4.0, 2e8  # how many times fewer multiplications pay, and of how many
LANES = 16  # channels of a vector


def is_few(channels: Sequence[int]) -> bool:
    """Whether these are the kernels for so many channels, where `native.is_available`."""
    return max(channels) <= MOST_CHANNELS


def pays(frames_shape: Sequence[int], weight_shape: Sequence[int]) -> bool:
    """Whether the kernels are faster than torch's convolution, of whole vectors of channels, too."""
    direct, spectral = multiplications(frames_shape, weight_shape)
    direct *= whole(weight_shape[0]) / weight_shape[0]
    return direct > max(LEAST, ADVANTAGE * spectral)


def multiplications(frames_shape: Sequence[int], weight_shape: Sequence[int]) -> tuple[float, float]:
    """Multiplications of the direct and of this way."""
    n, C, H, W = frames_shape
    N, _, k, _ = weight_shape
    (high, wide, *_), points = layout(H, W, k)
    tiles = n * -(-H // high) * -(-W // wide)
    transforms = 10 * points * (tiles * (whole(C) + whole(N)) + C * whole(N))
    return n * H * W * k * k * C * N, transforms + 2 * points * tiles * C * whole(N)


def whole(channels: int) -> int:
    return LANES * -(-channels // LANES)


def correlate(frames: Tensor, weight: Tensor) -> Tensor:
    """As `spectral_torch.correlate`."""
    n, C, H, W = frames.shape
    N, _, k, _ = weight.shape
    tiles, points = layout(H, W, k)
    out = frames.new_empty(n, H, W, N)
    inputs = frames.permute(0, 2, 3, 1).contiguous(), (weight / points).permute(2, 3, 1, 0).contiguous()
    native.call("spectral.correlate", out.dtype, (n, H, W, C, N, k, *tiles, out.numel()), (), inputs, (out,))
    return out.permute(0, 3, 1, 2)


def correlate_frames(frames: Tensor, grad: Tensor, k: int) -> Tensor:
    """As `spectral_torch.correlate_frames`."""
    n, C, H, W = frames.shape
    N = grad.shape[1]
    tiles, points = layout(H, W, k)
    taps = frames.new_empty(k, k, C, N)
    inputs = [x.permute(0, 2, 3, 1).contiguous() for x in (frames, grad)]
    sizes = n, H, W, C, N, k, *tiles, grad.numel()
    native.call("spectral.correlate_frames", taps.dtype, sizes, (), inputs, (taps,))
    return taps.div_(2 * points).permute(3, 2, 0, 1)


def layout(height: int, width: int, k: int) -> tuple[tuple[int, int, int, int], int]:
    """Height and width of the tiles and of their circles, and the product of the latter."""
    (high, tall), (wide, broad) = axis(height, k), axis(width, k)
    return (high, wide, tall, broad), tall * broad


def axis(pixels: int, k: int) -> tuple[int, int]:
    """The pixels of a tile, as many as fit a circle of few points, and those points.  Of a single one what
    wraps round its circle falls on the padding's zeros."""
    single = circle(max(pixels + k // 2, k))
    if single <= CIRCLE:
        return pixels, single
    most = max(1, CIRCLE - k + 1)
    size = -(-pixels // -(-pixels // most))
    return size, circle(size + k - 1)


def circle(points: int) -> int:
    """The next number that is a product of two or more of 2, 3, 4 and 5."""
    while True:
        left = points = max(points, 6)
        for r in (2, 3, 5):
            while left % r == 0:
                left //= r
        if left == 1:
            return points
        points += 1
