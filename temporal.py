"""The theory over time: leaky integration and leaky integrate-and-fire.

    leaky integrator              v[t] = v[t-1] + decay * (x[t] - v[t-1])          decay = dt / tau
    leaky integrate-and-fire      u[t] = v[t-1] + decay * (x[t] - v[t-1])
                                  z[t] = 1 if u[t] > v_th else 0
                                  v[t] = (1 - z[t]) * u[t]

Each equation stands here three times under one signature: walking Norse's cell ("norse", the judge), the
readable loop ("loop") and the scan that keeps only the membrane voltages for its backward pass ("auto", the
default).  Parameters and states are Norse's.
Source: paper, Methods; `norse.torch.functional` (LI box, LIF box feed-forward).
"""

import warnings

import torch

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
BACKENDS = ("auto", "loop", "norse")
BLOCK = 2**15  # cells of a step that one thread scans at a time: its currents and voltages stay in cache


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
    v_th, alpha = (torch.as_tensor(value, device=decay.device).to(decay.dtype) for value in (p.v_th, p.alpha))
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
#
# One step of the paper's first layer is larger than a cache, so step after step every operation would fetch
# from memory and write back.  The scans walk through all of time with one block of a step before they turn to
# the next block: currents and voltages pass through memory once, the rest stays in cache.  They see
# current (T, 1 or K, n), decay (K, 1 or n), v0 (K, n).


class _LeakyIntegrator(torch.autograd.Function):
    """`_li_loop` with its gradient written out: only the voltages are kept, not the current.

    With g[t] the whole gradient at v[t]:  g[t] = dL/dv[t] + (1 - decay) g[t+1];  dL/dx[t] = decay g[t];
    dL/d decay = sum_t g[t] (x[t] - v[t-1]), and decay (x[t] - v[t-1]) = v[t] - v[t-1].
    """

    @staticmethod
    def forward(ctx, current, decay, v0):
        voltages = v0.new_empty((len(current), *v0.shape))
        for x, d, v, out in _blocks(current, decay, v0, voltages):
            for x_t, v_t in zip(x, out, strict=True):
                v = torch.lerp(v, x_t.to(v.dtype), d, out=v_t)
        ctx.save_for_backward(voltages, decay, v0)
        ctx.current = current.shape, current.dtype
        return voltages

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_voltages):
        voltages, decay, v0 = ctx.saved_tensors
        grads, add = _gradients(ctx, v0)
        for dv, v, d, start, *grad in _blocks(grad_voltages, voltages, decay, v0, *grads):
            keep, g, change = 1 - d, torch.zeros_like(start), torch.empty_like(start)
            for t in range(len(v) - 1, -1, -1):
                torch.addcmul(dv[t], g, keep, out=g)
                torch.sub(v[t], v[t - 1] if t else start, out=change)
                add(*grad, t, d, g, change)
            torch.mul(g, keep, out=grad[-1])
        return _finished(ctx, grads, decay)


class _IntegrateAndFire(torch.autograd.Function):
    """`_lif_loop` with its gradient written out: only u, the voltages before the reset, are kept.

    With h[t] the gradient at v[t] and s(u) the surrogate's slope, z[t] = u[t] > v_th, v[t] = (1 - z[t]) u[t]:
    g[t] = dL/du[t] = (1 - z[t]) h[t] + (dL/dz[t] - u[t] h[t]) s(u[t]);  h[t-1] = (1 - decay) g[t];
    dL/dx and dL/d decay as above.
    """

    @staticmethod
    def forward(ctx, current, decay, v0, v_th, alpha):
        before_reset = v0.new_empty((len(current), *v0.shape))
        spikes, last = torch.empty_like(before_reset), torch.empty_like(v0)
        for x, d, start, u, z, v in _blocks(current, decay, v0, before_reset, spikes, last):
            v.copy_(start)
            change = torch.empty_like(v)
            for x_t, u_t, z_t in zip(x, u, z, strict=True):
                change = torch.sub(x_t, v, out=change).mul_(d)
                torch.add(v, change, out=u_t)
                torch.gt(u_t, v_th, out=z_t)
                torch.addcmul(u_t, u_t, z_t, value=-1, out=v)
        ctx.save_for_backward(before_reset, decay, v0, v_th, alpha)
        ctx.current = current.shape, current.dtype
        return spikes, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_spikes, grad_last):
        before_reset, decay, v0, v_th, alpha = ctx.saved_tensors
        grads, add = _gradients(ctx, v0)
        for dz, dv, u, d, start, *grad in _blocks(grad_spikes, grad_last, before_reset, decay, v0, *grads):
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
        return *_finished(ctx, grads, decay), None, None


def _gradients(ctx, v0):
    """Room for the gradients at the current, at the decay as sum_t g[t] (v[t] - v[t-1]), and at v0; and the
    function that adds step t to a block of the first two."""
    T, groups, n = ctx.current[0]
    alone = groups == len(v0)  # else K gradients add up in one current's
    current = (v0.new_empty if alone else v0.new_zeros)((T, groups, n))

    def add(current, changes, v0, t, decay, g, change):
        changes.addcmul_(g, change)
        if alone:
            torch.mul(g, decay, out=current[t])
        else:
            current[t].addcmul_(g, decay)

    return (current, torch.zeros_like(v0), torch.empty_like(v0)), add


def _finished(ctx, grads, decay):
    """The gradients that are wanted: current (in its own dtype: bfloat16 under autocast), decay, v0."""
    current, changes, v0 = grads
    gradients = current.to(ctx.current[1]), (changes / decay).sum_to_size(decay.shape), v0
    return tuple(grad if ctx.needs_input_grad[i] else None for i, grad in enumerate(gradients))


def _blocks(*tensors):
    """Tensors (T, K, n), (T, 1, n), (K, n) and (K, 1) of the same K and n, by blocks of n and by k."""
    first = next(tensor for tensor in tensors if tensor.dim() == 3)
    K, n = max(tensor.shape[-2] for tensor in tensors), first.shape[-1]
    size = BLOCK * torch.get_num_threads()
    for start in range(0, n, size):
        for k in range(K):
            rows = (t.select(-2, k if t.shape[-2] > 1 else 0) for t in tensors)
            yield [row if row.shape[-1] == 1 else row[..., start : start + size] for row in rows]


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


def _flat(current, decay, v0):
    """Views of current, decay and v0 as the scans see them, (T, 1 or K, n), (K, 1 or n) and (K, n), in the
    order of memory, and the function that turns results (..., K, n) back into steps.

    K: the rates' leading axis where they have no other, else 1.  n: the rest of a step; where rates differ
    along it, decay does too.
    """
    step = v0.shape
    leading = decay.dim() == len(step) > 0 and decay.numel() == len(decay)
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

    return current.reshape(len(current), groups, -1), decay.reshape(K, -1), v0.reshape(K, -1), restore


def _channels_last(tensor):
    return tensor.movedim(-3, -1)


def _rest(state_type, current, p, state):
    return state_type(v=torch.zeros_like(p.tau_mem_inv * current[0])) if state is None else state
