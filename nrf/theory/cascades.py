"""The theory over time beyond one neuron: time constants, cascades of leaky integrators, their recursions.

    stage          tau_k dv_k/dt = v_(k-1) - v_k, v_0 = x       truncated exponential, exp(-t / tau) / tau
    cascade        all stages one after the other               mean sum tau_k, variance sum tau_k^2
    limit kernel   infinitely many, variances in a geometric progression of ratio c^2: covariant under c^j

Times are in ms, or in any one unit.  `integrate_cascade` is exact for inputs that are constant within a step,
whatever the step; `leaky_integrate` with a decay of `stage_decay` is one stage, the paper's neuron with
"euler". Source: paper, Methods (temporal receptive fields); Lindeberg 2016 (time-causal scale space), 2023
(limit kernel).
"""

import torch
from torch import Tensor

STEPS = ("euler", "exponential", "geometric")


def uniform_time_constants(variance: float, n: int) -> Tensor:
    """n equal time constants (n,) whose cascade has this variance."""
    return torch.full((n,), (float(variance) / n) ** 0.5, dtype=torch.float64)


def logarithmic_time_constants(shortest: float, n: int, ratio: float = 2.0) -> Tensor:
    """shortest * ratio^k, k = 0 .. n - 1, (n,): of channels side by side.  The paper's: sqrt(30) ms, ratio
    2."""
    return float(shortest) * float(ratio) ** torch.arange(n, dtype=torch.float64)


def lindeberg_time_constants(variance: float, n: int, ratio: float = 2.0) -> Tensor:
    """n time constants (n,), short to long, of a cascade whose first k stages have the variance
    ratio^(2 (k - n)) * variance: Lindeberg's distribution, for n to infinity the time-causal limit kernel.
    ratio: above 1."""
    if not ratio > 1:
        raise ValueError(f"ratio {ratio}: expected above 1")
    levels = float(variance) * float(ratio) ** (2 * (torch.arange(n, dtype=torch.float64) - n + 1))
    return torch.diff(levels, prepend=levels.new_zeros(1)).sqrt()


def cascade_moments(tau: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over time of the cascade's kernel, of time constants (..., n)."""
    return tau.sum(-1), tau.square().sum(-1)


def limit_kernel_mean(variance: float, ratio: float = 2.0) -> float:
    """Mean over time of the time-causal limit kernel, sqrt((c + 1) / (c - 1) * variance)."""
    return ((ratio + 1) / (ratio - 1) * variance) ** 0.5


def cascade_generator(tau: Tensor) -> Tensor:
    """A (n, n) of dv/dt = A v + x e_1 / tau_1, of time constants (n,)."""
    return torch.diag(-1 / tau) + torch.diag(1 / tau[1:], -1)


def cascade_kernel(t: Tensor, tau: Tensor) -> Tensor:
    """Impulse responses of all stages at times t (T,): (T, n).  tau: (n,), equal ones too; t < 0 gives 0.

    The first column is the truncated exponential of tau[0], the last the kernel of the whole cascade."""
    causal = t.clamp(min=0)[:, None, None] * cascade_generator(tau)
    return torch.linalg.matrix_exp(causal)[..., 0] / tau[0] * (t >= 0)[:, None]


def integrate_cascade(
    signal: Tensor, tau: Tensor, dt: float = 1.0, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All stages' values at the end of each step, (T, ..., n), and the last ones, to hand to the next chunk.

    signal: (T, ...), constant within each step of length dt.  tau: (n,).  state: (..., n), rest if None.
    Exact for every dt, v[t] = E v[t-1] + (1 - E 1) x[t] with E = exp(A dt).
    """
    step = torch.linalg.matrix_exp(cascade_generator(tau) * dt)
    gain = 1 - step.sum(-1)  # a constant input passes unchanged
    v = signal.new_zeros(*signal.shape[1:], len(tau)) if state is None else state
    values = []
    for x in signal:
        v = v @ step.T + x[..., None] * gain
        values.append(v)
    return torch.stack(values), v


def stage_decay(tau: Tensor, dt: float = 1.0, step: str = "exponential") -> Tensor:
    """The decay d of one stage  v[t] = v[t-1] + d (x[t] - v[t-1]):

    "euler" dt / tau, the published step; "exponential" 1 - exp(-dt / tau), exact for inputs constant within a
    step; "geometric" dt / (tau + dt), Lindeberg's discrete theory, whose kernel has the mean tau.
    """
    if step not in STEPS:
        raise ValueError(f"step {step!r}: expected one of {', '.join(STEPS)}")
    if step == "euler":
        return dt / tau
    return -torch.expm1(-dt / tau) if step == "exponential" else dt / (tau + dt)


def stage_moments(decay: Tensor, dt: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and variance over time of a stage's discrete kernel d (1 - d)^t, of decays d."""
    return dt * (1 - decay) / decay, dt**2 * (1 - decay) / decay**2


def geometric_time_constants(levels: Tensor) -> Tensor:
    """Time constants in steps (n,) of "geometric" stages whose cascade has the variances `levels` (n,), in
    squared steps and growing: mu with mu^2 + mu the growth."""
    growth = torch.diff(levels, prepend=levels.new_zeros(1))
    return ((1 + 4 * growth).sqrt() - 1) / 2
