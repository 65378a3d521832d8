"""Leaky integration, with or without firing, over all steps at once: the loops of `neurons.py`, sooner.

On a CPU compiled (`scan_native.py`), without a compiler in torch's operations (`scan_torch.py`), on a GPU in
Triton (`scan_triton.py`).  One tensor is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nrf.fast import native, scan_native, scan_torch, trust


def integrate(current: Tensor, decay: Tensor, v0: Tensor) -> Tensor:
    """Voltages (T, *step) of leaky integrators under `current` (T, ...), from v0 (*step)."""
    *flat, restore = _flat(current, decay, v0)
    return restore(_LeakyIntegrator.apply(*flat))


def integrate_and_fire(
    current: Tensor, decay: Tensor, v0: Tensor, v_th: float | Tensor, alpha: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Spikes (T, *step) of leaky integrate-and-fire neurons and their last voltages, as `integrate`.

    v_th, alpha: threshold and steepness of the surrogate gradient, numbers or tensors of one."""
    *flat, restore = _flat(current, decay, v0)
    spikes, last = _IntegrateAndFire.apply(*flat, v_th, alpha)
    return restore(spikes), restore(last)


class _LeakyIntegrator(torch.autograd.Function):
    """`integrate` with its gradient written out: only the voltages are kept, not the current.

    With g[t] the whole gradient at v[t]:  g[t] = dL/dv[t] + (1 - decay) g[t+1];  dL/dx[t] = decay g[t];
    dL/d decay = sum_t g[t] (x[t] - v[t-1]), and decay (x[t] - v[t-1]) = v[t] - v[t-1].
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, decay: Tensor, v0: Tensor) -> Tensor:
        voltages = _kernels(v0).integrate(current, decay, v0)
        ctx.save_for_backward(voltages, decay, v0)
        ctx.groups, ctx.dtype = current.shape[1], current.dtype
        return voltages

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_voltages: Tensor) -> tuple[Tensor | None, ...]:
        voltages, decay, v0 = ctx.saved_tensors
        gradients = _kernels(voltages).integrate_backward(grad_voltages, voltages, decay, v0, ctx.groups)
        return _needed(ctx, decay, *gradients)


class _IntegrateAndFire(torch.autograd.Function):
    """`integrate_and_fire` with its gradient written out: what is kept are u, the voltages before the reset,
    or the current, from which the backward pass computes them again.

    With h[t] the gradient at v[t] and s(u) the surrogate's slope, z[t] = u[t] > v_th, v[t] = (1 - z[t]) u[t]:
    g[t] = dL/du[t] = (1 - z[t]) h[t] + (dL/dz[t] - u[t] h[t]) s(u[t]);  h[t-1] = (1 - decay) g[t];
    dL/dx and dL/d decay as above.
    """

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, decay: Tensor, v0: Tensor, v_th: float | Tensor, alpha: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        kept, spikes, last = _kernels(v0).fire(current, decay, v0, v_th)
        ctx.save_for_backward(*kept, decay, v0)
        ctx.groups, ctx.dtype, ctx.constants = current.shape[1], current.dtype, (v_th, alpha)
        return spikes, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        *kept, decay, v0 = ctx.saved_tensors
        arguments = grad_spikes, grad_last, kept, decay, v0, *ctx.constants, ctx.groups
        return *_needed(ctx, decay, *_kernels(v0).fire_backward(*arguments)), None, None


def _kernels(tensor: Tensor) -> ModuleType:
    """The scans for the device and dtype of these voltages."""
    if tensor.device.type == "cuda" and trust.scans(tensor.device, tensor.dtype):
        from nrf.fast import scan_triton

        return scan_triton
    return scan_native if native.is_available(tensor.device, tensor.dtype) else scan_torch


def _needed(
    ctx: Any, decay: Tensor, current: Tensor, changes: Tensor, v0: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients that are needed: current (in its own dtype: bfloat16 under autocast), decay, v0."""
    gradients = current.to(ctx.dtype), (changes / decay).sum_to_size(decay.shape), v0
    return tuple(grad if ctx.needs_input_grad[i] else None for i, grad in enumerate(gradients))


def _flat(
    current: Tensor, decay: Tensor, v0: Tensor
) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Current, decay and v0 as the scans see them, (T, 1 or K, n), (K, 1 or n) and (K, n), contiguous, views
    where the order of memory allows, and the function that turns results (..., K, n) back into steps.

    K: the rates' leading axis where they have no other, else 1.  n: the rest of a step; where rates differ
    along it, decay does too.
    """
    step = v0.shape
    current = current.view(len(current), *(1,) * (len(step) - current.dim() + 1), *current.shape[1:])
    leading = decay.dim() == len(step) > 0 and decay.numel() == len(decay) == step[0]
    K, groups = (len(decay), current.shape[1]) if leading else (1, 1)
    if not leading:
        current = current.expand(len(current), *step)
        decay = decay.expand(step) if decay.numel() > 1 else decay
    if len(step) > 3 and not current.is_contiguous() and _channels_last(current).is_contiguous():
        shape = _channels_last(v0).shape
        current, v0 = _channels_last(current), _channels_last(v0)
        decay = decay if leading or decay.numel() == 1 else _channels_last(decay)

        def restore(flat: Tensor) -> Tensor:
            return flat.view(flat.shape[:-2] + shape).movedim(-1, -3)
    else:

        def restore(flat: Tensor) -> Tensor:
            return flat.view(flat.shape[:-2] + step)

    flat = current.reshape(len(current), groups, -1), decay.reshape(K, -1), v0.reshape(K, -1)
    current, decay, v0 = (tensor.contiguous() for tensor in flat)
    return current, decay, v0, restore


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(-3, -1)
