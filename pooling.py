"""Pooling by 2 along height and width, alone and in one pass with the neurons in front of it."""

import torch
from torch.nn import functional as F

import native

NETS = {"ann": 0, "li": 1, "lif": 2}  # as in native.cpp


def average_pool(frames):
    """Means over 2 x 2 pixels of frames (..., C, H, W): (..., C, H // 2, W // 2), the last row and column of
    odd sizes left out."""
    return F.avg_pool2d(frames.flatten(0, -4), 2).unflatten(0, frames.shape[:-3])


def max_pool(frames):
    """Maxima over 2 x 2 pixels, as `average_pool`."""
    return F.max_pool2d(frames.flatten(0, -4), 2).unflatten(0, frames.shape[:-3])


def pooled_neurons(net, K, current, decay, v0, skips, v_th, alpha):
    """Average-pooled responses (T, K, B, C, H // 2, W // 2) of K neurons, their last voltages (K, B, C, H, W)
    and, for "lif", the means (K,) of the responses in front of the pooling, else 0.

    net: "li" rectified voltages, "lif" spikes, "ann" the rectified current, without a voltage.  current:
    (T, 1 or K, B, C, H, W).  decay: (K,), None for "ann".  v0: as the last voltages, rest if None.  skips:
    (K,), weights of the current, added to the responses; or None.  All of one dtype, `native.is_available`.

    Neurons' responses are the largest tensors there are, and pooling leaves a quarter of them.  Here they go
    through pooling as they come, in cache: only the current is kept, and the backward pass computes the
    voltages again.  The plain twin is the rest of `response.neurons_response`.
    """
    return _PooledNeurons.apply(current, decay, v0, skips, net, K, float(v_th), float(alpha))


class _PooledNeurons(torch.autograd.Function):
    """Through native.cpp; there, channels are last."""

    @staticmethod
    def forward(ctx, current, decay, v0, skips, net, K, v_th, alpha):
        x, v0 = _channels_last(current), _channels_last(v0)
        T, groups, B, H, W, C = x.shape
        ctx.sizes = NETS[net], T, K, groups, B, H, W, C, torch.get_num_threads()
        ctx.save_for_backward(x, decay, v0, skips)
        ctx.constants, ctx.means = (v_th, alpha), net == "lif"
        ctx.set_materialize_grads(False)
        pooled = x.new_empty(T, K, B, H // 2, W // 2, C)
        last = None if net == "ann" else x.new_empty(K, B, H, W, C)
        sums = torch.zeros(B, -(-H // 2), K, dtype=torch.float64)
        native.call("pool", x.dtype, *ctx.sizes, x, decay, v0, v_th, skips, pooled, last, sums)
        means = sums.sum((0, 1)).to(x.dtype) / (x.numel() / groups)
        return _channels_first(pooled), _channels_first(last), means

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_pooled, grad_last, grad_means):
        x, decay, v0, skips = ctx.saved_tensors
        _, T, K, groups, B, H, *_ = ctx.sizes
        each = grad_means / (x.numel() / groups) if ctx.means and grad_means is not None else None
        grads = _channels_last(grad_pooled), _channels_last(grad_last), each
        grad_current = torch.empty_like(x)
        grad_v0 = torch.empty_like(v0) if ctx.needs_input_grad[2] else None
        sums = torch.zeros(B, -(-H // 2), K, 2, dtype=torch.float64)
        arguments = *grads, x, decay, v0, *ctx.constants, skips, grad_current, grad_v0, sums
        native.call("pool_backward", x.dtype, *ctx.sizes, *arguments)
        grad_decay, grad_skips = sums.sum((0, 1)).to(x.dtype).unbind(-1)
        grads = _channels_first(grad_current), grad_decay, _channels_first(grad_v0), grad_skips
        return *(grad if ctx.needs_input_grad[i] else None for i, grad in enumerate(grads)), *(None,) * 4


def _channels_last(tensor):
    return None if tensor is None else tensor.movedim(-3, -1).contiguous()


def _channels_first(tensor):
    return None if tensor is None else tensor.movedim(-1, -3)
