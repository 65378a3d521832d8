"""Weights made of trainable fields: what they are at the start, and that they stay in the theory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nrf.config import Config
from nrf.network.field_weights import FieldWeights
from nrf.network.model import SpatioTemporalModel
from nrf.theory.affine_gaussian import affine_kernels, field_from_axes
from nrf.theory.receptive_fields import (
    DERIVATIVES,
    KERNEL_SIZES,
    SIGMA_RANGE,
    bank_layout,
    bank_weights,
    derivative_index,
    spatial_kernels,
    spatial_parameters,
)
from nrf.training.module import ShapesModel

TINY = dict(
    resolution=(32, 48),
    n_spatial_scales=2,
    n_angles=2,
    n_ratios=2,
    n_temporal_scales=2,
    dropout=0.0,
    receptive_fields="exact",
)
ROWS = spatial_parameters(2, 2, 2, family="exact")


def field_weights(size=7, out_channels=24, in_channels=24):
    return FieldWeights(ROWS, size, *bank_layout(len(ROWS), out_channels, in_channels, "exact"))


def network(**settings):
    torch.manual_seed(0)
    return SpatioTemporalModel(Config(**TINY | settings))


def events(T=4):
    return (torch.rand(T, 2, 2, 32, 48, generator=torch.Generator().manual_seed(1)) < 0.2).to(torch.uint8)


@pytest.mark.parametrize("size", KERNEL_SIZES)
@pytest.mark.parametrize("out_channels, in_channels", [(24, 2), (24, 24), (3, 24)])
def test_weights_start_as_those_of_the_exact_bank(size, out_channels, in_channels):
    layout = bank_layout(len(ROWS), out_channels, in_channels, "exact")
    wanted = bank_weights(spatial_kernels(ROWS, size, "exact"), *layout)
    weight = FieldWeights(ROWS, size, *layout).weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", ["li", "lif", "ann"])
@pytest.mark.parametrize("options", [{}, {"weight_sharing": 0}, {"separate_spatial_channels": 1}])
def test_the_network_starts_as_with_free_weights(net, options):
    trained, free = (network(net=net, train_receptive_fields=flag, **options) for flag in (1, 0))
    assert torch.equal(trained.classifier[0].weight, free.classifier[0].weight)  # and draws the same numbers
    response, wanted = trained(events()).heatmaps, free(events()).heatmaps
    assert wanted.std() > 0 or net == "lif"
    if net != "lif":  # where a rounding can make a spike
        torch.testing.assert_close(
            response, wanted, rtol=1e-3, atol=1e-4 * float(wanted.detach().abs().max())
        )


def test_parameters_are_few_and_named():
    trained, free = (network(train_receptive_fields=flag) for flag in (1, 0))
    prefix = "channels.0.spatiotemporal.1.spatial.spatial."
    names = {name.removeprefix(prefix) for name in trained.state_dict() if name.startswith(prefix)}
    assert names == {"sigma_logit", "phi_rad", "amplitude"}
    counts = [sum(p.numel() for p in net.parameters()) for net in (trained, free)]
    assert counts[0] < counts[1] / 10
    other = network(train_receptive_fields=1, net="li")
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1)
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other(events()).heatmaps, trained(events()).heatmaps)


def test_gradients_are_finite_differences():
    weights = FieldWeights(ROWS[:4], 5, *bank_layout(4, 2, 4, "exact")).double()
    probe = torch.rand(2, 4, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def total(sigma_logit, phi_rad, amplitude):
        parameters = {"sigma_logit": sigma_logit, "phi_rad": phi_rad, "amplitude": amplitude}
        for name, value in parameters.items():
            delattr(weights, name)
            setattr(weights, name, value)
        return (weights.weight * probe).sum()

    values = [p.detach().clone().requires_grad_() for p in weights.parameters()]
    for name in ("sigma_logit", "phi_rad", "amplitude"):
        delattr(weights, name)
        setattr(weights, name, None)
    assert torch.autograd.gradcheck(total, values, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_kernels_stay_gaussian_derivatives_through_training(autocast):
    net = network(train_receptive_fields=1, net="li")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            heatmaps = net(events()).heatmaps
        (heatmaps.float() - 1).square().mean().backward()
        optimizer.step()
    for layer, size in zip(net.channels[0].spatiotemporal, KERNEL_SIZES, strict=True):
        weights = layer.spatial.spatial
        for name in ("sigma_logit", "phi_rad", "amplitude"):
            parameter = getattr(weights, name)
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0
        fields = field_from_axes(*weights.sigma.unbind(-1), weights.phi_rad.double())
        kernels = affine_kernels(fields, DERIVATIVES, size)[torch.arange(24), derivative_index(ROWS)]
        wanted = weights.amplitude[..., None, None] * kernels[weights.field]
        torch.testing.assert_close(weights.weight, wanted.float(), rtol=1e-5, atol=1e-6)
        constants = weights.weight.sum((-2, -1))[:, (ROWS[:, 3:].sum(1) > 0)[: weights.weight.shape[1]]]
        if weights.weight.shape[1] == 24:  # field i on input i: derivatives still answer no constant
            assert constants.abs().max() < 1e-5
    moved = [name for name, p in net.named_parameters() if not torch.equal(p, before[name])]
    assert {name.split(".")[-1] for name in moved} >= {"sigma_logit", "phi_rad", "amplitude"}


@pytest.mark.parametrize("size", KERNEL_SIZES)
def test_deviations_stay_within_what_the_kernel_holds(size):
    weights = field_weights(size)
    for logit in (-50.0, 50.0):
        with torch.no_grad():
            weights.sigma_logit.fill_(logit)
        bound = SIGMA_RANGE[0] if logit < 0 else SIGMA_RANGE[1] * size
        torch.testing.assert_close(weights.sigma, torch.full((24, 2), bound, dtype=torch.float64))
        assert weights.weight.isfinite().all()
    assert field_weights(size).sigma.min() > SIGMA_RANGE[0]
    assert field_weights(size).sigma.max() < SIGMA_RANGE[1] * size


def test_weights_move_between_dtypes():
    weights = field_weights().double()
    before = weights.weight
    assert before.dtype == torch.float64 and weights.float().weight.dtype == torch.float32
    half = weights.to(torch.bfloat16)
    torch.testing.assert_close(half.weight.double(), before, rtol=0.1, atol=0.02)


class NoFloat64(TorchDispatchMode):
    """Apple's GPUs, faked on another device: what makes a float64 tensor there fails as on a Mac."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
                assert tensor.dtype != torch.float64, f"{function} makes a float64 tensor there"
        return out


@pytest.mark.parametrize("net", ["li", "lif", "ann"])
def test_nothing_is_float64_on_apples_gpus(net, monkeypatch):
    settings = {
        "receptive_fields": "exact",
        "train_receptive_fields": 1,
        "n_spatial_scales": 1,
        "n_angles": 1,
    }
    model = ShapesModel(**settings, net=net, n_ratios=1, resolution=(32, 32), temporal_backend="loop")
    monkeypatch.setattr("nrf.network.field_weights.NO_FLOAT64", ("cuda",))
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, NoFloat64():
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in list(tensors.items()):
                    if tensor is not None:
                        there = fake.from_tensor(tensor.detach()).to("cuda")
                        parameter = isinstance(tensor, torch.nn.Parameter)
                        tensors[name] = torch.nn.Parameter(there) if parameter else there
        tracking = model(torch.zeros(3, 1, 2, 32, 32, device="cuda"))
        labels_px = torch.zeros(3, 1, 3, 2, device="cuda")
        terms, error_px, _ = model.terms(tracking, labels_px)
        assert terms["loss"].device.type == "cuda" and terms["loss"].requires_grad
        with pytest.raises(AssertionError, match="float64 tensor there"):
            error_px.double()
