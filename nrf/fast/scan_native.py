"""The scans of `neurons.py` and `pooling.pooled_neurons` as compiled kernels (native.cpp), for a CPU.

Same shapes as `scan_torch.py`: current (T, 1 or K, n), decay (K, 1 or n), v0 (K, n).  Spikes keep the
current, and their backward pass computes the voltages again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nrf.fast import native
from nrf.fast.scan_torch import Gradients


def integrate(current: Tensor, decay: Tensor, v0: Tensor) -> Tensor:
    """Voltages (T, K, n) of leaky integrators, bit by bit those of the loop."""
    voltages = v0.new_empty((len(current), *v0.shape))
    _scan("integrate", current, decay, v0, (), (current, decay, v0), (voltages,))
    return voltages


def integrate_backward(
    grad_voltages: Tensor, voltages: Tensor, decay: Tensor, v0: Tensor, groups: int
) -> Gradients:
    """Gradients at the current (T, groups, n) and v0, and between them sum_t g[t] (v[t] - v[t-1]), (K, n)."""
    grads = _workspace(voltages, v0, groups)
    _scan("integrate_backward", grads[0], decay, v0, (), (grad_voltages, voltages, decay, v0), grads)
    return grads


def fire(
    current: Tensor, decay: Tensor, v0: Tensor, v_th: float | Tensor
) -> tuple[tuple[Tensor], Tensor, Tensor]:
    """What to keep, the current, spikes (T, K, n) of LIF neurons and the last voltages (K, n); bit by bit
    those of the loop."""
    current = current.to(v0.dtype)
    spikes, last = v0.new_empty((len(current), *v0.shape)), v0.new_empty(v0.shape)
    _scan("fire", current, decay, v0, (float(v_th),), (current, decay, v0), (spikes, last))
    return (current,), spikes, last


def fire_backward(
    grad_spikes: Tensor,
    grad_last: Tensor,
    kept: Sequence[Tensor],
    decay: Tensor,
    v0: Tensor,
    v_th: float | Tensor,
    alpha: float | Tensor,
    groups: int,
) -> Gradients:
    """As `integrate_backward`."""
    (current,) = kept
    grads = _workspace(current, v0, groups)
    inputs = grad_spikes, grad_last, current, decay, v0
    _scan("fire_backward", current, decay, v0, (float(v_th), float(alpha)), inputs, grads)
    return grads


def _workspace(steps: Tensor, v0: Tensor, groups: int) -> Gradients:
    current = v0.new_empty((len(steps), groups, v0.shape[1]))
    return current, v0.new_empty(v0.shape), v0.new_empty(v0.shape)


def _scan(
    name: str,
    current: Tensor,
    decay: Tensor,
    v0: Tensor,
    constants: Sequence[float],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> None:
    (T, groups, _), (K, n) = current.shape, v0.shape
    inputs = [tensor.to(v0.dtype).contiguous() for tensor in inputs]
    sizes = T, K, groups, n, int(decay.shape[1] > 1), T * K * n
    native.call(name, v0.dtype, sizes, constants, inputs, outputs)


def pool(
    net: int,
    K: int,
    current: Tensor,
    decay: Tensor | None,
    v0: Tensor | None,
    skips: Tensor | None,
    v_th: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What `pooling.pooled_neurons` returns, of channels last: pooled responses (T, K, B, H // 2, W // 2, C),
    last voltages (K, B, H, W, C) or None, and, for net 2, the sums (K,) of all responses.

    current: in the dtype of the others, or in bfloat16 with float32.
    """
    T, groups, B, H, W, C = current.shape
    pooled = current.new_empty(T, K, B, H // 2, W // 2, C)
    last = None if decay is None else decay.new_empty(K, B, H, W, C)
    sums = torch.zeros(B, -(-H // 2), K, dtype=torch.float64)
    sizes = net, T, K, groups, B, H, W, C, T * K * B * H * W * C
    inputs, results = (current, decay, v0, skips), (pooled, last, sums)
    native.call("pool", current.dtype, sizes, (v_th,), inputs, results)
    return pooled, last, sums.sum((0, 1))


def pool_backward(
    net: int,
    K: int,
    grads: Sequence[Tensor | None],
    current: Tensor,
    decay: Tensor | None,
    v0: Tensor | None,
    skips: Tensor | None,
    v_th: float,
    alpha: float,
    to_rest: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient at the current, those (K, 2) at decays and skips, and that at v0 if `to_rest`.

    grads: at the pooled responses, the last voltages, and the sums; each may be None.
    """
    T, groups, B, H, W, C = current.shape
    grad_current = torch.empty_like(current)
    grad_v0 = decay.new_empty(K, B, H, W, C) if decay is not None and to_rest else None
    sums = torch.zeros(B, -(-H // 2), K, 2, dtype=torch.float64)
    sizes = net, T, K, groups, B, H, W, C, T * K * B * H * W * C
    inputs = *grads, current, decay, v0, skips
    native.call("pool_backward", current.dtype, sizes, (v_th, alpha), inputs, (grad_current, grad_v0, sums))
    return grad_current, sums.sum((0, 1)), grad_v0
