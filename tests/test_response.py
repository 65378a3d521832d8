"""Bands and pooling against their plain twins."""

import pytest
import torch
from torch.nn import functional as F

import pooling
import response
from config import Config
from model import SpatioTemporalModel
from pooling import average_pool, average_pool_and_mean, max_pool

CONFIG = dict(
    resolution=(52, 46), n_spatial_scales=1, n_angles=2, n_ratios=2, n_temporal_scales=3, dropout=0.0
)


@pytest.mark.parametrize("H, W", [(6, 8), (7, 9), (3, 2)])
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("channels", [3, 20])  # too few for the fast way, enough
@pytest.mark.parametrize("pool, plain", [(average_pool, F.avg_pool2d), (max_pool, F.max_pool2d)])
def test_pooling_is_torchs(monkeypatch, pool, plain, channels, rectify, H, W):
    monkeypatch.setattr(pooling, "BLOCK", 3 * H * W * channels)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(4, 2, H, W, channels, generator=generator, dtype=torch.float64).movedim(-1, -3)
    frames.requires_grad_()
    actual = pool(frames, rectify)
    wanted = plain(F.relu(frames).flatten(0, 1) if rectify else frames.flatten(0, 1), 2).unflatten(0, (4, 2))
    torch.testing.assert_close(actual, wanted, rtol=1e-15, atol=1e-15)
    probe = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    for got, gradient in zip(
        torch.autograd.grad(actual, frames, probe), torch.autograd.grad(wanted, frames, probe), strict=True
    ):
        torch.testing.assert_close(got, gradient, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("wanted", ["both", "pooled", "mean"])
@pytest.mark.parametrize("channels", [3, 20])
@pytest.mark.parametrize("H, W", [(6, 8), (7, 9)])
def test_the_mean_comes_with_the_pooling(channels, H, W, wanted):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(4, 2, H, W, channels, generator=generator, dtype=torch.float64).movedim(-1, -3)
    frames.requires_grad_()
    actual = average_pool_and_mean(frames)
    plain = F.avg_pool2d(frames.flatten(0, 1), 2).unflatten(0, (4, 2)), frames.mean((-3, -2, -1))
    chosen = slice(None) if wanted == "both" else slice(0, 1) if wanted == "pooled" else slice(1, 2)
    actual, plain = actual[chosen], plain[chosen]
    torch.testing.assert_close(actual, plain, rtol=1e-15, atol=1e-15)
    probes = [torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in plain]
    got, gradient = (torch.autograd.grad(outs, frames, probes) for outs in (actual, plain))
    torch.testing.assert_close(got, gradient, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("skips, normalisation", [(0, 0), (1, 1)])
@pytest.mark.parametrize("net", ["li", "lif", "ann"])
def test_bands_are_the_whole(project, monkeypatch, net, skips, normalisation):
    """Loss, states and gradients of a step whose first layer is computed in bands, and again in its backward
    pass, are those of the plain one, in which it is computed and kept as a whole."""
    options = CONFIG | {"net": net, "skip_connections": skips, "batch_normalization": normalisation}
    runs, bands = [], []
    banded = response.banded_response
    monkeypatch.setattr(response, "BAND", 2**12)  # 6 bands of the 26 rows
    monkeypatch.setattr(response, "banded_response", lambda *args: bands.append(args[-1]) or banded(*args))
    for checkpointed in (0, 1):
        system = project.build(Config(**options, checkpoint_activations=checkpointed))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in system.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        warmup, x = ((torch.rand(3, 2, 2, 52, 46, generator=generator) < 0.2).double() for _ in range(2))
        run = project.run(system, warmup, x, 40 * torch.rand(3, 2, 3, 2, generator=generator).double())
        run.terms["loss"].backward()
        runs.append((run, {name: p.grad for name, p in system.named_parameters()}))
        assert bool(bands) == bool(checkpointed)
    assert 0 < bands[0] < 26 and bands[0] % 2 == 0
    (plain, wanted), (run, gradients) = runs
    assert project.error(run.heatmaps, plain.heatmaps) < 1e-12
    if net == "lif":
        assert plain.activities.min() > 0 and project.error(run.activities, plain.activities) < 1e-12
    for state, plain_state in zip(run.state.fields[0], plain.state.fields[0], strict=True):
        assert net == "ann" or project.error(state.v, plain_state.v) < 1e-12
    for name, gradient in wanted.items():
        if gradient is None:
            assert gradients[name] is None, name
        else:
            assert project.error(gradients[name], gradient) < 1e-10, name


def test_bands_keep_no_activations():
    """What the backward pass of a layer is handed: frames and weights per band, against all voltages."""
    model = SpatioTemporalModel(Config(**CONFIG))
    fields = [channel.spatiotemporal[0] for channel in model.channels]
    frames, weight = torch.rand(6, 1, 1, 2, 32, 32), fields[0].spatial.spatial.weight

    def kept(layer):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t
        ):
            out, *_ = layer()
        out.sum().backward()
        return sum(sizes.values())

    def plain():
        current = F.conv2d(frames.flatten(0, 2), weight, padding="same").unflatten(0, (6, 1, 1))
        return response.neurons_response(fields, current, None, average_pool)

    assert kept(plain) > 10 * kept(
        lambda: response.banded_response(fields, frames, weight, None, average_pool, 8)
    )
