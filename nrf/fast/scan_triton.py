"""The scans of `neurons.py` as Triton kernels, for CUDA: one pass forward, one backward.

A program takes BLOCK cells of a step through all of time: their voltage stays in registers, and each current,
output and gradient passes through memory once.  Of neurons that fire the current is kept, and the voltages
before every SEGMENT steps: the backward pass computes a segment again in registers.  Same equations and
shapes as the scans of the CPU: current (T, 1 or K, n), decay (K, 1 or n), v0 (K, n).  States are float32
(float64 for float64) whatever the dtype of the current.  Tested on a CPU by Triton's interpreter
(TRITON_INTERPRET=1), and by compiling for a GPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # cells of a program
SEGMENT = 4  # steps that a backward pass has in registers at a time
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # multiplications and additions apart, as in the loops


@triton.jit
def _cell(K, n, PER_CELL: tl.constexpr, BLOCK: tl.constexpr):
    """This program's k, its cells, which of them exist, where their decay is, and how far it is to the next
    step; all in 64 bits."""
    k = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return k, cell, cell < n, k * n + cell if PER_CELL else k + cell * 0, (k * 0 + K) * n


@triton.jit
def _integrate(x_ptr, decay_ptr, v0_ptr, v_ptr, T, K, groups, n, PER_CELL: tl.constexpr, BLOCK: tl.constexpr):
    k, cell, inside, at_decay, step = _cell(K, n, PER_CELL, BLOCK)
    decay = tl.load(decay_ptr + at_decay, mask=inside, other=0.0)
    v = tl.load(v0_ptr + k * n + cell, mask=inside, other=0.0)
    x_ptr += (k % groups) * n + cell
    v_ptr += k * n + cell
    for _ in range(T):
        x = tl.load(x_ptr, mask=inside, other=0.0).to(v.dtype)
        v = v + decay * (x - v)
        tl.store(v_ptr, v, mask=inside)
        x_ptr += (k * 0 + groups) * n
        v_ptr += step


@triton.jit
def _integrate_backward(
    dv_ptr, v_ptr, decay_ptr, v0_ptr, dx_ptr, changes_ptr, dv0_ptr, T, K, groups, n,
    PER_CELL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k, cell, inside, at_decay, step = _cell(K, n, PER_CELL, BLOCK)
    decay = tl.load(decay_ptr + at_decay, mask=inside, other=0.0)
    last = (T - 1) * step + k * n + cell
    dv_ptr += last
    v_ptr += last
    dx_ptr += last  # one per k: the caller adds up where K share a current
    v = tl.load(v_ptr, mask=inside, other=0.0)
    g = tl.full((BLOCK,), 0.0, v.dtype)
    changes = tl.full((BLOCK,), 0.0, v.dtype)
    for t in range(T):
        v_ptr -= step
        if t < T - 1:
            before = tl.load(v_ptr, mask=inside, other=0.0)
        else:
            before = tl.load(v0_ptr + k * n + cell, mask=inside, other=0.0)
        g = tl.load(dv_ptr, mask=inside, other=0.0) + (1 - decay) * g
        changes += g * (v - before)
        tl.store(dx_ptr, decay * g, mask=inside)
        v = before
        dv_ptr -= step
        dx_ptr -= step
    tl.store(changes_ptr + k * n + cell, changes, mask=inside)
    tl.store(dv0_ptr + k * n + cell, (1 - decay) * g, mask=inside)


@triton.jit
def _fire(
    x_ptr, decay_ptr, v0_ptr, v_th_ptr, starts_ptr, z_ptr, last_ptr, T, K, groups, n,
    PER_CELL: tl.constexpr, BLOCK: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    k, cell, inside, at_decay, step = _cell(K, n, PER_CELL, BLOCK)
    decay = tl.load(decay_ptr + at_decay, mask=inside, other=0.0)
    v = tl.load(v0_ptr + k * n + cell, mask=inside, other=0.0)
    v_th = tl.load(v_th_ptr)
    x_ptr += (k % groups) * n + cell
    starts_ptr += k * n + cell
    z_ptr += k * n + cell
    for t in range(T):
        if t % SEGMENT == 0:
            tl.store(starts_ptr, v, mask=inside)
            starts_ptr += step
        x = tl.load(x_ptr, mask=inside, other=0.0).to(v.dtype)
        u = v + decay * (x - v)
        fires = u - v_th > 0
        tl.store(z_ptr, fires.to(v.dtype), mask=inside)
        v = u * tl.where(fires, 0.0, 1.0)  # NaN of an infinite voltage, as in the loops
        x_ptr += (k * 0 + groups) * n
        z_ptr += step
    tl.store(last_ptr + k * n + cell, v, mask=inside)


@triton.jit
def _fire_backward(
    dz_ptr, dlast_ptr, x_ptr, starts_ptr, decay_ptr, v_th_ptr, alpha_ptr, dx_ptr, changes_ptr, dv0_ptr,
    T, K, groups, n, PER_CELL: tl.constexpr, BLOCK: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    k, cell, inside, at_decay, step = _cell(K, n, PER_CELL, BLOCK)
    decay = tl.load(decay_ptr + at_decay, mask=inside, other=0.0)
    v_th = tl.load(v_th_ptr)
    alpha = tl.load(alpha_ptr)
    h = tl.load(dlast_ptr + k * n + cell, mask=inside, other=0.0)
    changes = tl.full((BLOCK,), 0.0, h.dtype)
    segments = (T + SEGMENT - 1) // SEGMENT
    for s in range(segments):
        segment = k * 0 + segments - 1 - s  # 64 bits
        v = tl.load(starts_ptr + (segment * K + k) * n + cell, mask=inside, other=0.0)
        us, vs, dzs = (), (), ()  # voltages before the reset, those before the step, gradients at spikes
        for i in tl.static_range(SEGMENT):
            t = segment * SEGMENT + i
            there = inside & (t < T)
            x = tl.load(x_ptr + (t * groups + k % groups) * n + cell, mask=there, other=0.0).to(v.dtype)
            dz = tl.load(dz_ptr + (t * K + k) * n + cell, mask=there, other=0.0)
            u = v + decay * (x - v)
            us, vs, dzs = us + (u,), vs + (v,), dzs + (dz,)
            v = u * tl.where(u - v_th > 0, 0.0, 1.0)
        for i in tl.static_range(SEGMENT - 1, -1, -1):
            t = segment * SEGMENT + i
            there = inside & (t < T)
            u = us[i]
            distance = u - v_th
            steepness = alpha * tl.abs(distance) + 1
            g = h * tl.where(distance > 0, 0.0, 1.0) + (dzs[i] - u * h) / (steepness * steepness)
            changes += tl.where(there, g * (u - vs[i]), 0.0)
            # one per k: the caller adds up where K share a current
            tl.store(dx_ptr + (t * K + k) * n + cell, decay * g, mask=there)
            h = tl.where(there, (1 - decay) * g, h)
    tl.store(changes_ptr + k * n + cell, changes, mask=inside)
    tl.store(dv0_ptr + k * n + cell, h, mask=inside)


def integrate(current: Tensor, decay: Tensor, v0: Tensor) -> Tensor:
    """Voltages (T, K, n) of leaky integrators."""
    voltages = v0.new_empty((len(current), *v0.shape))
    _launch(_integrate, current, decay, v0, (current, decay, v0, voltages))
    return voltages


def integrate_backward(
    grad_voltages: Tensor, voltages: Tensor, decay: Tensor, v0: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at the current (T, groups, n) and v0, and between them sum_t g[t] (v[t] - v[t-1]), (K, n)."""
    dx, changes, dv0 = torch.empty_like(voltages), torch.empty_like(v0), torch.empty_like(v0)
    arguments = (grad_voltages.contiguous(), voltages, decay, v0, dx, changes, dv0)
    _launch(_integrate_backward, voltages, decay, v0, arguments)
    return dx if groups == len(v0) else dx.sum(1, keepdim=True), changes, dv0


def fire(
    current: Tensor, decay: Tensor, v0: Tensor, v_th: float | Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """What to keep, current and voltages before each segment, spikes (T, K, n) of LIF neurons, and the last
    voltages (K, n)."""
    T, shape = len(current), v0.shape
    starts, spikes = v0.new_empty((triton.cdiv(T, SEGMENT), *shape)), v0.new_empty((T, *shape))
    last, v_th = torch.empty_like(v0), _beside(v0, v_th)
    _launch(_fire, current, decay, v0, (current, decay, v0, v_th, starts, spikes, last), SEGMENT=SEGMENT)
    return (current, starts), spikes, last


def fire_backward(
    grad_spikes: Tensor,
    grad_last: Tensor,
    kept: Sequence[Tensor],
    decay: Tensor,
    v0: Tensor,
    v_th: float | Tensor,
    alpha: float | Tensor,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `integrate_backward`."""
    current, starts = kept
    dx, changes, dv0 = v0.new_empty((len(current), *v0.shape)), torch.empty_like(v0), torch.empty_like(v0)
    constants = (_beside(v0, value) for value in (v_th, alpha))
    arguments = (grad_spikes.contiguous(), grad_last.contiguous(), current, starts, decay, *constants)
    _launch(_fire_backward, current, decay, v0, (*arguments, dx, changes, dv0), SEGMENT=SEGMENT)
    return dx if groups == len(v0) else dx.sum(1, keepdim=True), changes, dv0


def _beside(tensor: Tensor, value: float | Tensor) -> Tensor:
    """A number, or a tensor of one, beside another tensor and of its dtype: filled in there if it comes from
    elsewhere, since a copy would wait for a GPU."""
    if isinstance(value, torch.Tensor) and value.device == tensor.device:
        return value.to(tensor.dtype)
    return tensor.new_full((), float(value))


def _launch(
    kernel: Any, steps: Tensor, decay: Tensor, v0: Tensor, pointers: Sequence[Tensor], **constants: Any
) -> None:
    (T, groups, _), (K, n) = steps.shape, v0.shape
    grid = (triton.cdiv(n, BLOCK), K)
    per_cell = decay.shape[1] > 1
    with torch.cuda.device_of(v0):
        constants |= {"PER_CELL": per_cell, "BLOCK": BLOCK} | OPTIONS
        kernel[grid](*pointers, T, K, groups, n, **constants)
