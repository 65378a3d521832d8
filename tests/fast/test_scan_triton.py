"""The Triton kernels in Triton's interpreter, on a CPU, against the scans, the loops and Norse."""

import pytest
import torch

from nrf.fast import scan, scan_torch
from nrf.network.neurons import (
    NEURONS,
    LIBoxParameters,
    LIBoxState,
    LIFBoxFeedForwardState,
    LIFBoxParameters,
    leaky_integrate,
    leaky_integrate_and_fire,
    loop,
)
from nrf.network.reference import lif_step, norse_li, norse_lif

pytest.importorskip("triton", reason="Triton does not come with torch on this platform")
T = 5
STEPS = {  # K, groups of the current, n, whether each cell has its decay
    "one": (1, 1, 70, False),
    "rates over one current": (3, 1, 33, False),
    "rates over their own currents": (2, 2, 130, False),
    "a rate per cell": (1, 1, 65, True),
}


@pytest.fixture(scope="module")
def kernels(interpreted):
    return interpreted("scan_triton", BLOCK=64, SEGMENT=2)  # and a rest


def inputs(step, dtype=torch.float64):
    K, groups, n, per_cell = STEPS[step]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    decay = 0.05 + 0.3 * torch.rand(K, n if per_cell else 1, generator=generator, dtype=dtype)
    return draw(T, groups, n) * 1.5, decay, 0.1 * draw(K, n), draw(T, K, n), draw(K, n)


def assert_close(actual, wanted):
    for got, value in zip(actual, wanted, strict=True):
        scale = value.abs().max().item()
        assert scale > 0 and got.dtype == value.dtype
        torch.testing.assert_close(got, value, rtol=0, atol=20 * torch.finfo(value.dtype).eps * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("step", STEPS)
def test_kernels_are_the_scans(kernels, step, dtype):
    current, decay, v0, probe, last_probe = inputs(step, dtype)
    groups = current.shape[1]
    v_th, alpha = torch.tensor(0.1, dtype=dtype), torch.tensor(10.0, dtype=dtype)

    def everything(module):
        voltages = module.integrate(current, decay, v0)
        kept, spikes, last = module.fire(current, decay, v0, v_th)
        return [
            voltages,
            *module.integrate_backward(probe, voltages, decay, v0, groups),
            *(spikes, last),
            *module.fire_backward(probe, last_probe, kept, decay, v0, v_th, alpha, groups),
        ]

    actual, wanted = everything(kernels), everything(scan_torch)
    assert 0.05 < wanted[4].mean() < 0.6  # some fire, some rest
    assert_close(actual, wanted)


@pytest.mark.parametrize("step", STEPS)
def test_voltages_and_spikes_are_the_loops_bit_by_bit(kernels, step):
    """The compiler is kept from what would change that: test_triton_compiles.py."""
    current, decay, v0, *_ = inputs(step, torch.float32)
    wanted, _ = loop(NEURONS["li"].step, current, decay, LIBoxState(v0))
    assert torch.equal(kernels.integrate(current, decay, v0), wanted)
    _, *fired = kernels.fire(current, decay, v0, torch.tensor(0.1))
    spikes, state = loop(NEURONS["lif"].step, current, decay, LIFBoxFeedForwardState(v0))
    assert torch.equal(fired[0], spikes) and torch.equal(fired[1], state.v)


@pytest.mark.parametrize("T", [1, 2])
def test_few_steps(kernels, T):
    current, decay, v0, probe, _ = inputs("rates over one current")
    voltages = kernels.integrate(current[:T], decay, v0)
    assert_close([voltages], [scan_torch.integrate(current[:T], decay, v0)])
    assert_close(
        kernels.integrate_backward(probe[:T], voltages, decay, v0, 1),
        scan_torch.integrate_backward(probe[:T], voltages, decay, v0, 1),
    )


def test_strictly_above_the_threshold(kernels):
    """u equal to v_th rests, and the spike resets to 0."""
    current = torch.tensor([[[1.0, 1.0 + 2**-40]]], dtype=torch.float64)
    half, rest = torch.full((1, 1), 0.5).double(), torch.zeros(1, 2).double()
    _, spikes, last = kernels.fire(current, half, rest, torch.tensor(0.5).double())
    assert spikes.tolist() == [[[0.0, 1.0]]] and last.tolist() == [[0.5, 0.0]]


def test_rest_and_currents_in_any_order_of_memory(kernels, monkeypatch):
    monkeypatch.setattr(scan, "_kernels", lambda tensor: kernels)
    current = torch.randn(T, 6, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[:, ::2]
    p = LIBoxParameters(tau_mem_inv=torch.tensor(90.0, dtype=torch.float64))
    for state in (None, LIBoxState(torch.tensor(0.5).double().expand(3, 70))):
        out, _ = leaky_integrate(current, p, state)
        wanted, _ = leaky_integrate(current, p, state, backend="loop")
        assert_close([out], [wanted])


@pytest.mark.parametrize("neuron", ["li", "lif"])
def test_through_autograd_they_are_norse(kernels, monkeypatch, neuron):
    """Values, last state and gradients at current, time constants and state, rates over one current."""
    monkeypatch.setattr(scan, "_kernels", lambda tensor: kernels)
    generator = torch.Generator().manual_seed(0)
    current = 1.5 * torch.randn(T, 1, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    rate_hz = 30 + 270 * torch.rand(3, 1, 1, 1, 1, generator=generator, dtype=torch.float64)
    v0 = 0.1 * torch.randn(3, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    arguments = [value.requires_grad_() for value in (current, rate_hz, v0)]
    if neuron == "li":
        out, state = leaky_integrate(current, LIBoxParameters(tau_mem_inv=rate_hz), LIBoxState(v0))
        wanted, wanted_state = norse_li(*arguments)
    else:
        p = LIFBoxParameters(tau_mem_inv=rate_hz, v_th=torch.tensor(0.1), alpha=torch.tensor(10.0))
        out, state = leaky_integrate_and_fire(current, p, LIFBoxFeedForwardState(v0))
        wanted, wanted_state = norse_lif(*arguments, alpha=10.0, cell=lif_step)
    assert_close((out, state.v), (wanted, wanted_state.v))
    probes = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in (wanted, wanted_state.v)]
    assert_close(
        torch.autograd.grad((out, state.v), arguments, probes),
        torch.autograd.grad((wanted, wanted_state.v), arguments, probes),
    )


def test_bfloat16_current_is_integrated_in_float32(kernels):
    current, decay, v0, *_ = inputs("one", torch.float32)
    current = current.bfloat16()
    assert_close([kernels.integrate(current, decay, v0)], [scan_torch.integrate(current.float(), decay, v0)])


def test_an_infinite_voltage_leaves_nan_as_in_the_loops(interpreted):
    triton = interpreted("scan_triton", BLOCK=8)
    current = torch.tensor([float("inf"), 9.0, 0.0, float("-inf")]).repeat(3, 1, 1)
    decay, v0, v_th = torch.full((1, 1), 0.5), torch.zeros(1, 4), torch.tensor(0.1)
    _, spikes, last = triton.fire(current, decay, v0, v_th)
    _, wanted, v = scan_torch.fire(current, decay, v0, v_th)
    assert torch.equal(spikes, wanted) and torch.equal(last.isnan(), v.isnan()) and v.isnan().any()
