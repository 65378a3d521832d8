"""The scans against the readable loops and Norse's own cells."""

import pytest
import torch

from nrf.fast import native, scan_torch
from nrf.network import neurons
from nrf.network.neurons import (
    DT_S,
    NEURONS,
    LIBoxParameters,
    LIBoxState,
    LIFBoxFeedForwardState,
    LIFBoxParameters,
    leaky_integrate,
    leaky_integrate_and_fire,
    respond,
    run,
    super_spike,
)
from nrf.network.reference import SuperSpike, lif_step, norse_li, norse_lif

T = 11  # no power of two
COMPILED, TORCH, LOOP, NORSE = (
    ("compiled", "auto"),
    ("torch", "auto"),
    ("compiled", "loop"),
    ("compiled", "norse"),
)
each_backend = pytest.mark.parametrize("kernels, backend", [COMPILED, TORCH, LOOP], indirect=["kernels"])
every_backend = pytest.mark.parametrize(
    "kernels, backend", [COMPILED, TORCH, LOOP, NORSE], indirect=["kernels"]
)
both_kernels = pytest.mark.parametrize("kernels", ["compiled", "torch"], indirect=True)
SHAPES = {  # of a step's current, of the rates
    "one rate": ((2, 3, 4, 5), ()),
    "rate per channel": ((2, 3, 4, 5), (3, 1, 1)),
    "rates over one current": ((1, 2, 3, 4, 5), (4, 1, 1, 1, 1)),
    "rates over their own currents": ((4, 2, 3, 4, 5), (4, 1, 1, 1, 1)),
    "one rate over every axis": ((4, 5), (1, 1)),
    "rates with more axes than a step": ((5,), (3, 1)),
    "more cells than a block": ((2, 5, 250), (2, 1, 1)),
}


def inputs(step, rates, dtype=torch.float64, seed=0):
    """Current, rates of 30 to 300 Hz and initial voltages that make neurons both fire and rest."""
    generator = torch.Generator().manual_seed(seed)
    current = torch.randn(T, *step, generator=generator, dtype=dtype) * 1.5
    rate_hz = 30 + 270 * torch.rand(rates, generator=generator, dtype=dtype)
    v0 = 0.1 * torch.randn(torch.broadcast_shapes(step, rates), generator=generator, dtype=dtype)
    return current, rate_hz, v0


def li(current, rate_hz, v0, backend):
    state = None if v0 is None else LIBoxState(v0)
    return leaky_integrate(current, LIBoxParameters(tau_mem_inv=rate_hz), state, backend=backend)


def lif(current, rate_hz, v0, backend, alpha=10.0):
    p = LIFBoxParameters(tau_mem_inv=rate_hz, v_th=torch.tensor(0.1), alpha=torch.tensor(alpha))
    state = None if v0 is None else LIFBoxFeedForwardState(v0)
    return leaky_integrate_and_fire(current, p, state, backend=backend)


def norse_lif_alpha_10(current, rate_hz, v0):
    return norse_lif(current, rate_hz, v0, alpha=10.0, cell=lif_step)


def lif_alpha_1(current, rate_hz, v0, backend):
    return lif(current, rate_hz, v0, backend, alpha=1.0)


PAIRS = {  # ours, the judge
    "li": (li, norse_li),
    "lif": (lif, norse_lif_alpha_10),
    "lif alpha 1": (lif_alpha_1, norse_lif),
}


def assert_same(actual, wanted, neuron, backend):
    """Bit by bit; up to rounding for torch's leaky integrator, which multiplies and adds in one."""
    if (neuron, backend) == ("li", "auto") and native.load() is None:
        eps = torch.finfo(wanted.dtype).eps
        torch.testing.assert_close(actual, wanted, rtol=8 * eps, atol=eps * wanted.abs().max().item())
    else:
        assert torch.equal(actual, wanted)


def probed_gradients(out, state, arguments):
    """Gradients of random weights on every output and on the last state."""
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (value * torch.randn(value.shape, generator=generator, dtype=value.dtype)).sum()
        for value in (out, state.v)
    )
    return torch.autograd.grad(loss, arguments)


@pytest.mark.parametrize("shapes", SHAPES)
@each_backend
@pytest.mark.parametrize("neuron", PAIRS)
def test_values_state_and_gradients_are_those_of_norse(kernels, neuron, backend, shapes):
    ours, judge = PAIRS[neuron]
    arguments = [value.requires_grad_() for value in inputs(*SHAPES[shapes])]
    out, state = ours(*arguments, backend)
    wanted, wanted_state = judge(*arguments)
    if neuron != "li":
        assert 0.05 < wanted.mean() < 0.5  # some fire, some rest
    assert_same(out, wanted, neuron, backend)
    assert_same(state.v, wanted_state.v, neuron, backend)
    for name, actual, gradient in zip(
        ("current", "rate", "v0"),
        probed_gradients(out, state, arguments),
        probed_gradients(wanted, wanted_state, arguments),
        strict=True,
    ):
        torch.testing.assert_close(actual, gradient, rtol=1e-11, atol=1e-12 * gradient.abs().max(), msg=name)


def test_the_oracles_lif_step_is_norses_cell_for_alpha_1():
    arguments = [value.requires_grad_() for value in inputs(*SHAPES["rate per channel"])]
    (out, state), (wanted, wanted_state) = (
        norse_lif(*arguments, alpha=1.0, cell=lif_step),
        norse_lif(*arguments),  # Norse 1.1.0 takes alpha = 1 whatever it is told
    )
    assert torch.equal(out, wanted) and torch.equal(state.v, wanted_state.v) and 0 < out.mean() < 1
    pairs = zip(
        probed_gradients(out, state, arguments),
        probed_gradients(wanted, wanted_state, arguments),
        strict=True,
    )
    for actual, gradient in pairs:
        torch.testing.assert_close(actual, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("neuron", ["li", "lif alpha 1"])
def test_backend_norse_is_norse(neuron):
    ours, judge = PAIRS[neuron]
    arguments = [value.requires_grad_() for value in inputs(*SHAPES["rates over one current"])]
    (out, state), (wanted, wanted_state) = ours(*arguments, "norse"), judge(*arguments)
    assert torch.equal(out, wanted)
    for actual, gradient in zip(
        probed_gradients(out, state, arguments),
        probed_gradients(wanted, wanted_state, arguments),
        strict=True,
    ):
        assert torch.equal(actual, gradient)


@each_backend
@pytest.mark.parametrize("neuron", PAIRS)
def test_forward_is_norses_in_float32(kernels, neuron, backend):
    ours, judge = PAIRS[neuron]
    arguments = inputs(*SHAPES["rates over one current"], dtype=torch.float32)
    out, state = ours(*arguments, backend)
    wanted, wanted_state = judge(*arguments)
    assert out.dtype == torch.float32
    assert_same(out, wanted, neuron, backend)
    assert_same(state.v, wanted_state.v, neuron, backend)


@both_kernels
@pytest.mark.parametrize("shapes", ["rate per channel", "rates over one current"])
@pytest.mark.parametrize("neuron", [li, lif])
def test_channels_last_and_blocks_change_nothing(kernels, monkeypatch, neuron, shapes):
    """Neither the order of the cells in memory nor the size of the blocks; the order is kept."""
    current, rate_hz, v0 = (value.requires_grad_() for value in inputs(*SHAPES[shapes]))
    wanted, state = neuron(current, rate_hz, v0, "auto")
    wanted_gradients = probed_gradients(wanted, state, (current, rate_hz, v0))
    monkeypatch.setattr(scan_torch, "BLOCK", 7)
    turned = current.movedim(-3, -1).contiguous().movedim(-1, -3)
    out, state = neuron(turned, rate_hz, v0, "auto")
    assert out.movedim(-3, -1).is_contiguous() and not out.is_contiguous()
    assert torch.equal(out, wanted)
    for actual, gradient in zip(
        probed_gradients(out, state, (current, rate_hz, v0)), wanted_gradients, strict=True
    ):
        torch.testing.assert_close(actual, gradient, rtol=1e-12, atol=1e-13 * gradient.abs().max())


@every_backend
@pytest.mark.parametrize("neuron", [li, lif])
def test_rest_is_zero_volts_and_two_chunks_are_the_whole(kernels, neuron, backend):
    current, rate_hz, v0 = inputs(*SHAPES["rates over one current"])
    whole, last = neuron(current, rate_hz, torch.zeros_like(v0), backend)
    first, state = neuron(current[:4], rate_hz, None, backend)
    held = state.v.clone()
    second, state_after = neuron(current[4:], rate_hz, state.v, backend)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(state_after.v, last.v)
    assert torch.equal(state.v, held)  # the state handed in is left as it was


@each_backend
@pytest.mark.parametrize("neuron", [li, lif])
def test_gradient_through_the_state_between_chunks_is_that_of_the_whole(kernels, neuron, backend):
    arguments = [value.requires_grad_() for value in inputs((2, 3), (3,))]
    current, rate_hz, v0 = arguments
    first, state = neuron(current[:4], rate_hz, v0, backend)
    second, state = neuron(current[4:], rate_hz, state.v, backend)
    chunks = probed_gradients(torch.cat([first, second]), state, arguments)
    whole = probed_gradients(*neuron(*arguments, backend), arguments)
    for actual, wanted in zip(chunks, whole, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-14)


def test_li_gradient_is_that_of_finite_differences():
    def voltages(current, rate_hz, v0):
        out, state = li(current, rate_hz, v0, "auto")
        return out, state.v

    current, rate_hz, v0 = inputs((2, 3), (3,))
    assert torch.autograd.gradcheck(voltages, [x.requires_grad_() for x in (current[:5], rate_hz, v0)])


def test_li_steps_towards_its_input_by_dt_over_tau():
    out, state = li(torch.tensor([1.0, 1.0, 0.0]), torch.tensor(500.0), None, "auto")
    assert out.tolist() == [0.5, 0.75, 0.375]  # decay 1 ms * 500 Hz
    assert state.v == 0.375


def test_only_what_needs_a_gradient_gets_one():
    current, rate_hz, v0 = inputs((2, 3), ())
    rate_hz.requires_grad_()
    for neuron in (li, lif):
        out, _ = neuron(current, rate_hz, v0, "auto")
        (alone,) = torch.autograd.grad(out.sum(), rate_hz)
        together = current.clone().requires_grad_(), rate_hz, v0.clone().requires_grad_()
        assert alone == torch.autograd.grad(neuron(*together, "auto")[0].sum(), together)[1]


@pytest.mark.parametrize("alpha", [1.0, 10.0, 100.0])
def test_surrogate_gradient_is_super_spike_of_alpha(alpha):
    u = torch.tensor([-0.4, -0.05, 0.0, 0.02, 0.5], dtype=torch.float64, requires_grad=True)
    z = super_spike(u, torch.tensor(alpha))
    assert z.tolist() == [0, 0, 0, 1, 1]
    (slope,) = torch.autograd.grad(z.sum(), u)
    torch.testing.assert_close(slope, (alpha * u.detach().abs() + 1) ** -2)
    (judge,) = torch.autograd.grad(SuperSpike.apply(u, alpha).sum(), u)
    assert torch.equal(slope, judge)


@each_backend
@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_one_step_of_lif_has_the_slope_of_alpha(kernels, backend, alpha):
    current = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    z, _ = lif(current, torch.tensor(100.0, dtype=torch.float64), None, backend, alpha)
    (slope,) = torch.autograd.grad(z.sum(), current)
    assert slope.item() == pytest.approx(0.1 / (alpha * 0.05 + 1) ** 2, rel=1e-6)  # u = 0.05, v_th = 0.1


@every_backend
def test_fires_strictly_above_the_threshold_and_resets_to_zero(kernels, backend):
    v_th = torch.tensor(0.1)
    v0 = torch.stack(
        [v_th, torch.nextafter(v_th, torch.tensor(1.0)), torch.nextafter(v_th, torch.tensor(0.0))]
    )
    z, state = lif(v0[None], torch.tensor(100.0), v0, backend)  # input equals voltage: u = v0 exactly
    assert z.tolist() == [[0, 1, 0]]
    assert torch.equal(state.v, v0 * torch.tensor([1, 0, 1]))


@pytest.mark.parametrize("name", ["v_leak", "v_reset"])
@pytest.mark.parametrize("backend", ["auto", "loop"])
def test_other_rest_and_reset_potentials_are_refused(backend, name):
    p = LIFBoxParameters(tau_mem_inv=torch.tensor(100.0), **{name: torch.tensor(0.25)})
    with pytest.raises(ValueError, match=f"{name} 0.25.*take backend 'norse'"):
        leaky_integrate_and_fire(torch.ones(T, 2), p, backend=backend)
    spikes, _ = leaky_integrate_and_fire(torch.ones(T, 2), p, backend="norse")
    assert spikes.shape == (T, 2)


@pytest.mark.parametrize("backend", ["auto", "loop"])
def test_li_refuses_another_rest(backend):
    p = LIBoxParameters(tau_mem_inv=torch.tensor(100.0), v_leak=torch.tensor(0.25))
    with pytest.raises(ValueError, match="v_leak 0.25"):
        leaky_integrate(torch.ones(T, 2), p, backend=backend)


@both_kernels
@pytest.mark.parametrize("neuron", [li, lif])
def test_memory_may_lie_in_any_order(kernels, neuron):
    """Of currents and states: expanded, every other, turned."""
    current, _, v0 = inputs((6, 5), (6, 1))
    rate_hz = torch.tensor([[40.0], [90.0], [250.0]], dtype=torch.float64)
    current, v0 = current[:, ::2], v0[:3, :1].expand(3, 5)
    for x, state in ((current, v0), (current, v0.t().contiguous().t()), (current, v0[:1, :1])):
        x, state = x.detach(), state.detach()
        arguments = x.requires_grad_(), rate_hz.requires_grad_(), state.requires_grad_()
        out, last = neuron(*arguments, "auto")
        wanted, wanted_last = neuron(*arguments, "loop")
        torch.testing.assert_close(out, wanted, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(last.v, wanted_last.v, rtol=1e-14, atol=1e-15)
        found, gradients = (
            probed_gradients(out, last, arguments),
            probed_gradients(wanted, wanted_last, arguments),
        )
        for actual, gradient in zip(found, gradients, strict=True):
            torch.testing.assert_close(actual, gradient, rtol=1e-12, atol=1e-13 * gradient.abs().max())


@both_kernels
@pytest.mark.parametrize("neuron", [li, lif])
def test_bfloat16_current_is_integrated_in_float32(kernels, neuron):
    current, rate_hz, _ = inputs((2, 3), (3,), dtype=torch.float32)
    current = current.bfloat16().requires_grad_()
    out, state = neuron(current, rate_hz, None, "auto")
    exact, exact_state = neuron(current.detach().float(), rate_hz, None, "auto")
    assert out.dtype == state.v.dtype == torch.float32
    assert torch.equal(out, exact) and torch.equal(state.v, exact_state.v)
    (gradient,) = torch.autograd.grad(out.sum(), current)
    assert gradient.dtype == torch.bfloat16 and gradient.abs().max() > 0


def test_dt_scales_the_rate():
    current, rate_hz, v0 = inputs((2, 3), ())
    p = LIBoxParameters(tau_mem_inv=rate_hz)
    slow, _ = leaky_integrate(current, p, LIBoxState(v0), dt=DT_S / 2)
    halved, _ = li(current, rate_hz / 2, v0, "auto")
    torch.testing.assert_close(slow, halved, rtol=1e-14, atol=1e-15)


# --- the table ---


def test_every_backend_of_every_row_gives_the_same():
    """By name, with the defaults of `respond`; rows without a scan are walked."""
    current, rate_hz, _ = inputs((2, 3), (3,))
    for net, neuron in NEURONS.items():
        rate = rate_hz if neuron.has_tau else None
        plain, last = respond(net, current, rate, backend="loop")
        for backend in ("auto", "fused", "norse"):
            out, state = respond(net, current, rate, backend=backend)
            torch.testing.assert_close(out, plain, rtol=1e-14, atol=1e-15)
            assert neuron.state is None and state is None or torch.equal(state.v, last.v)
        walked, _ = run(neuron._replace(scan=None), current, None if rate is None else DT_S * rate)
        assert torch.equal(walked, plain) and torch.equal(respond(net, current, rate)[0], plain)
        slow, _ = respond(net, current, rate, dt=DT_S / 2)
        assert torch.equal(slow, plain) == (not neuron.has_tau)


@pytest.mark.parametrize("call", ["respond", "Norse's parameters"])
def test_backends_are_those_asked_for(monkeypatch, call):
    """The loop runs no scan, the fused way no loop."""
    current, rate_hz, _ = inputs((2, 3), (3,))

    def fails(*_):
        raise AssertionError("not asked for")

    def go(backend):
        if call == "respond":
            return respond("lif", current, rate_hz, backend=backend)
        return lif(current, rate_hz, None, backend)

    for name, backends in (("_lif_scan", ("loop", "norse")), ("loop", ("auto", "fused"))):
        with monkeypatch.context() as patch:
            patch.setattr(neurons, name, fails)
            patch.setitem(NEURONS, "lif", neurons.lif(0.1, 10.0))
            for backend in backends:
                assert go(backend)[0].sum() > 0


@pytest.mark.parametrize("wrong", ["fast", "LOOP", None])
def test_a_backend_that_does_not_exist_is_refused(wrong):
    p = LIFBoxParameters(tau_mem_inv=torch.tensor(100.0))
    for go in (
        lambda: respond("li", torch.ones(T, 2), torch.tensor(100.0), backend=wrong),
        lambda: leaky_integrate_and_fire(torch.ones(T, 2), p, backend=wrong),
    ):
        with pytest.raises(
            ValueError, match=f"temporal_backend {wrong!r}: expected one of auto, fused, loop, n"
        ):
            go()


def test_a_backend_that_a_row_lacks_is_refused(monkeypatch):
    monkeypatch.setitem(NEURONS, "own", NEURONS["li"]._replace(scan=None, norse=None))
    for missing in ("fused", "norse"):
        text = f"temporal_backend '{missing}' of net 'own': expected one of auto, loop$"
        with pytest.raises(ValueError, match=text):
            respond("own", torch.ones(T, 2), torch.tensor(100.0), backend=missing)
    assert respond("own", torch.ones(T, 2), torch.tensor(100.0))[0].shape == (T, 2)
    with pytest.raises(ValueError, match="net 'other': expected one of li, lif, ann, own"):
        respond("other", torch.ones(T, 2), torch.tensor(100.0))


@both_kernels
@pytest.mark.parametrize("v_th, alpha", [(0.1, 10.0), (0.3, 4.0)])
def test_a_row_of_another_threshold_is_that_of_norses_parameters(kernels, v_th, alpha):
    row = neurons.lif(torch.tensor(v_th).item(), alpha)
    default = NEURONS["lif"]
    assert row.spikes and row.has_tau and not row.rectified and row.read_out == "li"
    assert row.state is default.state and row.norse[0] is default.norse[0]
    current, rate_hz, v0 = (x.requires_grad_() for x in inputs((2, 3), (3,)))
    p = LIFBoxParameters(tau_mem_inv=rate_hz, v_th=torch.tensor(v_th), alpha=torch.tensor(alpha))
    for backend in ("auto", "loop"):
        wanted, last = leaky_integrate_and_fire(current, p, LIFBoxFeedForwardState(v0))
        out, state = run(row, current, DT_S * rate_hz, LIFBoxFeedForwardState(v0), backend)
        assert torch.equal(out, wanted) and torch.equal(state.v, last.v) and 0.02 < out.mean() < 0.5
        pairs = zip(
            probed_gradients(out, state, (current, rate_hz, v0)),
            probed_gradients(wanted, last, (current, rate_hz, v0)),
            strict=True,
        )
        for actual, gradient in pairs:
            torch.testing.assert_close(actual, gradient, rtol=1e-11, atol=1e-13)
    made = row.norse[1](tau_mem_inv=rate_hz)
    assert made.tau_mem_inv is rate_hz and float(made.v_th) == pytest.approx(v_th)
    assert float(made.alpha) == alpha


@pytest.mark.parametrize("net", ["li", "lif", "ann"])
def test_a_rows_pooled_neurons_are_its_neurons_and_pooling(compiler, net):
    """Rows made again: outputs rectified if the row says so, pooled, their means, and the last state."""
    row = neurons.lif(0.3, 4.0) if net == "lif" else NEURONS[net]
    generator = torch.Generator().manual_seed(0)
    current = 1.5 * torch.randn(T, 2, 1, 3, 6, 8, generator=generator).double()
    decay = torch.tensor([0.1, 0.3]).double() if row.has_tau else None
    rest = row.state and row.state(torch.zeros(2, 1, 3, 6, 8).double())
    narrow = row.state and row.state(rest.v.float())  # of the dtype of the rates, once in
    for state in {id(s): s for s in (rest, narrow, None)}.values():
        out, last, activity = row.pooled(2, current, decay, state, None)
        per_axis = None if decay is None else decay.view(2, 1, 1, 1, 1)
        plain, plain_last = run(row, current, per_axis, rest, "loop")
        plain = plain.relu() if row.rectified else plain
        pooled = torch.nn.functional.avg_pool2d(plain.flatten(0, 2), 2).unflatten(0, plain.shape[:3])
        torch.testing.assert_close(out, pooled, rtol=1e-12, atol=1e-14)
        wanted = plain.movedim(1, 0).flatten(1).mean(1) if row.spikes else torch.zeros(2).double()
        torch.testing.assert_close(activity, wanted, rtol=1e-12, atol=0)
        assert type(last) is type(rest) and (last is None or torch.equal(last.v, plain_last.v))


def test_states_are_broadcast_and_of_the_rates_dtype():
    """Rest, a part of a state, rates of another dtype and shape."""
    for net, neuron in NEURONS.items():
        if neuron.state is None:
            assert respond(net, torch.ones(T, 2), backend="loop")[1] is None
            continue
        rate_hz = torch.tensor([[40.0], [90.0]], dtype=torch.float64)
        out, state = respond(net, torch.ones(T, 5, dtype=torch.float32), rate_hz)
        assert state.v.shape == (2, 5) and state.v.dtype == torch.float64 and out.shape == (T, 2, 5)
        part = neuron.state(torch.full((5,), 0.05))
        full = neuron.state(torch.full((2, 5), 0.05).double())
        first, second = (respond(net, torch.ones(T, 5), rate_hz, s)[0] for s in (part, full))
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


def test_functions_with_norses_parameters_have_defaults():
    current, rate_hz, _ = inputs((2, 3), (3,))
    spikes, _ = leaky_integrate_and_fire(current, LIFBoxParameters(tau_mem_inv=rate_hz))
    voltages, _ = leaky_integrate(current, LIBoxParameters(tau_mem_inv=rate_hz))
    p = LIFBoxParameters(tau_mem_inv=rate_hz)  # Norse's own threshold and alpha
    wanted, _ = run(neurons.lif(p.v_th, p.alpha), current, DT_S * rate_hz, None, "loop")
    assert torch.equal(spikes, wanted) and torch.equal(voltages, respond("li", current, rate_hz)[0])
