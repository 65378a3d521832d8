"""Bands, and neurons with pooling in one pass, against their plain twins."""

import functools

import pytest
import torch
from torch.nn import functional as F

from benchmarks.paired import peak_bytes
from nrf.config import Config
from nrf.fast import bands, pooling
from nrf.fast.pooling import average_pool
from nrf.network import layers
from nrf.network.layers import Neurons, SpatioTemporalRF, TemporalRF
from nrf.network.model import SpatioTemporalModel
from nrf.network.neurons import ALPHA, V_TH, LIBoxState

CONSTANTS = torch.tensor(V_TH).item(), ALPHA
CONFIG = dict(
    timesteps=3,
    resolution=(52, 46),
    n_spatial_scales=1,
    n_angles=2,
    n_ratios=2,
    n_temporal_scales=3,
    dropout=0.0,
)


@pytest.fixture
def one_pass(request, monkeypatch, interpreted):
    """Kernels that `pooled_neurons` runs on."""
    if request.param == "triton":
        kernels = interpreted("pooling_triton", BLOCK=64, SEGMENT=2)
        monkeypatch.setattr(pooling, "_kernels", lambda tensor: kernels)
    else:
        request.getfixturevalue("compiler")
    return request.param


@pytest.mark.parametrize(
    "one_pass, T, B, C, H, W",
    [
        ("compiled", 5, 2, 3, 6, 8),
        ("compiled", 5, 2, 3, 7, 9),
        ("compiled", 5, 2, 3, 2, 3),
        ("compiled", 70, 1, 128, 3, 11),  # more than a block of the backward pass, and than a word of bits
        ("triton", 5, 2, 3, 5, 7),
    ],
    indirect=["one_pass"],
)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("net", ["li", "lif", "ann"])
def test_neurons_and_pooling_in_one_pass_are_those_apart(
    project, monkeypatch, one_pass, net, skips, groups, T, B, C, H, W
):
    """Responses, states, activities and their gradients at current, states, rates and weights of three
    channels, from rest and from a state."""
    groups = 3 if net == "ann" and not skips else groups  # the others are one and the same
    fields = [
        SpatioTemporalRF(None, TemporalRF(net, torch.tensor(rate).double()), skips)
        for rate in (40.0, 90.0, 250.0)
    ]
    fields = [field.double() for field in fields]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).movedim(-1, -3).requires_grad_()

    current, v0 = draw(T, groups, B, H, W, C), draw(3, B, H, W, C)
    probes = [draw(T, 3, B, H // 2, W // 2, C), draw(3, B, H, W, C), torch.randn(3, generator=generator)]
    parameters = [p for field in fields for p in (field.skip_weight, *field.temporal.parameters())]

    def everything(state, responses_alone):
        out, state, activity = Neurons.of(fields).respond(current, state, average_pool)
        values = [out, None if state is None else state.v, activity]
        some = (out, None, None) if responses_alone else values
        loss = sum((v * p).sum() for v, p in zip(some, probes, strict=True) if v is not None)
        gradients = torch.autograd.grad(loss, [current, v0, *parameters], allow_unused=True)
        return out, *values[1:], *gradients

    monkeypatch.setattr(layers, "is_one_pass", lambda *_: True)
    cases = [(None, False)] if net == "ann" else [(None, False), (LIBoxState(v0), False)]
    for state, responses_alone in cases + ([(None, True)] if net == "li" else []):
        compiled = everything(state, responses_alone)
        if responses_alone:
            with torch.no_grad():
                untrained, *_ = Neurons.of(fields).respond(current, state, average_pool)
            assert torch.equal(untrained, compiled[0])
        with monkeypatch.context() as patch:
            patch.setattr(layers, "is_one_pass", lambda *_: False)
            plain = everything(state, responses_alone)
        if net == "lif":
            assert 0.05 < plain[2].max() < 0.6
        for actual, wanted in zip(compiled, plain, strict=True):
            assert (actual is None) == (wanted is None)
            assert wanted is None or project.error(actual, wanted) < 1e-12


@pytest.mark.parametrize("one_pass", ["compiled", "triton"], indirect=True)
@pytest.mark.parametrize("net", ["li", "ann"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rectifier_hides_no_nan(one_pass, net, dtype):
    current = torch.ones(2, 1, 1, 4, 4, 1, dtype=dtype)
    current[0, ..., 0, 0, 0] = float("nan")
    decay = None if net == "ann" else torch.tensor([0.1])
    for x in (current.movedim(-1, -3), current.movedim(-1, -3).requires_grad_()):
        out, *_ = pooling.pooled_neurons(net, 1, x, decay, None, None, *CONSTANTS)
        assert out[0, 0, 0, 0].isnan().tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("one_pass", ["compiled", "triton"], indirect=True)
def test_states_are_broadcast_and_other_shapes_refused(one_pass):
    current, decay = torch.randn(4, 1, 3, 2, 4, 4).double(), torch.tensor([0.1, 0.3]).double()
    v0 = torch.randn(2, 1, 2, 4, 4).double()
    run = functools.partial(pooling.pooled_neurons, "li", 2)
    out, v, _ = run(current, decay, v0, None, *CONSTANTS)
    wanted, wanted_v, _ = run(current, decay, v0.repeat(1, 3, 1, 1, 1), None, *CONSTANTS)
    assert torch.equal(out, wanted) and torch.equal(v, wanted_v)
    for wrong in (torch.randn(2, 2, 2, 4, 4), torch.randn(3, 3, 2, 4, 4)):
        with pytest.raises(RuntimeError, match="expand"):
            run(current, decay, wrong.double(), None, *CONSTANTS)
    for shape in ((4, 3, 1, 2, 4, 4), (4, 1, 1, 2, 1, 4), (0, 1, 1, 2, 4, 4), (4, 1, 1, 0, 4, 4)):
        with pytest.raises(ValueError, match="expected .T, 1 or 2, B, C, H, W., H, W > 1"):
            run(torch.zeros(shape).double(), decay, None, None, *CONSTANTS)


@pytest.mark.parametrize("one_pass", ["compiled", "triton"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("net", ["li", "lif", "ann"])
def test_narrow_currents_are_rounded_where_they_lie_in_memory(one_pass, net, skips, groups, dtype):
    """Responses and the gradient at the current are those of a float32 one, rounded; the rest is equal."""
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(5, groups, 1, 3, 5, 7, generator=generator).to(dtype)
    decay, v0 = torch.tensor([0.1, 0.3, 0.8]), 0.1 * torch.randn(3, 1, 3, 5, 7, generator=generator)
    skips = torch.tensor([0.9, 0.5, 0.1], requires_grad=True) if skips else None
    parameters = [x for x in (skips,) if x is not None]
    if net == "ann":
        decay = v0 = None
    else:
        parameters += [decay.requires_grad_(), v0.requires_grad_()]

    def run(x):
        x, probes = x.clone().requires_grad_(), torch.Generator().manual_seed(1)
        out, v, activity = pooling.pooled_neurons(net, 3, x, decay, v0, skips, *CONSTANTS)
        results = [y for y in (out, v, activity) if y is not None and y.requires_grad]
        grads = [torch.randn(y.shape, generator=probes).to(dtype).to(y.dtype) for y in results]
        return out, *torch.autograd.grad(results, [x, *parameters], grads), activity, v

    narrow, wide = run(current), run(current.float())
    for i, (actual, wanted) in enumerate(zip(narrow, wide, strict=True)):
        assert (actual is None) == (wanted is None)
        if wanted is not None:
            assert actual.dtype == (dtype if i < 2 else torch.float32) and torch.isfinite(actual).all()
            rtol = 2**-7 if i < 2 and one_pass == "triton" else 0  # whose interpreter rounds towards zero
            torch.testing.assert_close(actual, wanted.to(actual.dtype), rtol=rtol, atol=0)


def test_batch_norm_of_narrow_frames_is_that_of_wide_ones():
    norms = [layers.StepwiseBatchNorm2d(3) for _ in range(2)]
    frames = torch.rand(4, 2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    narrow, wide = norms[0](frames), norms[1](frames.float())
    assert torch.equal(narrow, wide) and torch.equal(norms[0].running_var, norms[1].running_var)


@pytest.mark.parametrize("net", ["li", "lif"])
def test_threads_change_no_bit(compiler, net):
    """Sums over cells are added up in one order.  In float64: float32 would hide it."""
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(9, 1, 4, 32, 33, 5, generator=generator).double().movedim(-1, -3).requires_grad_()
    field = SpatioTemporalRF(None, TemporalRF(net, torch.tensor(100.0)), True).double()
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            out, _, activity = Neurons.of([field]).respond(current, None, average_pool)
            loss = out.square().sum() + activity.sum()
            results.append((activity, *torch.autograd.grad(loss, [current, *field.parameters()])))
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("skips, normalisation, apart", [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 0, 2**25)])
@pytest.mark.parametrize("net", ["li", "lif", "ann"])
def test_bands_are_the_whole(project, monkeypatch, net, skips, normalisation, apart):
    """Loss, states and gradients of a step whose first layer is computed in bands, and again in its backward
    pass, are those of the plain one, in which it is computed and kept as a whole."""
    options = CONFIG | {"net": net, "skip_connections": skips, "batch_normalization": normalisation}
    runs, rows = [], []
    monkeypatch.setitem(bands.BAND, "cpu", 2**12)  # 6 bands of the 26 rows
    monkeypatch.setattr(layers, "APART", apart)
    monkeypatch.setattr(layers, "by_bands", lambda *args: rows.append(args[4]) or bands.by_bands(*args))
    for checkpointed in (0, 1):
        model = project.build(Config(**options, checkpoint_activations=checkpointed))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        warmup, x = ((torch.rand(3, 2, 2, 52, 46, generator=generator) < 0.2).double() for _ in range(2))
        run = project.run(model, warmup, x, 40 * torch.rand(3, 2, 3, 2, generator=generator).double())
        run.terms["loss"].backward()
        runs.append((run, {name: p.grad for name, p in model.named_parameters()}))
        assert bool(rows) == bool(checkpointed)
    assert 0 < rows[0] < 26 and rows[0] % 2 == 0
    (plain, wanted), (run, gradients) = runs
    assert project.error(run.heatmaps, plain.heatmaps) < 1e-12
    if net == "lif":
        assert plain.activities.min() > 0 and project.error(run.activities, plain.activities) < 1e-12
    for state, plain_state in zip(run.state.network.fields[0], plain.state.network.fields[0], strict=True):
        assert net == "ann" or project.error(state.v, plain_state.v) < 1e-12
    for name, gradient in wanted.items():
        if gradient is None:
            assert gradients[name] is None, name
        else:
            assert project.error(gradients[name], gradient) < 1e-10, name


def kept(layer):
    """Bytes that the backward pass of a layer is handed."""
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
    ):
        out, *_ = layer()
    out.sum().backward()
    return sum(sizes.values())


@pytest.mark.parametrize("one_pass", ["compiled"], indirect=True)
@pytest.mark.parametrize("net", ["li", "lif", "ann"])
def test_only_the_current_is_kept(one_pass, net):
    current = torch.rand(40, 1, 1, 16, 18, 18, requires_grad=True)
    field = SpatioTemporalRF(None, TemporalRF(net, torch.tensor(100.0)))
    held = kept(lambda: Neurons.of([field]).respond(current, None, average_pool))
    assert 1 <= held / current.nbytes < 1.05


@pytest.mark.parametrize("net", ["li", "lif"])
def test_channels_one_by_one_free_what_they_kept(compiler, monkeypatch, net):
    """Peak memory of a layer's step channel after channel, against one with all channels at a time."""
    config = Config(**CONFIG, net=net, convolution="direct")
    second = [channel.spatiotemporal[1] for channel in SpatioTemporalModel(config).channels]
    frames = torch.rand(12, 3, 2, 12, 36, 36, requires_grad=True)

    def peak(apart):
        monkeypatch.setattr(layers, "APART", apart)
        out = functools.partial(layers.layer_response, second, frames, pool=average_pool)
        return peak_bytes(lambda: out()[0].sum().backward())

    assert peak(apart=0) < 0.75 * peak(apart=2**25)


def test_bands_keep_no_activations():
    """Frames and weights per band, against all voltages."""
    model = SpatioTemporalModel(Config(**CONFIG))
    fields = [channel.spatiotemporal[0] for channel in model.channels]
    frames, weight = torch.rand(6, 1, 1, 2, 32, 32), fields[0].spatial.spatial.weight

    def response(frames, state, **padding):
        current = F.conv2d(frames.flatten(0, 2), weight, **padding).unflatten(0, (6, 1, 1))
        return Neurons.of(fields).respond(current, state, average_pool)

    trained = [weight, *(p for field in fields for p in field.trained_beside_filters())]
    banded = kept(lambda: bands.by_bands(response, frames, None, 4, 8, trained))
    assert kept(lambda: response(frames, None, padding="same")) > 4 * banded
