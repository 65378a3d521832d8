"""The model that trains, and the oracle, against the numbers of the published code, in float64."""

import pytest
import torch

from nrf.config import Config
from nrf.network.reference import reference_run
from nrf.training import module

NAMES = ("ann_mf", "li_bn", "li_separate", "li_shared", "li_skip", "lif_shared")
TOLERANCE = 1e-9
# the files' own settings, where they are not the defaults
SETTINGS = dict(
    timesteps=6,
    net="li",
    resolution=(64, 64),
    n_spatial_scales=2,
    n_temporal_scales=3,
    n_angles=2,
    n_ratios=2,
    dropout=0.0,
)


@pytest.fixture(scope="module", params=NAMES)
def published(request, golden):
    return torch.load(golden(f"{request.param}.pt"), weights_only=True)


def settings(published, **more):
    return Config(**{**SETTINGS, **published["kw"], **more})


def data(published):
    """Warm-up, frames and labels, time first."""
    return [published[key].transpose(0, 1) for key in ("warmup", "x", "y")]


def loaded(project, published, **more):
    """Our model with the parameters and buffers of the file."""
    model = project.build(settings(published, **more))
    names = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in (published["init_float32"] | published["buffers_before"]).items():
            names[name].copy_(value)
    return model


def test_names_initial_fields_and_statistics(project, published):
    model = project.build(settings(published))
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    assert set(parameters) == set(published["init_float32"])
    assert set(buffers) == set(published["buffers_before"])
    for name, value in published["init_float32"].items():
        if name != "net.classifier.0.weight":  # drawn
            assert project.error(parameters[name], value) < 1e-6, name
    for name, value in published["buffers_before"].items():
        torch.testing.assert_close(buffers[name].double(), value.double(), rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("backend", "convolution"), [("auto", "auto"), ("loop", "direct"), ("auto", "spectral")]
)
def test_outputs_losses_gradients_statistics(project, published, monkeypatch, backend, convolution):
    model = loaded(project, published, temporal_backend=backend, convolution=convolution)
    warmup, x, labels_px = data(published)
    if x.shape[2] > 2:  # each step's stacked frames are its own: no window of events has them
        monkeypatch.setattr(module, "dense_frames", lambda *_: (warmup, x))
    run = project.run(model, warmup, x, labels_px)
    run.terms["loss"].backward()
    assert project.error(run.heatmaps, published["out"]) < TOLERANCE
    assert project.error(run.coordinates, published["coordinates"]) < TOLERANCE
    assert project.error(model.terms(run.tracking, labels_px)[-1], published["y_gauss"]) < TOLERANCE
    for key in ("norm", "reg", "loss"):
        assert project.error(run.terms[key], published[key]) < TOLERANCE, key
    if published["spike_reg"] is not None:
        assert project.error(run.terms["spike_reg"], published["spike_reg"]) < TOLERANCE
        assert project.error(run.activities, torch.stack(published["activity"])) < TOLERANCE
    buffers = dict(model.named_buffers())
    for name, value in published["buffers_after"].items():
        assert project.error(buffers[name], value) < TOLERANCE, name
    actual = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same_gradients(project, actual, published["grads"], tied="weight_sharing" in published["kw"])


def test_the_oracle_agrees_with_the_published_numbers(project, published):
    model = loaded(project, published)
    parameters = dict(model.named_parameters())
    run = reference_run(model.config, parameters, dict(model.named_buffers()), *data(published))
    run.terms["loss"].backward()
    assert project.error(run.heatmaps, published["out"]) < TOLERANCE
    assert project.error(run.coordinates, published["coordinates"]) < TOLERANCE
    for key in ("norm", "reg", "loss"):
        assert project.error(run.terms[key], published[key]) < TOLERANCE, key
    for name, value in published["buffers_after"].items():
        assert project.error(run.buffers[name], value) < TOLERANCE, name
    actual = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    assert_same_gradients(project, actual, published["grads"], tied="weight_sharing" in published["kw"])


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
