"""Pooling by 2 along height and width.

torch's pooling walks over pixels.  With channels last in memory, two rows of pixels are two long vectors, and
so are two columns of channels: pooling is a few vector additions, and the rectifier in front needs no map of
its own.  The plain twin is `F.avg_pool2d(F.relu(frames), 2)`.
"""

import torch
from torch.nn import functional as F

BLOCK = 2**16  # cells that are pooled at a time: they stay in cache
LEAST_CHANNELS = 8  # shorter vectors do not pay


def average_pool(frames, rectify=False):
    """Means over 2 x 2 pixels of frames (..., C, H, W), of their positive parts if `rectify`: (..., C, H //
    2, W // 2), the last row and column of odd sizes left out."""
    last = frames.movedim(-3, -1)
    fast = frames.device.type == "cpu" and last.shape[-1] >= LEAST_CHANNELS and last.is_contiguous()
    if fast and min(last.shape[-3:-1]) > 1:
        return _AveragePool.apply(last.flatten(0, -4), rectify).unflatten(0, last.shape[:-3]).movedim(-1, -3)
    frames = F.relu(frames) if rectify else frames
    return F.avg_pool2d(frames.flatten(0, -4), 2).unflatten(0, frames.shape[:-3])


def max_pool(frames, rectify=False):
    """Maxima over 2 x 2 pixels, as `average_pool`."""
    pooled = F.max_pool2d(frames.flatten(0, -4), 2).unflatten(0, frames.shape[:-3])
    return F.relu(pooled) if rectify else pooled


class _AveragePool(torch.autograd.Function):
    """Frames (F, H, W, C).  The rectifier's mask is the sign of what was pooled."""

    @staticmethod
    def forward(ctx, frames, rectify):
        n, H, W, C = frames.shape
        h, w = H // 2, W // 2
        out = frames.new_empty(n, h, w, C)
        chunk = max(1, BLOCK // (H * W * C))
        for x, y in zip(frames[:, : 2 * h, : 2 * w].split(chunk), out.split(chunk), strict=True):
            x = x.clamp_min(0) if rectify else x
            rows = x[:, 0::2] + x[:, 1::2]
            torch.add(rows[:, :, 0::2], rows[:, :, 1::2], out=y).mul_(0.25)
        ctx.save_for_backward(frames if rectify else None)
        ctx.shape = frames.shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (frames,) = ctx.saved_tensors
        n, H, W, C = ctx.shape
        h, w = H // 2, W // 2
        out = grad.new_empty(ctx.shape)
        chunk = max(1, BLOCK // (H * W * C))
        for k in range(0, n, chunk):
            part = slice(k, k + chunk)
            quarter = (grad[part] * 0.25)[:, :, None, :, None]  # F h 1 w 1 C
            if frames is None:
                out[part] = 0 if (2 * h, 2 * w) != (H, W) else out[part]
                _cells(out[part], h, w).copy_(quarter.expand(-1, -1, 2, -1, 2, -1))
            else:
                mask = torch.gt(frames[part], 0, out=out[part])
                mask[:, 2 * h :], mask[:, :, 2 * w :] = 0, 0
                _cells(mask, h, w).mul_(quarter)
        return out, None


def _cells(frames, h, w):
    """(F, H, W, C) as (F, h, 2, w, 2, C)."""
    return frames[:, : 2 * h, : 2 * w].unflatten(2, (w, 2)).unflatten(1, (h, 2))
