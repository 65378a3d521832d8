"""The scans of `temporal.py` as compiled kernels (native.cpp), for a CPU.

Same shapes as `temporal_scan.py`: current (T, 1 or K, n), decay (K, 1 or n), v0 (K, n).  Spikes keep the
current, and their backward pass computes the voltages again.
"""

import torch

import native


def integrate(current, decay, v0):
    """Voltages (T, K, n) of leaky integrators, bit by bit those of the loop."""
    voltages = v0.new_empty((len(current), *v0.shape))
    _scan("integrate", current, decay, v0, current, decay, v0, voltages)
    return voltages


def integrate_backward(grad_voltages, voltages, decay, v0, groups):
    """Gradients at the current (T, groups, n) and v0, and between them sum_t g[t] (v[t] - v[t-1]), (K, n)."""
    grads = _room(voltages, v0, groups)
    _scan("integrate_backward", grads[0], decay, v0, grad_voltages, voltages, decay, v0, *grads)
    return grads


def fire(current, decay, v0, v_th):
    """The current, to be kept, and spikes (T, K, n) of LIF neurons and the last voltages (K, n); bit by bit
    those of the loop."""
    current = current.to(v0.dtype)
    spikes, last = v0.new_empty((len(current), *v0.shape)), torch.empty_like(v0)
    _scan("fire", current, decay, v0, current, decay, v0, v_th.item(), spikes, last)
    return current, spikes, last


def fire_backward(grad_spikes, grad_last, current, decay, v0, v_th, alpha, groups):
    """As `integrate_backward`."""
    grads = _room(current, v0, groups)
    constants = v_th.item(), alpha.item()
    _scan("fire_backward", current, decay, v0, grad_spikes, grad_last, current, decay, v0, *constants, *grads)
    return grads


def _room(steps, v0, groups):
    current = v0.new_empty((len(steps), groups, v0.shape[1]))
    return current, torch.empty_like(v0), torch.empty_like(v0)


def _scan(name, current, decay, v0, *arguments):
    (T, groups, _), (K, n) = current.shape, v0.shape
    arguments = (a.to(v0.dtype).contiguous() if isinstance(a, torch.Tensor) else a for a in arguments)
    per_cell = int(decay.shape[1] > 1)
    native.call(name, v0.dtype, T, K, groups, n, per_cell, torch.get_num_threads(), *arguments)
