"""The network, coordinates and losses against the numbers of the published code, in float64."""

from pathlib import Path

import pytest
import torch

from nrf.config import Config
from nrf.network.reference import reference_run

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
NAMES = ("ann_mf", "li_bn", "li_separate", "li_shared", "li_skip", "lif_shared")
TOLERANCE = 1e-9
# the files' own settings, where they are not the defaults
SETTINGS = dict(
    net="li",
    resolution=(64, 64),
    n_spatial_scales=2,
    n_temporal_scales=3,
    n_angles=2,
    n_ratios=2,
    dropout=0.0,
)

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no golden numbers (../shared/golden) here")


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    return torch.load(GOLDEN / f"{request.param}.pt", weights_only=True)


def settings(golden, **more):
    return Config(**{**SETTINGS, **golden["kw"], **more})


def loaded(project, golden, **more):
    """Our system with the parameters and buffers of the file."""
    system = project.build(settings(golden, **more))
    names = {**dict(system.named_parameters()), **dict(system.named_buffers())}
    with torch.no_grad():
        for name, value in (golden["init_float32"] | golden["buffers_before"]).items():
            names[name].copy_(value)
    return system


def test_names_initial_fields_and_statistics(project, golden):
    system = project.build(settings(golden))
    parameters, buffers = dict(system.named_parameters()), dict(system.named_buffers())
    assert set(parameters) == set(golden["init_float32"])
    assert set(buffers) == set(golden["buffers_before"])
    for name, value in golden["init_float32"].items():
        if name != "net.classifier.0.weight":  # drawn
            assert project.error(parameters[name], value) < 1e-6, name
    for name, value in golden["buffers_before"].items():
        torch.testing.assert_close(buffers[name].double(), value.double(), rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("backend", "convolution"), [("auto", "auto"), ("loop", "direct"), ("auto", "spectral")]
)
def test_outputs_losses_gradients_statistics(project, golden, backend, convolution):
    system = loaded(project, golden, temporal_backend=backend, convolution=convolution)
    run = project.run(system, *(golden[key].transpose(0, 1) for key in ("warmup", "x", "y")))
    run.terms["loss"].backward()
    assert project.error(run.heatmaps, golden["out"]) < TOLERANCE
    assert project.error(run.coordinates, golden["coordinates"]) < TOLERANCE
    assert project.error(run.targets, golden["y_gauss"]) < TOLERANCE
    for key in ("norm", "reg", "loss"):
        assert project.error(run.terms[key], golden[key]) < TOLERANCE, key
    if golden["spike_reg"] is not None:
        assert project.error(run.terms["spike_reg"], golden["spike_reg"]) < TOLERANCE
        assert project.error(run.activities, torch.stack(golden["activity"])) < TOLERANCE
    buffers = dict(system.named_buffers())
    for name, value in golden["buffers_after"].items():
        assert project.error(buffers[name], value) < TOLERANCE, name
    actual = {name: p.grad for name, p in system.named_parameters() if p.grad is not None}
    assert_same_gradients(project, actual, golden["grads"], tied="weight_sharing" in golden["kw"])


def test_the_oracle_agrees_with_the_published_numbers(project, golden):
    system = loaded(project, golden)
    parameters = dict(system.named_parameters())
    run = reference_run(
        system["net"].config,
        parameters,
        dict(system.named_buffers()),
        *(golden[key].transpose(0, 1) for key in ("warmup", "x", "y")),
    )
    run.terms["loss"].backward()
    assert project.error(run.heatmaps, golden["out"]) < TOLERANCE
    assert project.error(run.coordinates, golden["coordinates"]) < TOLERANCE
    for key in ("norm", "reg", "loss"):
        assert project.error(run.terms[key], golden[key]) < TOLERANCE, key
    for name, value in golden["buffers_after"].items():
        assert project.error(run.buffers[name], value) < TOLERANCE, name
    actual = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    assert_same_gradients(project, actual, golden["grads"], tied="weight_sharing" in golden["kw"])


def assert_same_gradients(project, actual, wanted, tied):
    """tied: a channel's time constants are one memory cell; the sum of their gradients counts."""
    assert set(actual) == set(wanted)
    if tied:
        actual, wanted = sum_over_layers(actual), sum_over_layers(wanted)
    for name, value in wanted.items():
        assert project.error(actual[name], value) < TOLERANCE, name


def sum_over_layers(gradients):
    summed = {}
    for name, value in gradients.items():
        if name.endswith("temporal.tau_mem_inv"):
            name = name.split(".spatiotemporal.")[0] + ".tau_mem_inv"
        summed[name] = summed.get(name, 0) + value
    return summed
