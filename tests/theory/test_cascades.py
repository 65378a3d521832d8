"""Cascades of leaky integrators: moments, recursions and kernels against closed forms and pytempscsp."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytempscsp.tempscsp import limitkernfilt, mufromstddev

from nrf.network.neurons import LIBoxParameters, leaky_integrate
from nrf.theory.cascades import (
    STEPS,
    cascade_kernel,
    cascade_moments,
    geometric_time_constants,
    integrate_cascade,
    limit_kernel_mean,
    lindeberg_time_constants,
    logarithmic_time_constants,
    stage_decay,
    stage_moments,
    uniform_time_constants,
)
from nrf.theory.receptive_fields import temporal_rates_hz


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


taus = st.lists(st.floats(0.5, 20), min_size=1, max_size=5).map(lambda values: tensor(*values))


def moments(times, kernel):
    """Integral, mean and variance of a kernel on a fine grid of times, by the trapezoidal rule."""
    total = torch.trapezoid(kernel, times)
    mean = torch.trapezoid(kernel * times, times) / total
    return total, mean, torch.trapezoid(kernel * (times - mean) ** 2, times) / total


# --- distributions ---


@given(st.floats(1, 400), st.integers(1, 8), st.floats(1.1, 3))
def test_cascades_have_the_variance_asked_for(variance, n, ratio):
    for tau in (uniform_time_constants(variance, n), lindeberg_time_constants(variance, n, ratio)):
        assert tau.shape == (n,) and (tau > 0).all()
        assert cascade_moments(tau)[1].item() == pytest.approx(variance)
    levels = lindeberg_time_constants(variance, n, ratio).square().cumsum(0)
    torch.testing.assert_close(levels[1:] / levels[:-1], torch.full((n - 1,), ratio**2).double())


def test_logarithmic_time_constants_are_the_papers():
    tau = logarithmic_time_constants(math.sqrt(30), 4)
    np.testing.assert_allclose(1000 / tau, temporal_rates_hz(4), rtol=1e-6)


def test_limit_kernel():
    """A scaling of time by the ratio c adds a stage and is otherwise the same kernel; mean in closed form."""
    tau = lindeberg_time_constants(100.0, 12, 2.0)
    assert tau.sum().item() == pytest.approx(limit_kernel_mean(100.0, 2.0), rel=1e-3)
    assert limit_kernel_mean(100.0, 2.0) == pytest.approx(math.sqrt(300))
    times = torch.linspace(0.5, 60, 50, dtype=torch.float64)
    here = cascade_kernel(times, tau)[:, -1]
    there = cascade_kernel(2 * times, lindeberg_time_constants(400.0, 12, 2.0))[:, -1]
    torch.testing.assert_close(2 * there, here, rtol=1e-9, atol=1e-12)
    wider = cascade_kernel(times, lindeberg_time_constants(100.0, 9, 2.0))[:, -1]  # three stages fewer
    assert (wider - here).abs().max() < 5e-3 * here.max()
    with pytest.raises(ValueError, match="ratio 1.0: expected above 1"):
        lindeberg_time_constants(1.0, 3, 1.0)


def test_geometric_time_constants_are_pytempscsps():
    levels = 64.0 * 4.0 ** torch.arange(-5, 1, dtype=torch.float64)
    ours = geometric_time_constants(levels)
    np.testing.assert_allclose(ours, mufromstddev(8.0, 2.0, 6)[0])
    mean, variance = stage_moments(stage_decay(ours, step="geometric"))
    torch.testing.assert_close(mean, ours)
    torch.testing.assert_close(variance.cumsum(0), levels)


# --- kernels ---


def test_kernels_in_closed_form():
    t = torch.linspace(-1, 30, 63, dtype=torch.float64)
    after = (t >= 0).double()
    one = cascade_kernel(t, tensor(4.0))
    torch.testing.assert_close(one[:, 0], torch.exp(-t / 4) / 4 * after)
    equal = cascade_kernel(t, tensor(4.0, 4.0, 4.0))  # Erlang
    torch.testing.assert_close(equal[:, 2], t**2 * torch.exp(-t / 4) / (2 * 4**3) * after)
    torch.testing.assert_close(equal[:, 0], one[:, 0])
    two = cascade_kernel(t, tensor(4.0, 1.0))
    torch.testing.assert_close(two[:, 1], (torch.exp(-t / 4) - torch.exp(-t)) / (4 - 1) * after)


@given(taus)
def test_moments_of_the_kernels(tau):
    mean, variance = cascade_moments(tau)
    times = torch.linspace(0, float(mean + 30 * tau.max()), 4001, dtype=torch.float64)
    total, actual_mean, actual_variance = moments(times, cascade_kernel(times, tau)[:, -1])
    assert total.item() == pytest.approx(1, rel=0.01)
    assert actual_mean.item() == pytest.approx(mean.item(), rel=0.01)
    assert actual_variance.item() == pytest.approx(variance.item(), rel=0.02)


# --- recursions ---


@given(taus, st.sampled_from([0.25, 1.0, 4.0]))
def test_recursion_is_exact_for_inputs_constant_within_a_step(tau, dt):
    """Whatever the step: a boxcar of one step is the difference of two step responses, integrals of the
    kernel."""
    signal = torch.zeros(8, dtype=torch.float64)
    signal[1] = 1.0
    values, _ = integrate_cascade(signal, tau, dt)
    for k in (1, 3, 7):
        # response at (k + 1) dt to an input within (dt, 2 dt)
        nodes, weights = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(40))
        ages = (k - 1 + (nodes + 1) / 2) * dt
        wanted = (weights[:, None] * dt / 2 * cascade_kernel(ages, tau)).sum(0)
        torch.testing.assert_close(values[k], wanted, rtol=1e-6, atol=1e-9)


@given(taus)
def test_two_chunks_are_the_whole_and_steps_can_be_split(tau):
    signal = torch.rand(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, last = integrate_cascade(signal, tau, 2.0)
    first, state = integrate_cascade(signal[:4], tau, 2.0)
    second, end = integrate_cascade(signal[4:], tau, 2.0, state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    assert torch.equal(end, second[-1]) and torch.equal(last, whole[-1])
    halves, _ = integrate_cascade(signal.repeat_interleave(2, 0), tau, 1.0)
    torch.testing.assert_close(halves[1::2], whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0, 4.0])
def test_recursion_is_covariant_under_scalings_of_time(scale):
    """An input that is constant for 4 ms at a time, played at another speed, with tau' = S tau."""
    pieces = torch.rand(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tau = tensor(3.0, 5.0, 8.0)
    here, _ = integrate_cascade(pieces.repeat_interleave(4), tau)
    there, _ = integrate_cascade(pieces.repeat_interleave(int(4 * scale)), scale * tau)
    torch.testing.assert_close(there[int(4 * scale) - 1 :: int(4 * scale)], here[3::4])


@pytest.mark.parametrize("step", STEPS)
def test_moments_of_one_stage(step):
    decay = stage_decay(tensor(5.0), 1.0, step)
    impulse = torch.zeros(400, 1, dtype=torch.float64)
    impulse[0] = 1
    values, _ = leaky_integrate(impulse, LIBoxParameters(tau_mem_inv=decay), dt=1.0)
    times = torch.arange(400, dtype=torch.float64)
    mean = (values[:, 0] * times).sum()
    assert values.sum().item() == pytest.approx(1)
    variance = (values[:, 0] * (times - mean) ** 2).sum()
    for actual, wanted in zip((mean, variance), stage_moments(decay), strict=True):
        assert actual.item() == pytest.approx(wanted.item())
    assert stage_moments(decay)[0].item() == pytest.approx(
        {"euler": 4, "exponential": 1 / math.expm1(0.2), "geometric": 5}[step]
    )


def test_exponential_step_is_the_cascade_of_one():
    signal = torch.rand(30, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    decay = stage_decay(tensor(5.0), 1.0)
    values, _ = leaky_integrate(signal, LIBoxParameters(tau_mem_inv=decay), dt=1.0)
    torch.testing.assert_close(integrate_cascade(signal, tensor(5.0))[0][..., 0], values)
    with pytest.raises(ValueError, match="step 'exact': expected one of euler, exponential, geometric"):
        stage_decay(tensor(5.0), 1.0, "exact")


def test_geometric_cascade_is_pytempscsps():
    signal = np.random.default_rng(0).normal(size=60)
    wanted = limitkernfilt(signal, 4.0, 2.0, 5)
    values = torch.tensor(signal)[:, None]
    for mu in geometric_time_constants(16.0 * 4.0 ** torch.arange(-4, 1, dtype=torch.float64)):
        decay = stage_decay(mu, step="geometric")
        values, _ = leaky_integrate(values, LIBoxParameters(tau_mem_inv=decay), dt=1.0)
    np.testing.assert_allclose(values[:, 0], wanted, rtol=1e-9, atol=1e-12)


def test_gradients():
    def last(tau, signal):
        return integrate_cascade(signal, tau)[0][:, -1], cascade_kernel(tensor(0.5, 3.0, 9.0), tau)

    signal = torch.rand(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = tensor(2.0, 5.0, 3.0).requires_grad_(), signal.requires_grad_()
    assert torch.autograd.gradcheck(last, inputs, atol=1e-6, rtol=1e-5)
