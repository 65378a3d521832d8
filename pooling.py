"""Pooling by 2 along height and width.

torch's pooling walks over pixels.  With channels last in memory, two rows of pixels are two long vectors, and
so are two columns of channels: pooling is a few vector additions, and the rectifier in front needs no map of
its own.  The plain twin is `F.avg_pool2d(F.relu(frames), 2)`.
"""

import math

import torch
from torch.nn import functional as F

BLOCK = 2**16  # cells that are pooled at a time: they stay in cache
LEAST_CHANNELS = 8  # shorter vectors do not pay


def average_pool(frames, rectify=False):
    """Means over 2 x 2 pixels of frames (..., C, H, W), of their positive parts if `rectify`: (..., C, H //
    2, W // 2), the last row and column of odd sizes left out."""
    if _is_fast(frames):
        return _pool(frames, rectify, False)[0]
    frames = F.relu(frames) if rectify else frames
    return F.avg_pool2d(frames.flatten(0, -4), 2).unflatten(0, frames.shape[:-3])


def average_pool_and_mean(frames):
    """`average_pool`, and in the same pass the mean (...) of each whole frame."""
    if _is_fast(frames):
        return _pool(frames, False, True)
    return average_pool(frames), frames.mean((-3, -2, -1))


def _is_fast(frames):
    last = frames.movedim(-3, -1)
    fast = frames.device.type == "cpu" and last.shape[-1] >= LEAST_CHANNELS and last.is_contiguous()
    return fast and min(last.shape[-3:-1]) > 1


def _pool(frames, rectify, mean):
    last, leading = frames.movedim(-3, -1), frames.shape[:-3]
    pooled, means = _AveragePool.apply(last.flatten(0, -4), rectify, mean)
    return pooled.unflatten(0, leading).movedim(-1, -3), means.unflatten(0, leading) if mean else None


def max_pool(frames, rectify=False):
    """Maxima over 2 x 2 pixels, as `average_pool`."""
    pooled = F.max_pool2d(frames.flatten(0, -4), 2).unflatten(0, frames.shape[:-3])
    return F.relu(pooled) if rectify else pooled


class _AveragePool(torch.autograd.Function):
    """Frames (F, H, W, C), pooled, and the mean (F,) of each.  The rectifier's mask is the sign of what was
    pooled.  Gradients of two columns are one vector, so that rows are written at their full length."""

    @staticmethod
    def forward(ctx, frames, rectify, mean):
        n, H, W, C = ctx.shape = frames.shape
        h, w = H // 2, W // 2
        out = frames.new_empty(n, h, w, C)
        means = frames.new_empty(n) if mean else None
        for part in _chunks(ctx.shape):
            x = frames[part, : 2 * h, : 2 * w]
            x = x.clamp_min(0) if rectify else x
            rows = x[:, 0::2] + x[:, 1::2]
            torch.add(rows[:, :, 0::2], rows[:, :, 1::2], out=out[part]).mul_(0.25)
            if mean:
                torch.mean(frames[part].flatten(1), 1, out=means[part])
        ctx.save_for_backward(frames if rectify else None)
        ctx.set_materialize_grads(False)
        return out, means

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_means):
        (frames,) = ctx.saved_tensors
        _, H, W, C = ctx.shape
        h, w = H // 2, W // 2
        some = grad if grad is not None else grad_means
        out = some.new_empty(ctx.shape)
        for part in _chunks(ctx.shape):
            each = some.new_zeros(len(out[part]), 1, 1, 1)
            if grad_means is not None:
                each += grad_means[part].view(-1, 1, 1, 1) / (H * W * C)
            out[part, 2 * h :], out[part, :, 2 * w :] = each, each
            quarter = each.expand(-1, h, w, C) if grad is None else torch.add(each, grad[part], alpha=0.25)
            twice = quarter[:, :, :, None].expand(-1, -1, -1, 2, -1).reshape(-1, h, 1, 2 * w * C)
            rows = _rows(out[part], h, w)
            if frames is None:
                rows.copy_(twice)
            else:
                threshold_backward(twice, _rows(frames[part], h, w), 0, grad_input=rows)
        return out, None, None


threshold_backward = torch.ops.aten.threshold_backward.grad_input  # the rectifier's gradient, into place


def _chunks(shape):
    """Slices of frames (F, H, W, C), so few at a time that they stay in cache."""
    n, *cells = shape
    chunk = max(1, BLOCK // math.prod(cells))
    return (slice(k, k + chunk) for k in range(0, n, chunk))


def _rows(frames, h, w):
    """(F, H, W, C) as (F, h, 2, 2 w C)."""
    return frames[:, : 2 * h, : 2 * w].flatten(2).unflatten(1, (h, 2))
