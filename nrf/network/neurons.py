"""The theory over time: leaky integration and leaky integrate-and-fire.

    leaky integrator              v[t] = v[t-1] + decay * (x[t] - v[t-1])          decay = dt / tau
    leaky integrate-and-fire      u[t] = v[t-1] + decay * (x[t] - v[t-1])
                                  z[t] = 1 if u[t] > v_th else 0
                                  v[t] = (1 - z[t]) * u[t]

Each equation stands here three times under one signature: walking Norse's cell ("norse", the judge), the
readable loop ("loop") and the scan that keeps one tensor for its backward pass ("fused", what "auto" takes):
on a CPU `scan_native.py`, without a compiler `scan_torch.py`, on a GPU `scan_triton.py`.
Parameters and states are Norse's.
Source: paper, Methods; `norse.torch.functional` (LI box, LIF box feed-forward).
"""

import warnings

import torch

from nrf.fast import native, scan_native, scan_torch

with warnings.catch_warnings():  # Norse 1.1.0 still compiles with torch.jit, which torch 2.15 warns about
    warnings.simplefilter("ignore", FutureWarning)
    from norse.torch.functional.leaky_integrator_box import (
        LIBoxParameters,
        LIBoxState,
        li_box_feed_forward_step,
    )
    from norse.torch.functional.lif_box import (
        LIFBoxFeedForwardState,
        LIFBoxParameters,
        lif_box_feed_forward_step,
    )

DT_S = 1e-3  # one time step in seconds
V_TH = 0.1  # firing threshold of the paper's LIF neurons
ALPHA = 10.0  # steepness of the surrogate gradient (FIDELITY 5)
BACKENDS = ("auto", "fused", "loop", "norse")


def leaky_integrate(current, p: LIBoxParameters, state: LIBoxState | None = None, dt=DT_S, backend="auto"):
    """Voltages of a leaky integrator, all of them and the last.

    current: (T, ...), any shape of a step.  p.tau_mem_inv: Hz, broadcast with a step: where it is larger
    (rates (K, 1, 1) over currents (T, 1, H, W), say), the voltages are.  state: voltages of a step, rest if
    None.  dt: seconds. Returns (T, *step) voltages and the state to hand to the next chunk: two chunks equal
    the whole. Source: Norse's `li_box_feed_forward_step`.
    """
    if backend == "norse":
        return _walk(li_box_feed_forward_step, current, p, _rest(LIBoxState, current, p, state), dt)
    decay, v0 = _prepare(current, p, state, dt)
    if backend == "loop":
        voltages = _li_loop(current, decay, v0)
    else:
        *flat, restore = _flat(current, decay, v0)
        voltages = restore(_LeakyIntegrator.apply(*flat))
    return voltages, LIBoxState(voltages[-1])


def leaky_integrate_and_fire(
    current, p: LIFBoxParameters, state: LIFBoxFeedForwardState | None = None, dt=DT_S, backend="auto"
):
    """Spikes (0 or 1, dtype of the voltages) of a leaky integrate-and-fire neuron and its last state.

    Shapes, rates and dt as in `leaky_integrate`.  Fires strictly above p.v_th, then resets by value to 0,
    the gradient flowing through the spike.  Backward through the threshold is SuperSpike,
    1 / (p.alpha * |u - v_th| + 1)^2 (backend "norse": the installed Norse's own, whose 1.1.0 takes alpha = 1;
    FIDELITY 5). Source: Norse's `lif_box_feed_forward_step`; SuperSpike, Zenke and Ganguli 2018.
    """
    if backend == "norse":
        return _walk(
            lif_box_feed_forward_step, current, p, _rest(LIFBoxFeedForwardState, current, p, state), dt
        )
    decay, v0 = _prepare(current, p, state, dt)
    v_th, alpha = (_beside(decay, value) for value in (p.v_th, p.alpha))
    if backend == "loop":
        spikes, v = _lif_loop(current, decay, v0, v_th, alpha)
    else:
        *flat, restore = _flat(current, decay, v0)
        spikes, v = map(restore, _IntegrateAndFire.apply(*flat, v_th, alpha))
    return spikes, LIFBoxFeedForwardState(v)


def super_spike(distance, alpha):
    """1 where the distance from the threshold is positive, else 0; backward the SuperSpike of alpha."""
    return _SuperSpike.apply(distance, alpha)


# --- the readable loops ---


def _li_loop(current, decay, v0):
    v, voltages = v0, []
    for x in current:
        v = v + decay * (x - v)
        voltages.append(v)
    return torch.stack(voltages)


def _lif_loop(current, decay, v0, v_th, alpha):
    v, spikes = v0, []
    for x in current:
        u = v + decay * (x - v)
        z = super_spike(u - v_th, alpha)
        v = (1 - z) * u
        spikes.append(z)
    return torch.stack(spikes), v


def _walk(cell, current, p, state, dt):
    outputs = []
    for x in current:
        output, state = cell(x, state, p, dt)
        outputs.append(output)
    return torch.stack(outputs), state


# --- the scans ---


class _LeakyIntegrator(torch.autograd.Function):
    """`_li_loop` with its gradient written out: only the voltages are kept, not the current.

    With g[t] the whole gradient at v[t]:  g[t] = dL/dv[t] + (1 - decay) g[t+1];  dL/dx[t] = decay g[t];
    dL/d decay = sum_t g[t] (x[t] - v[t-1]), and decay (x[t] - v[t-1]) = v[t] - v[t-1].
    """

    @staticmethod
    def forward(ctx, current, decay, v0):
        voltages = _kernels(v0).integrate(current, decay, v0)
        ctx.save_for_backward(voltages, decay, v0)
        ctx.groups, ctx.dtype = current.shape[1], current.dtype
        return voltages

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_voltages):
        voltages, decay, v0 = ctx.saved_tensors
        gradients = _kernels(voltages).integrate_backward(grad_voltages, voltages, decay, v0, ctx.groups)
        return _wanted(ctx, decay, *gradients)


class _IntegrateAndFire(torch.autograd.Function):
    """`_lif_loop` with its gradient written out: what is kept are u, the voltages before the reset, or
    the current, from which the backward pass computes them again.

    With h[t] the gradient at v[t] and s(u) the surrogate's slope, z[t] = u[t] > v_th, v[t] = (1 - z[t]) u[t]:
    g[t] = dL/du[t] = (1 - z[t]) h[t] + (dL/dz[t] - u[t] h[t]) s(u[t]);  h[t-1] = (1 - decay) g[t];
    dL/dx and dL/d decay as above.
    """

    @staticmethod
    def forward(ctx, current, decay, v0, v_th, alpha):
        kept, spikes, last = _kernels(v0).fire(current, decay, v0, v_th)
        ctx.save_for_backward(*kept, decay, v0, v_th, alpha)
        ctx.groups, ctx.dtype = current.shape[1], current.dtype
        return spikes, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_spikes, grad_last):
        *kept, decay, v0, v_th, alpha = ctx.saved_tensors
        arguments = grad_spikes, grad_last, kept, decay, v0, v_th, alpha, ctx.groups
        return *_wanted(ctx, decay, *_kernels(v0).fire_backward(*arguments)), None, None


def _kernels(tensor):
    """The scans for the device and dtype of these voltages."""
    if tensor.device.type == "cuda":
        from nrf.fast import scan_triton  # needs Triton, which comes with torch where there is a GPU

        return scan_triton
    return scan_native if native.is_available(tensor.device, tensor.dtype) else scan_torch


def _wanted(ctx, decay, current, changes, v0):
    """The gradients that are wanted: current (in its own dtype: bfloat16 under autocast), decay, v0."""
    gradients = current.to(ctx.dtype), (changes / decay).sum_to_size(decay.shape), v0
    return tuple(grad if ctx.needs_input_grad[i] else None for i, grad in enumerate(gradients))


class _SuperSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, distance, alpha):
        ctx.save_for_backward(distance)
        ctx.alpha = alpha
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad):
        (distance,) = ctx.saved_tensors
        return grad / (ctx.alpha * distance.abs() + 1) ** 2, None


def _prepare(current, p, state, dt):
    """decay, and the voltages before the first step, in the dtype of the scan: float32 at least."""
    for name in ("v_leak", "v_reset"):
        if float(getattr(p, name, 0.0)) != 0.0:
            raise ValueError(f"{name} {float(getattr(p, name))}: the scans rest at 0; take backend 'norse'")
    decay = dt * p.tau_mem_inv
    step = torch.broadcast_shapes(current.shape[1:], decay.shape)
    v0 = current.new_zeros(()) if state is None else state.v
    return decay, v0.to(torch.promote_types(current.dtype, decay.dtype)).expand(step)


def _beside(tensor, value):
    """A number, or a tensor of one, beside another tensor and of its dtype: filled in there if it comes from
    elsewhere, since a copy would wait for a GPU."""
    if isinstance(value, torch.Tensor) and value.device == tensor.device:
        return value.to(tensor.dtype)
    return tensor.new_full((), float(value))


def _flat(current, decay, v0):
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

        def restore(flat):
            return flat.view(flat.shape[:-2] + shape).movedim(-1, -3)
    else:

        def restore(flat):
            return flat.view(flat.shape[:-2] + step)

    flat = current.reshape(len(current), groups, -1), decay.reshape(K, -1), v0.reshape(K, -1)
    return *(tensor.contiguous() for tensor in flat), restore


def _channels_last(tensor):
    return tensor.movedim(-3, -1)


def _rest(state_type, current, p, state):
    return state_type(v=torch.zeros_like(p.tau_mem_inv * current[0])) if state is None else state
