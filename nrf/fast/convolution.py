"""Convolution with zero padding "same", directly or over frequencies.

    y[n, i, j] = sum over c, a, b of  w[n, c, a, b] x[c, i + a - r, j + b - r]        r = k // 2

A k x k convolution of C to N channels costs k^2 C N multiplications per pixel.  Over frequencies it is a
C x N matrix product for each of about as many frequencies as pixels, plus the transforms.  For the paper's
second layer (7 x 7, 144 to 144 channels, 75 x 75 pixels) that is a tenth of the multiplications.  Many
channels take `spectral_torch.py`, few of them on a CPU `spectral_native.py`; the plain twin of both is
torch's `conv2d`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nrf.fast import native, spectral_native, spectral_torch
from nrf.fast.sparse import convolve_events

METHODS = ("auto", "direct", "spectral")


def convolve(
    frames: Tensor, weight: Tensor, method: str = "auto", events: bool = False, padded: bool = False
) -> Tensor:
    """Convolution "same" of frames (F, C, H, W) with weights (N, C, k, k), k odd: (F, N, H, W).

    method: "direct" (torch), "spectral" (over frequencies), or "auto": as `spectral_is_faster` says, and of
    events `fast/sparse.py`.  All are equal up to rounding.  Under autocast "direct" is in its dtype,
    "spectral" in that of the weights, and so is "auto" on a CPU, where that is faster, unless it is
    `in_matrix_units`.  events: most cells are zero.  padded: frames bring k // 2 pixels of padding.
    """
    if method not in METHODS:
        raise ValueError(f"convolution {method!r}: expected one of {', '.join(METHODS)}")
    padding, auto = 0 if padded else weight.shape[-1] // 2, method == "auto"
    if method == "direct" or (auto and frames.device.type != "cpu"):
        return F.conv2d(frames, weight, padding=padding)
    spectral = not auto or (not padded and spectral_is_faster(frames, weight))
    sparse = auto and events and native.is_available(frames.device, weight.dtype)
    narrow = auto and weight.dtype == torch.float32 and in_matrix_units()
    dtype = torch.bfloat16 if narrow else weight.dtype
    frames, weight = frames.to(dtype), weight.to(dtype)
    with torch.autocast(frames.device.type, enabled=False):
        if sparse:
            return convolve_events(frames, weight, padding)
        if spectral:
            return torch.ops.nrf.correlate.default(frames, weight)
        return F.conv2d(frames, weight, padding=padding)


def spectral_is_faster(frames: Tensor, weight: Tensor) -> bool:
    """Whether frequencies are the faster way: on a CPU, where they save enough multiplications.

    How many is measured: `python3 -m benchmarks.conv`.  In bfloat16 matrix units make up for what frequencies
    save, and more than that in smaller fields.
    """
    if frames.device.type != "cpu" or in_matrix_units():
        return False
    shapes, channels = (frames.shape, weight.shape), weight.shape[:2]
    if spectral_native.is_few(channels) and not spectral_native.pays(*shapes):
        return False  # which need not be built to know this
    return bool(way(frames.device, weight.dtype, channels).pays(*shapes))


def way(device: torch.device, dtype: torch.dtype, channels: Sequence[int]) -> ModuleType:
    """The module that convolves so many channels over frequencies."""
    few = spectral_native.is_few(channels) and native.is_available(device, dtype, "spectral")
    return spectral_native if few else spectral_torch


def multiplications(
    frames_shape: Sequence[int], weight_shape: Sequence[int], device: str = "cpu"
) -> tuple[float, float]:
    """Multiplications of the direct and of the spectral way."""
    if way(torch.device(device), torch.float32, weight_shape[:2]) is spectral_native:
        return spectral_native.multiplications(frames_shape, weight_shape)
    return spectral_torch.multiplications(frames_shape, weight_shape, device)


def in_matrix_units() -> bool:
    """Whether convolutions on a CPU are bfloat16's now, in units that multiply its matrices."""
    narrow = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return narrow and has_matrix_units()


@functools.cache
def has_matrix_units() -> bool:
    """Whether the processor has units that multiply bfloat16 matrices (Intel's AMX)."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def _correlate(frames: Tensor, weight: Tensor) -> Tensor:
    """`conv2d(frames, weight, padding="same")` over frequencies, without a gradient."""
    return way(frames.device, frames.dtype, weight.shape[:2]).correlate(frames, weight)


def _correlate_frames(frames: Tensor, grad: Tensor, k: int) -> Tensor:
    """The gradient (N, C, k, k) of the weights, from that of the output (F, N, H, W)."""
    channels = frames.shape[1], grad.shape[1]
    return way(frames.device, frames.dtype, channels).correlate_frames(frames, grad, k)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


@torch.autograd.function.once_differentiable
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of `correlate`.  That of the frames is the transposed map: inputs and outputs change places, kernels
    turn round."""
    frames, weight = ctx.saved_tensors
    grad_frames = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_frames = torch.ops.nrf.correlate.default(grad, weight.transpose(0, 1).flip(-2, -1))
    if ctx.needs_input_grad[1]:
        grad_weight = torch.ops.nrf.correlate_frames.default(frames, grad, weight.shape[-1])
    return grad_frames, grad_weight


def _empty_correlated(frames: Tensor, weight: Tensor) -> Tensor:
    n, _, H, W = frames.shape
    return frames.new_empty(n, H, W, len(weight)).permute(0, 3, 1, 2)


def _empty_weight(frames: Tensor, grad: Tensor, k: int) -> Tensor:
    return frames.new_empty(k, k, frames.shape[1], grad.shape[1]).permute(3, 2, 0, 1)


# operators, since a graph of what they do would hold hundreds of products
native.operator(
    "correlate(Tensor frames, Tensor weight) -> Tensor", _correlate, _empty_correlated, _backward, _keep
)
native.operator(
    "correlate_frames(Tensor frames, Tensor grad, int k) -> Tensor", _correlate_frames, _empty_weight
)
