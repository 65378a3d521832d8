"""Convolution of events on a CPU: the cells that are zero, all but a few in a hundred, are not multiplied.

Each other cell adds its weights to the pixels that see it.  At the paper's rate of events that is a hundredth
of the direct multiplications, which take a third of a ReLU network's step.  Its plain twin is torch's
`conv2d`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from nrf.fast import native

DENSITY = 1 / 32  # of cells that are not zero: of more, the gradient takes as long as a dense one


def convolve_events(frames: Tensor, weight: Tensor, padding: int) -> Tensor:
    """`F.conv2d(frames, weight, padding=padding)` up to rounding, channels last in memory.  Its time follows
    the number of cells of frames (F, C, H, W) that are not zero; of many it is `conv2d`.

    Of a device and dtype where `native.is_available`, or both in bfloat16, and sums in float32.
    """
    return torch.ops.nrf.convolve_events.default(frames, weight, padding)


def _convolve(frames: Tensor, weight: Tensor, padding: int) -> Tensor:
    found = _events(frames)
    if found is None:
        return F.conv2d(frames, weight, padding=padding).contiguous(memory_format=torch.channels_last)
    out = _empty(frames, weight, padding)
    turned = weight.flip(-2, -1).permute(1, 2, 3, 0).to(found[2].dtype).contiguous()
    inputs, outputs = (*found, turned), (out.permute(0, 2, 3, 1),)
    native.call("sparse", out.dtype, _sizes(frames, weight, padding), (), inputs, outputs)
    return out


def _weight_gradient(frames: Tensor, weight: Tensor, grad: Tensor, padding: int) -> Tensor:
    found = _events(frames)
    if found is None:
        return conv2d_weight(frames, weight.shape, grad, padding=padding).contiguous()
    N, C, k, _ = weight.shape
    turned = found[2].new_empty(C, k, k, N)
    inputs = *found, grad.permute(0, 2, 3, 1).contiguous()
    native.call("sparse_backward", grad.dtype, _sizes(frames, weight, padding), (), inputs, (turned,))
    return turned.flip(1, 2).permute(3, 0, 1, 2).to(weight.dtype).contiguous()


def _events(frames: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(n, 4) frame, row, column and channel of each cell that is not zero, in the order of memory, the first
    of each frame (F + 1,), and their values (n,), in the dtype of sums; None if there are too many."""
    cells = frames.permute(0, 2, 3, 1)
    if int(torch.count_nonzero(cells)) > DENSITY * cells.numel():
        return None
    places = cells.nonzero().contiguous()
    starts = torch.searchsorted(places[:, 0].contiguous(), torch.arange(len(cells) + 1))
    return places, starts, cells[places.unbind(1)].to(native.COMPUTED.get(cells.dtype, cells.dtype))


def _sizes(frames: Tensor, weight: Tensor, padding: int) -> tuple[int, ...]:
    (n, C, H, W), (N, _, k, _) = frames.shape, weight.shape
    return n, H, W, C, N, k, padding, n * H * W * N


def _empty(frames: Tensor, weight: Tensor, padding: int) -> Tensor:
    (n, _, H, W), (N, _, k, _) = frames.shape, weight.shape
    more = 2 * padding - k + 1
    return weight.new_empty(n, H + more, W + more, N).permute(0, 3, 1, 2)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.padding = inputs
    ctx.save_for_backward(*tensors)


@torch.autograd.function.once_differentiable
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    frames, weight = ctx.saved_tensors
    grad_frames = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_frames = conv2d_input(frames.shape, weight, grad, padding=ctx.padding)
    if ctx.needs_input_grad[1]:
        grad_weight = torch.ops.nrf.events_weight.default(frames, weight, grad, ctx.padding)
    return grad_frames, grad_weight, None


native.operator(
    "convolve_events(Tensor frames, Tensor weight, int padding) -> Tensor",
    _convolve,
    _empty,
    _backward,
    _keep,
)
native.operator(
    "events_weight(Tensor frames, Tensor weight, Tensor grad, int padding) -> Tensor",
    _weight_gradient,
    lambda frames, weight, grad, padding: weight.new_empty(weight.shape),
)
