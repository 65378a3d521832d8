"""The scans of `neurons.py` in torch's operations, for a CPU.

One step of the paper's first layer is larger than a cache, so step after step every operation would fetch
from memory and write back.  The scans walk through all of time with one block of a step before they turn to
the next block: currents and voltages pass through memory once, the rest stays in cache.

current (T, 1 or K, n): K states, or all under the same current.  decay (K, 1 or n), v0 (K, n).  Plain twins:
the loops in `neurons.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor]
BLOCK = 2**15  # cells of a step that are scanned at a time: at most what torch leaves to one thread


def integrate(current: Tensor, decay: Tensor, v0: Tensor) -> Tensor:
    """Voltages (T, K, n) of leaky integrators."""

    def walk(x: Tensor, d: Tensor, v: Tensor, out: Tensor) -> None:
        for x_t, v_t in zip(x, out, strict=True):
            v = torch.lerp(v, x_t.to(v.dtype), d, out=v_t)

    voltages = v0.new_empty((len(current), *v0.shape))
    _each_block(walk, current, decay, v0, voltages)
    return voltages


def integrate_backward(
    grad_voltages: Tensor, voltages: Tensor, decay: Tensor, v0: Tensor, groups: int
) -> Gradients:
    """Gradients at the current (T, groups, n) and v0, and between them sum_t g[t] (v[t] - v[t-1]), (K, n)."""
    grads, add = _gradients(voltages, v0, groups)

    def walk(dv: Tensor, v: Tensor, d: Tensor, start: Tensor, *grad: Tensor) -> None:
        keep, g, change = 1 - d, torch.zeros_like(start), torch.empty_like(start)
        for t in range(len(v) - 1, -1, -1):
            torch.addcmul(dv[t], g, keep, out=g)
            torch.sub(v[t], v[t - 1] if t else start, out=change)
            add(*grad, t, d, g, change)
        torch.mul(g, keep, out=grad[-1])

    _each_block(walk, grad_voltages, voltages, decay, v0, *grads)
    return grads


def fire(
    current: Tensor, decay: Tensor, v0: Tensor, v_th: float | Tensor
) -> tuple[tuple[Tensor], Tensor, Tensor]:
    """What to keep, voltages before the reset, spikes (T, K, n) of LIF neurons, and the last voltages (K, n);
    bit by bit those of the loop."""

    def walk(x: Tensor, d: Tensor, start: Tensor, u: Tensor, z: Tensor, v: Tensor) -> None:
        v.copy_(start)
        change = torch.empty_like(v)
        for x_t, u_t, z_t in zip(x, u, z, strict=True):
            change = torch.sub(x_t, v, out=change).mul_(d)
            torch.add(v, change, out=u_t)
            torch.gt(u_t, v_th, out=z_t)
            torch.addcmul(u_t, u_t, z_t, value=-1, out=v)

    before_reset = v0.new_empty((len(current), *v0.shape))
    spikes, last = torch.empty_like(before_reset), torch.empty_like(v0)
    _each_block(walk, current, decay, v0, before_reset, spikes, last)
    return (before_reset,), spikes, last


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
    (before_reset,) = kept
    grads, add = _gradients(before_reset, v0, groups)

    def walk(dz: Tensor, dv: Tensor, u: Tensor, d: Tensor, start: Tensor, *grad: Tensor) -> None:
        keep, h = 1 - d, dv.clone()
        g, slope, before, z, z_before = (torch.empty_like(h) for _ in range(5))
        torch.gt(u[-1], v_th, out=z)
        for t in range(len(u) - 1, -1, -1):
            torch.sub(u[t], v_th, out=slope).abs_().mul_(alpha).add_(1)
            torch.addcmul(dz[t], u[t], h, value=-1, out=g).div_(slope.mul_(slope))
            g.add_(torch.addcmul(h, h, z, value=-1, out=h))
            if t:  # v[t-1] = (1 - z[t-1]) u[t-1]
                torch.gt(u[t - 1], v_th, out=z_before)
                torch.addcmul(u[t - 1], u[t - 1], z_before, value=-1, out=before)
                z, z_before = z_before, z
            add(*grad, t, d, g, torch.sub(u[t], before if t else start, out=before))
            torch.mul(g, keep, out=h)
        grad[-1].copy_(h)

    _each_block(walk, grad_spikes, grad_last, before_reset, decay, v0, *grads)
    return grads


def _gradients(steps: Tensor, v0: Tensor, groups: int) -> tuple[Gradients, Callable[..., None]]:
    """Buffers for the gradients: of the current, of the decay as sum_t g[t] (v[t] - v[t-1]), of v0; and the
    function that adds step t to a block of the first two."""
    T, _, n = steps.shape
    alone = groups == len(v0)  # else K gradients add up in one current's
    current = (v0.new_empty if alone else v0.new_zeros)((T, groups, n))

    def add(
        current: Tensor, changes: Tensor, v0: Tensor, t: int, decay: Tensor, g: Tensor, change: Tensor
    ) -> None:
        changes.addcmul_(g, change)
        if alone:
            torch.mul(g, decay, out=current[t])
        else:
            current[t].addcmul_(g, decay)

    return (current, torch.zeros_like(v0), torch.empty_like(v0)), add


def _each_block(walk: Callable[..., None], *tensors: Tensor) -> None:
    """`walk` on tensors (T, K, n), (T, 1, n), (K, n) and (K, 1) of the same K and n, by blocks of n and by k.

    Blocks are so small that torch leaves an operation to one thread.  Shared between two threads, which then
    wait for each other thousands of times, the scans were slower, and many times so beside other programs.
    """
    first = next(tensor for tensor in tensors if tensor.dim() == 3)
    K, n = max(tensor.shape[-2] for tensor in tensors), first.shape[-1]
    for start in range(0, n, BLOCK):
        for k in range(K):
            rows = (t.select(-2, k if t.shape[-2] > 1 else 0) for t in tensors)
            walk(*(row if row.shape[-1] == 1 else row[..., start : start + BLOCK] for row in rows))
