"""torch.compile and torch.export pass through the compiled kernels and the convolution over frequencies."""

import pytest
import torch

from nrf.config import Config
from nrf.network.layers import SpatialRF, SpatioTemporalRF, TemporalRF
from nrf.network.model import SpatioTemporalModel

pytestmark = pytest.mark.usefixtures("compiler")
T, FIELD = 5, (34, 32)


def network(net, convolution="auto"):
    """A small one in which all neurons respond, with the kernels' backend, and frames for it."""
    torch.manual_seed(0)
    sizes = dict(n_spatial_scales=2, n_temporal_scales=2, n_angles=2, n_ratios=1, n_classes=2, dropout=0.0)
    config = Config(net=net, resolution=FIELD, skip_connections=1, convolution=convolution, **sizes)
    return SpatioTemporalModel(config), (torch.rand(T, 2, 2, *FIELD) < 0.2).float()


def outcome(model, frames):
    """Heat maps, activities, last states and all gradients of a weighted sum of them."""
    response = model(frames)
    states = [x for group in response.state.fields for state in group for x in state or ()]
    outputs = [response.heatmaps, response.activities, *states, *(response.state.classifier or ())]
    loss = sum((out * torch.cos(torch.arange(out.numel())).view_as(out)).sum() for out in outputs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [out.detach() for out in outputs] + [g for g in gradients if g is not None]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def operators_of(program):
    """Ours, in its graph and those within, as of a region without autocast."""
    nodes = [str(node.target) for part in program.graph_module.modules() for node in part.graph.nodes]
    return {node.split(".")[1] for node in nodes if node.startswith("nrf.")}


@pytest.mark.parametrize(
    "net, convolution, operators",
    [
        ("li", "auto", {"convolve_events"}),
        ("lif", "spectral", {"correlate"}),
        ("ann", "auto", {"convolve_events"}),
    ],
)
def test_an_exported_network_is_the_network(net, convolution, operators):
    model, frames = network(net, convolution)
    program = torch.export.export(model.eval(), (frames,), strict=False)
    assert operators_of(program) == operators | {"native"}
    other = (torch.rand(frames.shape) < 0.2).float()
    found = program.module()(other).heatmaps
    assert_same([found], [model(other).heatmaps])
    with pytest.raises(RuntimeError, match="exported network has no backward pass"):
        found.sum().backward()


@pytest.mark.parametrize("net, convolution", [("li", "auto"), ("ann", "auto"), ("lif", "spectral")])
def test_a_compiled_network_and_its_gradients_are_the_networks(net, convolution):
    """Traced whole and differentiated; the compiler proper is left out for its time."""
    model, frames = network(net, convolution)
    expected = outcome(model, frames)
    torch._dynamo.reset()
    assert_same(outcome_of_compiled(model, frames, "aot_eager"), expected)


def outcome_of_compiled(model, frames, backend):
    plain = model.forward
    model.forward = torch.compile(plain, backend=backend, fullgraph=True)
    try:
        return outcome(model, frames)
    finally:
        model.forward = plain


def test_a_layer_compiled_to_machine_code_is_the_layer():
    torch.manual_seed(0)
    temporal = TemporalRF("lif", torch.tensor(100.0))
    layer = SpatioTemporalRF(SpatialRF(2, 3, 5, convolution="spectral"), temporal, recompute=True)
    frames = torch.rand(T, 1, 2, 16, 16, requires_grad=True)
    found = []
    for module in (layer, torch.compile(layer, fullgraph=True)):
        out, state = module(frames)
        assert 0 < out.mean() < 1  # some fire
        probe = torch.cos(torch.arange(out.numel())).view_as(out)
        wanted = [frames, layer.spatial.spatial.weight, temporal.tau_mem_inv]
        found.append([out.detach(), state.v.detach(), *torch.autograd.grad((out * probe).sum(), wanted)])
    assert_same(*found)


def samples():
    """Operators and arguments, as the kernels are called with them."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 3, 9, 8, generator=generator)
    weight = torch.rand(4, 3, 5, 5, generator=generator)
    grad = torch.rand(2, 4, 9, 8, generator=generator)
    events = (frames < 0.02).float()
    current, decay, v0 = torch.rand(T, 1, 12), torch.rand(1, 1), torch.zeros(1, 12)
    sizes, results = (T, 1, 1, 12, 0, 12 * T), [torch.empty(T, 1, 12), torch.empty(1, 12)]
    return {
        "correlate": (frames, weight),
        "correlate_frames": (frames, grad, 5),
        "convolve_events": (events, weight, 2),
        "events_weight": (events, weight, grad, 2),
        "convolve_events, bfloat16": (events.bfloat16(), weight.bfloat16(), 2),
        "events_weight, bfloat16": (events.bfloat16(), weight.bfloat16(), grad.bfloat16(), 2),
        "native": ("fire_float", sizes, (0.1,), [current, decay, v0], results),
    }


@pytest.mark.parametrize("name", samples())
def test_operators_do_what_their_schemas_and_fakes_say(name):
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    operator = getattr(torch.ops.nrf, name.split(",")[0]).default
    passed = torch.library.opcheck(operator, samples()[name], test_utils=tests)
    assert set(passed.values()) == {"SUCCESS"}
