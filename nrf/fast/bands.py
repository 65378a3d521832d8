"""A layer by bands of rows, each computed again for its gradients, so that its activations are never kept.

Few channels come into the paper's first layer, many go out four times as large as the next layer takes them,
once per time constant: 8 GB of float32 voltages that a cheap convolution of 29 MB of events makes.  A band is
small enough to stay in cache from its convolution to its pooled responses.
"""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# cells of a band's responses, over all steps: on a CPU they stay in cache, on a GPU each band costs the start
# of some twenty kernels
BAND = {"cpu": 2**23, "cuda": 2**28}


def band_rows(frames, n_responses):
    """Rows of a band, an even number, where each cell of frames (..., H, W) has so many responses."""
    cells = frames[..., 0, 0, :].numel() * n_responses
    return 2 * max(1, BAND.get(frames.device.type, BAND["cpu"]) // (2 * cells))


def by_bands(response, frames, state, radius, rows):
    """What `response(frames, state)` returns: pooled responses, state, mean responses.

    response: takes frames that have `radius` rows and columns of padding on each side, convolves them without
    any more, and pools by 2.  frames: (T, K, B, C, H, W).  state: NamedTuple of tensors (..., H, W), or None.
    """
    T, K, B, _, H, W = frames.shape
    padded = F.pad(frames.flatten(0, 2), (radius,) * 4).contiguous(memory_format=torch.channels_last)
    padded = padded.unflatten(0, (T, K, B))
    tops = range(0, max(H - 1, 1), rows)  # a last single row is not pooled: the band above takes it
    wholes, mean = None, 0
    for top, bottom in zip(tops, [*tops[1:], H], strict=True):
        part = padded[..., top : bottom + 2 * radius, :]
        before = None if state is None else type(state)(*(x[..., top:bottom, :] for x in state))
        out, after, share = checkpoint(response, part, before, use_reentrant=False, preserve_rng_state=False)
        mean = mean + share * ((bottom - top) / H)
        bands = [band.movedim(-3, -1) for band in (out, *(after or ()))]
        rows = [slice(top // 2, bottom // 2)] + [slice(top, bottom)] * (len(bands) - 1)
        if wholes is None:
            heights = [H // 2] + [H] * (len(bands) - 1)
            wholes = [
                x.new_empty(*x.shape[:-3], height, *x.shape[-2:])
                for x, height in zip(bands, heights, strict=True)
            ]
        wholes = list(map(_Write.apply, wholes, bands, rows))
    out, *variables = (whole.movedim(-1, -3) for whole in wholes)
    return out, type(after)(*variables) if after else None, mean


class _Write(torch.autograd.Function):
    """`whole[..., rows, :, :] = part`, in place, without a copy of gradients.  Concatenated, bands would lie
    in memory twice, and in small pieces that the process keeps."""

    @staticmethod
    def forward(ctx, whole, part, rows):
        ctx.rows = rows
        ctx.mark_dirty(whole)
        whole[..., rows, :, :] = part
        return whole

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad, grad[..., ctx.rows, :, :], None


def split(state, K):
    """K states of one channel each, of one (K, ...), or None."""
    if state is None:
        return [None] * K
    return [type(state)(*variables) for variables in zip(*(x.split(1) for x in state), strict=True)]


def join(parts):
    """Responses, state and mean responses of K channels, from those of each."""
    outs, states, means = zip(*parts, strict=True)
    if states[0] is None:
        return cat(outs, 1), None, torch.cat(means)
    state = type(states[0])(*(cat(variables, 0) for variables in zip(*states, strict=True)))
    return cat(outs, 1), state, torch.cat(means)


def cat(parts, dim):
    """`torch.cat` of (..., C, H, W), channels last in memory.  dim: from the front."""
    return torch.cat([part.movedim(-3, -1) for part in parts], dim).movedim(-1, -3)
