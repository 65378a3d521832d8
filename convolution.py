"""Convolution with zero padding "same", directly or over frequencies.

    y[n, i, j] = sum over c, a, b of  w[n, c, a, b] x[c, i + a - r, j + b - r]        r = k // 2

A k x k convolution of C to N channels costs k^2 C N multiplications per pixel.  Over frequencies it is a
C x N matrix product for each of about as many frequencies as pixels, plus the transforms.  Here the
transforms are matrix products too (a discrete Fourier transform of 75 pixels is a matrix of 78 x 75): they
run as fast as the processor multiplies, take any size, need no powers of two, and hand on frequencies in the
order that the products want, channels last.  For the paper's second layer (7 x 7, 144 to 144 channels, 75 x
75 pixels) that is a tenth of the multiplications.  Its plain twin is torch's `conv2d`.
"""

import functools
import math

import torch
from torch.nn import functional as F

METHODS = ("auto", "direct", "spectral")
CHUNK = 80  # frames transformed at a time: bounds the memory, and is enough for the kernels' own transform
ADVANTAGE, LEAST = 2.0, 5e7  # how many times fewer multiplications pay, and of how many
LEAST_CHANNELS = 16  # products of fewer are too small to run fast


def convolve(frames, weight, method="auto"):
    """Convolution "same" of frames (F, C, H, W) with weights (N, C, k, k), k odd: (F, N, H, W).

    method: "direct" (torch), "spectral" (over frequencies, equal up to rounding; its result is channels-last
    in memory), or "auto", the faster one by `spectral_is_faster`.  Under autocast the spectral one stays in
    the dtype of the weights, faster on a CPU than the direct one in bfloat16.
    """
    if method not in METHODS:
        raise ValueError(f"convolution {method!r}: want one of {', '.join(METHODS)}")
    if method == "spectral" or (method == "auto" and spectral_is_faster(frames, weight)):
        with torch.autocast(frames.device.type, enabled=False):
            return _SpectralConvolution.apply(frames.to(weight.dtype), weight)
    return F.conv2d(frames, weight, padding="same")


def spectral_is_faster(frames, weight):
    """Whether frequencies are the faster way: on a CPU, where they save enough multiplications.

    ADVANTAGE, LEAST and LEAST_CHANNELS are measured: `python3 -m benchmarks.conv`.
    """
    direct, spectral = multiplications(frames.shape, weight.shape)
    if min(weight.shape[:2]) < LEAST_CHANNELS:
        return False
    return frames.device.type == "cpu" and direct > max(LEAST, ADVANTAGE * spectral)


def multiplications(frames_shape, weight_shape):
    """Multiplications of the direct and of the spectral way."""
    n, C, H, W = frames_shape
    N, _, k, _ = weight_shape
    rows, columns = H + k // 2, W + k // 2
    half = rows // 2 + 1
    direct = n * H * W * k * k * C * N
    transforms = (2 * half * H * W + 4 * half * columns * W) * (C + N)
    products = half * columns * 3 * C * N
    kernels = half * columns * 6 * k * C * N * -(-n // CHUNK)
    return direct, n * (transforms + products) + kernels


class _SpectralConvolution(torch.autograd.Function):
    """`F.conv2d(frames, weight, padding="same")` and its gradients over frequencies."""

    @staticmethod
    def forward(ctx, frames, weight):
        ctx.save_for_backward(frames, weight)
        return correlate(frames, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        frames, weight = ctx.saved_tensors
        grad_frames = grad_weight = None
        if ctx.needs_input_grad[
            0
        ]:  # the transposed map: inputs and outputs change places, kernels turn round
            grad_frames = correlate(grad, weight.transpose(0, 1).flip(-2, -1))
        if ctx.needs_input_grad[1]:
            grad_weight = correlate_frames(frames, grad, weight.shape[-1])
        return grad_frames, grad_weight


def correlate(frames, weight):
    """`conv2d(frames, weight, padding="same")` over frequencies, without a gradient."""
    n_out, n_in, k, _ = weight.shape
    H, W = frames.shape[-2:]
    rows, columns = (Transform(n, k, frames.dtype, frames.device) for n in (H, W))
    taps = rows.kernel_rows @ weight.permute(2, 3, 1, 0).flatten(1)  # (2 Kh, k C N)
    taps = taps.view(rows.half, 2 * k, -1)
    chunk = min(CHUNK, len(frames))
    room = Room(frames)
    out = frames.new_empty(len(frames), H, W, n_out)
    for x, y in zip(frames.split(chunk), out.split(chunk), strict=True):
        n = len(x)
        spectra = room("spectra", 2, rows.half, n, W, n_out)
        product = room("product", 2, columns.n, n, n_out)
        for kh, half in enumerate(over_rows(x, rows, room("rows", n, 2 * rows.half, W * n_in))):
            re, im = over_columns(half, columns, room("columns", n, 2 * columns.n, n_in))  # Nw F C
            kernels = room("kernels", 3 * columns.n, n_in * n_out)
            torch.mm(columns.kernel_columns, taps[kh], out=kernels)
            w_re, w_diff, w_sum = kernels.view(3, columns.n, n_in, n_out)
            # (re + i im) (w_re + i w_im) in three real products
            both = torch.add(re, im, out=room("both", columns.n, n, n_in))
            torch.bmm(both, w_re, out=product[0])
            torch.baddbmm(product[0], re, w_diff, out=product[1])
            product[0].baddbmm_(im, w_sum, alpha=-1)
            for part in range(2):
                inverse = columns.inverse[part].expand(n, -1, -1)
                torch.bmm(inverse, product.flatten(0, 1).transpose(0, 1), out=spectra[part, kh])
        spectra = spectra.flatten(0, 1).flatten(2).transpose(0, 1)  # F 2Kh WN
        torch.bmm(rows.inverse_real.expand(n, -1, -1), spectra, out=y.view(n, H, -1))
    return out.permute(0, 3, 1, 2)


def correlate_frames(frames, grad, k):
    """The gradient (N, C, k, k) of `correlate` at the weights, from that at its output (F, N, H, W)."""
    H, W = frames.shape[-2:]
    n_in, n_out = frames.shape[1], grad.shape[1]
    rows, columns = (Transform(n, k, frames.dtype, frames.device) for n in (H, W))
    taps = frames.new_zeros(rows.half, 2 * k, n_in * n_out)
    room = Room(frames)
    for x, y in zip(frames.split(CHUNK), grad.split(CHUNK), strict=True):
        n = len(x)
        halves = (
            over_rows(a, rows, room(name, n, 2 * rows.half, W * a.shape[1]))
            for a, name in ((x, "rows"), (y, "rows of grad"))
        )
        product = room("product", 2, columns.n, n_in, n_out)
        for kh, (x_half, y_half) in enumerate(zip(*halves, strict=True)):
            re, im = over_columns(x_half, columns, room("columns", n, 2 * columns.n, n_in))
            y_re, y_im = over_columns(y_half, columns, room("columns of grad", n, 2 * columns.n, n_out))
            # (re + i im) (y_re - i y_im), summed over frames, in three real products
            both = torch.add(re, im, out=room("both", columns.n, n, n_in))
            torch.bmm(both.transpose(1, 2), y_re, out=product[0])
            both = torch.add(y_re, y_im, out=room("both of grad", columns.n, n, n_out))
            torch.baddbmm(product[0], re.transpose(1, 2), both, alpha=-1, out=product[1])
            both = torch.sub(y_re, y_im, out=both)
            product[0].baddbmm_(im.transpose(1, 2), both, alpha=-1)
            taps[kh].addmm_(columns.taps, product.view(2 * columns.n, -1))
    weight = rows.taps_real @ taps.view(rows.half * 2, -1)  # k, k C N
    return weight.view(k, k, n_in, n_out).permute(3, 2, 0, 1)


class Room:
    """Working memory by name, taken again as long as the shape stays: fresh memory costs as much as a
    product."""

    def __init__(self, like):
        self.like, self.taken = like, {}

    def __call__(self, name, *shape):
        if name not in self.taken or self.taken[name].shape != shape:
            self.taken[name] = self.like.new_empty(shape)
        return self.taken[name]


def over_rows(x, rows, out):
    """The half spectrum of frames (F, C, H, W) along H: per frequency (F, 2 W, C), real parts first."""
    n, C, H, W = x.shape
    x = x.permute(0, 2, 3, 1).contiguous().view(n, H, W * C)
    torch.bmm(rows.forward_real.expand(n, -1, -1), x, out=out)
    return out.view(n, rows.half, 2 * W, C).unbind(1)


def over_columns(half, columns, out):
    """The spectrum along W of (F, 2 W, C): real and imaginary parts, each (Nw, F, C)."""
    torch.bmm(columns.forward.expand(len(half), -1, -1), half, out=out)  # F 2Nw C
    return out.view(len(half), 2, columns.n, -1).permute(1, 2, 0, 3)


@functools.lru_cache(maxsize=32)
class Transform:
    """Fourier matrices of an axis of `size` pixels for kernels of k taps, real and imaginary parts stacked.

    The circle has n = size + k // 2 points: what wraps round falls on the padding's zeros.
    """

    def __init__(self, size, k, dtype, device):
        self.n = n = size + k // 2
        self.half = n // 2 + 1
        f, half, x, tap = (torch.arange(count) for count in (n, self.half, size, k))
        tap = tap - k // 2

        def wave(a, b):
            """cos and sin (len(a), len(b)) of 2 pi a b / n."""
            phase = 2 * math.pi / n * (a[:, None] * b % n).double()
            return torch.cos(phase), torch.sin(phase)

        def cast(matrix):
            return matrix.to(device, dtype)

        # x -> X = sum x exp(-2 pi i f x / n), complex x, and real x with half of the frequencies
        cos, sin = wave(f, x)
        self.forward = cast(torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)]))
        cos, sin = wave(half, x)
        self.forward_real = cast(torch.stack([cos, -sin], 1).flatten(0, 1))
        # X -> x = 1/n sum X exp(+...), to the two parts of x, and to a real x
        cos, sin = wave(x, f)
        self.inverse = cast(torch.stack([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)]) / n)
        cos, sin = wave(x, half)
        twice = torch.full((self.half,), 2.0).double()
        twice[0] = 1
        twice[n // 2 :] = 1 if n % 2 == 0 else 2
        self.inverse_real = cast(torch.cat([cos * twice, -sin * twice], 1) / n)
        # kernels: w -> W = sum w exp(+...); along columns as W_re, W_im - W_re, W_re + W_im
        cos, sin = wave(half, tap)
        self.kernel_rows = cast(torch.stack([cos, sin], 1).flatten(0, 1))
        cos, sin = wave(f, tap)
        re, im = torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)
        self.kernel_columns = cast(torch.cat([re, im - re, re + im]))
        # and back: products at the lags of the taps
        cos, sin = wave(tap, f)
        self.taps = cast(torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)]) / n)
        cos, sin = wave(tap, half)
        self.taps_real = cast(torch.stack([cos * twice, -sin * twice], -1).flatten(1) / n)
