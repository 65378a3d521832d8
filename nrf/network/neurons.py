"""The theory over time: neurons, each one row of `NEURONS`.

    li    leaky integrator            v[t] = v[t-1] + decay * (x[t] - v[t-1])          decay = dt / tau
    lif   leaky integrate-and-fire    u[t] = v[t-1] + decay * (x[t] - v[t-1])
                                      z[t] = 1 if u[t] > v_th else 0
                                      v[t] = (1 - z[t]) * u[t]
    ann   ReLU                        x[t]

Outputs are v, z and x; layers rectify v and x.  A row holds the equation, one step from state to state, that
`loop` takes over time; kernels of `nrf/fast` that give the same numbers sooner, or None; and Norse's cell, or
None.  CONTRIBUTING.md shows how to add one.  States and parameters of li and lif are Norse's.
Source: paper, Methods; `norse.torch.functional` (LI box, LIF box feed-forward).
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nrf.config import check, pick, table
from nrf.fast.pooling import pooled_neurons
from nrf.fast.scan import integrate, integrate_and_fire

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
State = tuple[Tensor, ...]  # a NamedTuple of the variables
BACKENDS = table("temporal_backend", ("auto", "fused", "loop", "norse"))


class Neuron(NamedTuple):
    """A row of `NEURONS`: one kind of neuron.

    step: (x, state, decay) -> (output, state), one step of time; decay broadcasts with the others.
    state: type of the state, a NamedTuple of tensors of a step's shape, zeros at rest; None: no memory.
    has_tau: has a time constant, which trains; without one decay is None.
    spikes: outputs are 0 or 1; their mean is reported, and drawn to a target by the loss.
    rectified: layers rectify the outputs.
    read_out: the kind of neuron that reads out a network of this kind.
    scan: (current, decay, state) -> (outputs, state), the same as `loop` sooner, or None.
    pooled: (K, current, decay (K,), state, skips (K,)) -> (pooled outputs, state, mean outputs (K,)), neurons
        and average pooling in one pass (`fast/pooling.py`), or None.
    norse: Norse's cell, and what makes its parameters from `tau_mem_inv`; or None.
    """

    step: Callable
    state: Any = None
    has_tau: bool = True
    spikes: bool = False
    rectified: bool = False
    read_out: str = "li"
    scan: Callable | None = None
    pooled: Callable | None = None
    norse: tuple[Callable, Callable] | None = None


def kind(net: str, backend: str = "auto") -> Neuron:
    """The row of this name.  ValueError, with those that exist, for another name or backend."""
    neuron = pick("net", net)
    check("temporal_backend", backend)
    missing = {"fused": neuron.scan, "norse": neuron.norse}
    if backend in missing and missing[backend] is None:
        there = [name for name in BACKENDS if missing.get(name, True) is not None]
        raise ValueError(f"temporal_backend {backend!r} of net {net!r}: expected one of {', '.join(there)}")
    return neuron


def respond(
    net: str,
    current: Tensor,
    rate_hz: Tensor | None = None,
    state: State | None = None,
    dt: float = DT_S,
    backend: str = "auto",
) -> tuple[Tensor, State | None]:
    """Outputs (T, *step), not rectified, and the last state of neurons under `current` (T, ...).

    net: a key of `NEURONS`.  rate_hz: 1 / tau, broadcast with a step: where it is larger (rates (K, 1, 1)
    over currents (T, 1, H, W), say), so are outputs and state; None without a time constant.  state: as
    returned, rest if None: two chunks equal the whole.  dt: seconds.
    """
    neuron = kind(net, backend)
    if backend == "norse" and neuron.norse:
        cell, parameters = neuron.norse
        return _walk(neuron, cell, current, parameters(tau_mem_inv=rate_hz), state, dt)
    return run(neuron, current, None if rate_hz is None else dt * rate_hz, state, backend)


def run(
    neuron: Neuron, current: Tensor, decay: Tensor | None, state: State | None = None, backend: str = "auto"
) -> tuple[Tensor, State | None]:
    """`respond` of a row, with decay = dt * rate_hz."""
    state = full_state(neuron, current, decay, state)
    if backend == "loop" or neuron.scan is None:
        return loop(neuron.step, current, decay, state)
    return neuron.scan(current, decay, state)


def loop(
    step: Callable, current: Tensor, decay: Tensor | None, state: State | None
) -> tuple[Tensor, State | None]:
    """The readable way: one step after the other."""
    outputs = []
    for x in current:
        out, state = step(x, state, decay)
        outputs.append(out)
    return torch.stack(outputs), state


def full_state(neuron: Neuron, current: Tensor, decay: Tensor | None, state: State | None) -> State | None:
    """The state before the first step, of a step's shape and the dtype of the scan: float32 at least."""
    if neuron.state is None:
        return None
    shape, dtype = current.shape[1:], current.dtype
    if decay is not None:
        shape, dtype = torch.broadcast_shapes(shape, decay.shape), torch.promote_types(dtype, decay.dtype)
    variables = [current.new_zeros(())] * len(neuron.state._fields) if state is None else state
    return neuron.state(*(variable.to(dtype).expand(shape) for variable in variables))


def leaky_integrate(
    current: Tensor,
    p: LIBoxParameters,
    state: LIBoxState | None = None,
    dt: float = DT_S,
    backend: str = "auto",
) -> tuple[Tensor, LIBoxState]:
    """`respond("li", ...)` with Norse's parameters: voltages and their last.

    Source: Norse's `li_box_feed_forward_step`.
    """
    return _with_parameters(NEURONS["li"], current, p, state, dt, backend)


def leaky_integrate_and_fire(
    current: Tensor,
    p: LIFBoxParameters,
    state: LIFBoxFeedForwardState | None = None,
    dt: float = DT_S,
    backend: str = "auto",
) -> tuple[Tensor, LIFBoxFeedForwardState]:
    """`respond("lif", ...)` with Norse's parameters: spikes (0 or 1, dtype of the voltages), the last state.

    Fires strictly above p.v_th, then resets by value to 0, the gradient flowing through the spike.  Backward
    through the threshold is SuperSpike, 1 / (p.alpha * |u - v_th| + 1)^2 (backend "norse": the installed
    Norse's own, whose 1.1.0 takes alpha = 1; FIDELITY 5).
    Source: Norse's `lif_box_feed_forward_step`; SuperSpike, Zenke and Ganguli 2018.
    """
    return _with_parameters(lif(p.v_th, p.alpha), current, p, state, dt, backend)


def _with_parameters(
    neuron: Neuron, current: Tensor, p: Any, state: State | None, dt: float, backend: str
) -> tuple[Tensor, Any]:
    check("temporal_backend", backend)
    if backend == "norse" and neuron.norse:
        return _walk(neuron, neuron.norse[0], current, p, state, dt)
    for name in ("v_leak", "v_reset"):
        if float(getattr(p, name, 0.0)) != 0.0:
            raise ValueError(f"{name} {float(getattr(p, name))}: the scans rest at 0; take backend 'norse'")
    return run(neuron, current, dt * p.tau_mem_inv, state, backend)


def _walk(
    neuron: Neuron, cell: Callable, current: Tensor, p: Any, state: State | None, dt: float
) -> tuple[Tensor, State | None]:
    state = full_state(neuron, current, getattr(p, "tau_mem_inv", None), state)
    return loop(lambda x, state, p: cell(x, state, p, dt), current, p, state)


# --- the equations ---


def li_step(x: Tensor, state: LIBoxState, decay: Tensor) -> tuple[Tensor, LIBoxState]:
    v = state.v + decay * (x - state.v)
    return v, LIBoxState(v)


def lif_step(
    v_th: float | Tensor, alpha: float | Tensor, x: Tensor, state: LIFBoxFeedForwardState, decay: Tensor
) -> tuple[Tensor, LIFBoxFeedForwardState]:
    u = state.v + decay * (x - state.v)
    z = super_spike(u - v_th, alpha)
    return z, LIFBoxFeedForwardState((1 - z) * u)


def super_spike(distance: Tensor, alpha: float | Tensor) -> Tensor:
    """1 where the distance from the threshold is positive, else 0; backward the SuperSpike of alpha."""
    return _SuperSpike.apply(distance, alpha)


class _SuperSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distance: Tensor, alpha: float | Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.alpha = alpha
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (distance,) = ctx.saved_tensors
        return grad / (ctx.alpha * distance.abs() + 1) ** 2, None


# --- the same sooner ---


def _li_scan(current: Tensor, decay: Tensor, state: LIBoxState) -> tuple[Tensor, LIBoxState]:
    voltages = integrate(current, decay, state.v)
    return voltages, LIBoxState(voltages[-1])


def _lif_scan(
    v_th: float | Tensor, alpha: float | Tensor, current: Tensor, decay: Tensor, state: LIFBoxFeedForwardState
) -> tuple[Tensor, LIFBoxFeedForwardState]:
    spikes, v = integrate_and_fire(current, decay, state.v, v_th, alpha)
    return spikes, LIFBoxFeedForwardState(v)


def _pooled(
    net: str,
    state_type: type | None,
    v_th: float | Tensor,
    alpha: float | Tensor,
    K: int,
    current: Tensor,
    decay: Tensor | None,
    state: Any,
    skips: Tensor | None,
) -> tuple[Tensor, State | None, Tensor]:
    v0 = None if state is None or decay is None else state.v.to(decay.dtype)
    out, v, activity = pooled_neurons(net, K, current, decay, v0, skips, v_th, alpha)
    return out, None if v is None or state_type is None else state_type(v), activity


# --- the table ---


def lif(v_th: float | Tensor, alpha: float | Tensor) -> Neuron:
    """The row of LIF neurons of this threshold and steepness of the surrogate gradient."""

    def parameters(tau_mem_inv: Tensor) -> LIFBoxParameters:
        return LIFBoxParameters(tau_mem_inv, v_th=torch.as_tensor(v_th), alpha=torch.as_tensor(alpha))

    return Neuron(
        step=partial(lif_step, v_th, alpha),
        state=LIFBoxFeedForwardState,
        spikes=True,
        scan=partial(_lif_scan, v_th, alpha),
        pooled=partial(_pooled, "lif", LIFBoxFeedForwardState, v_th, alpha),
        norse=(lif_box_feed_forward_step, parameters),
    )


LI = Neuron(
    step=li_step,
    state=LIBoxState,
    rectified=True,
    scan=_li_scan,
    pooled=partial(_pooled, "li", LIBoxState, 0.0, 0.0),
    norse=(li_box_feed_forward_step, LIBoxParameters),
)
RELU = Neuron(
    step=lambda x, state, decay: (x, state),
    has_tau=False,
    rectified=True,
    read_out="ann",
    scan=lambda current, decay, state: (current, state),
    pooled=partial(_pooled, "ann", None, 0.0, 0.0),
    norse=(lambda x, state, p, dt: (x, state), lambda tau_mem_inv: None),
)
NEURONS = table("net", {"li": LI, "lif": lif(torch.tensor(V_TH).item(), ALPHA), "ann": RELU})
