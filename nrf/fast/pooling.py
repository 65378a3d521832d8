"""Pooling by 2 along height and width, alone and in one pass with the neurons in front of it."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nrf.fast import native, scan_native, trust
from nrf.fast.scan import integrate, integrate_and_fire

Pooled = tuple[Tensor, Tensor | None, Tensor]  # responses, last voltages, means
NETS = {"ann": 0, "li": 1, "lif": 2}  # as in native.cpp


def average_pool(frames: Tensor) -> Tensor:
    """Means over 2 x 2 pixels of frames (..., C, H, W): (..., C, H // 2, W // 2), the last row and column of
    odd sizes left out."""
    return F.avg_pool2d(frames.flatten(0, -4), 2).unflatten(0, frames.shape[:-3])


def max_pool(frames: Tensor) -> Tensor:
    """Maxima over 2 x 2 pixels, as `average_pool`."""
    return F.max_pool2d(frames.flatten(0, -4), 2).unflatten(0, frames.shape[:-3])


def pooled_neurons(
    net: str,
    K: int,
    current: Tensor,
    decay: Tensor | None,
    v0: Tensor | None,
    skips: Tensor | None,
    v_th: float | Tensor,
    alpha: float | Tensor,
) -> Pooled:
    """Average-pooled responses (T, K, B, C, H // 2, W // 2) of K neurons, their last voltages (K, B, C, H, W)
    and, for "lif", the means (K,) of the responses in front of the pooling, else 0.

    net: "li" rectified voltages, "lif" spikes, "ann" the rectified current, without a voltage.  current:
    (T, 1 or K, B, C, H, W).  decay: (K,), None for "ann".  v0: as the last voltages, rest if None.  skips:
    (K,), weights of the current, added to the responses; or None.  Of a device and dtype where `is_one_pass`;
    the current may be narrower, and pooled responses are as it is.

    Neurons' responses are the largest tensors there are, and pooling leaves a quarter of them.  Here they go
    through pooling as they come, in cache; the backward pass computes voltages again from the current.
    """
    _, groups, B, C, H, W = current.shape
    if groups not in (1, K) or min(H, W) < 2 or current.numel() == 0:
        raise ValueError(
            f"currents {tuple(current.shape)} of {K} neurons: expected (T, 1 or {K}, B, C, H, W), H, W > 1"
        )
    v0 = None if v0 is None else v0.expand(K, B, C, H, W)
    given = net, K, current, decay, v0, skips, v_th, alpha
    if current.device.type == "cuda":
        if not trust.pooling(net, current.device, current.dtype, _in_one_pass, pooled_plainly):
            return pooled_plainly(*given)
    return _in_one_pass(*given)


def pooled_plainly(
    net: str,
    K: int,
    current: Tensor,
    decay: Tensor | None,
    v0: Tensor | None,
    skips: Tensor | None,
    v_th: float | Tensor,
    alpha: float | Tensor,
) -> Pooled:
    """`pooled_neurons`, the plain twin: one operation after the other."""
    per_channel = (-1, 1, 1, 1, 1)
    last: Tensor | None = None
    if net == "ann":
        out = F.relu(current).expand(len(current), K, *current.shape[2:])
    else:
        assert decay is not None
        v0 = decay.new_zeros(()).expand(K, *current.shape[2:]) if v0 is None else v0
        if net == "li":
            voltages = integrate(current, decay.view(per_channel), v0)
            out, last = F.relu(voltages), voltages[-1]
        else:
            out, last = integrate_and_fire(current, decay.view(per_channel), v0, v_th, alpha)
    out = out if skips is None else torch.addcmul(out, skips.view(per_channel), current)
    means = out.mean((0, 2, 3, 4, 5)) if net == "lif" else out.new_zeros(K)
    return average_pool(out).to(current.dtype), last, means


def _in_one_pass(
    net: str,
    K: int,
    current: Tensor,
    decay: Tensor | None,
    v0: Tensor | None,
    skips: Tensor | None,
    v_th: float | Tensor,
    alpha: float | Tensor,
) -> Pooled:
    parameter = next((values for values in (decay, skips) if values is not None), current)
    dtype = torch.promote_types(torch.float32, parameter.dtype)
    decay, skips = (None if values is None else values.to(dtype).contiguous() for values in (decay, skips))
    narrow = current.device.type == "cuda" or native.COMPUTED.get(current.dtype) == dtype
    x = _channels_last(current if narrow else current.to(dtype))  # or kernels convert what they read
    given = x, decay, None if v0 is None else _channels_last(v0.to(dtype)), skips
    pooled, last, means = _PooledNeurons.apply(*given, NETS[net], K, float(v_th), float(alpha))
    pooled = pooled.to(current.dtype).movedim(-1, -3)
    return pooled, None if last is None else last.movedim(-1, -3), means.to(dtype)


def is_one_pass(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `pooled_neurons` takes voltages of this device and dtype."""
    return device.type == "cuda" or native.is_available(device, dtype)


class _PooledNeurons(torch.autograd.Function):
    """With channels last: current (T, 1 or K, B, H, W, C), v0 and last voltages (K, B, H, W, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        decay: Tensor | None,
        v0: Tensor | None,
        skips: Tensor | None,
        net: int,
        K: int,
        v_th: float,
        alpha: float,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        ctx.net, ctx.constants = (net, K), (v_th, alpha)
        pooled, last, sums = _kernels(current).pool(net, K, current, decay, v0, skips, v_th)
        ctx.save_for_backward(current, decay, v0, skips)
        ctx.set_materialize_grads(False)
        return pooled, last, sums / current[:, 0].numel()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_pooled: Tensor | None, grad_last: Tensor | None, grad_means: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        current, *parameters = ctx.saved_tensors
        if ctx.net[0] != NETS["lif"]:  # no means
            grad_means = None
        grad_sums = None
        if grad_means is not None:
            grad_sums = (grad_means / current[:, 0].numel()).to(parameters[0].dtype)
        grads = [None if grad is None else grad.contiguous() for grad in (grad_pooled, grad_last, grad_sums)]
        wanted = ctx.needs_input_grad
        grad_current, sums, grad_v0 = _kernels(current).pool_backward(
            *ctx.net, grads, current, *parameters, *ctx.constants, wanted[2]
        )
        found = grad_current, sums[:, 0], grad_v0, sums[:, 1]
        return *(grad if wanted[i] else None for i, grad in enumerate(found)), *(None,) * 4


def _kernels(tensor: Tensor) -> ModuleType:
    """The kernels for this tensor's device."""
    if tensor.device.type == "cuda":
        from nrf.fast import pooling_triton  # needs Triton, which comes with torch where there is a GPU

        return pooling_triton
    return scan_native


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(-3, -1).contiguous()
