"""The network against the oracle that walks Norse's cells, over a covering set of options."""

import dataclasses
import itertools
import random

import pytest
import torch

from nrf.config import Config
from nrf.data.dataset import EventBatch
from nrf.network.model import SpatioTemporalModel
from nrf.network.reference import reference_run
from nrf.training.module import ShapesModel

TINY = {"resolution": (32, 48), "n_spatial_scales": 1, "n_angles": 2, "n_ratios": 2, "dropout": 0.0}
# no two alike, and each large enough to count in the loss
WEIGHTS = {
    "regularization_scale": 0.2,
    "regularization_activity_mean": 0.07,
    "regularization_activity_scale": 0.3,
}
OPTIONS = {
    "net": ("li", "lif", "ann"),
    "weight_sharing": (1, 0),
    "batch_normalization": (0, 1),
    "skip_connections": (0, 1),
    "separate_spatial_channels": (0, 1),
    "frames": ((1, 0), (2, 0), (3, 1)),  # stacked, summed
    "init_scheme_spatial": ("rf", "uniform"),
    "init_scheme_temporal": ("rf", "uniform"),
    "coordinate": ("dsntli", "dsnt", "pixel"),
    "n_angles_grow": (0, 1),
    "n_classes": (3, 1, 2),
    "n_spatial_scales": (1, 2),
    "n_temporal_scales": (3, 1, 2),
    "temporal_backend": ("auto", "fused", "loop", "norse"),
    "convolution": ("direct", "spectral"),
    "receptive_fields": ("published", "norse-1.1.0", "exact"),
    "regularization": ("js", "kl", "var", "none"),
    "rectification": ("softmax", "sigmoid", "relu", "id"),
    "training": (True, False),
}
TOLERANCE = 1e-10


def possible(case):
    """Norse 1.1.0's own LIF has another surrogate gradient."""
    return not (case["net"] == "lif" and case["temporal_backend"] == "norse")


def covering_cases():
    """Few settings, such that any two values of any two options meet in one of them: greedy, repeatable."""
    draw = random.Random(0)
    pairs = set(itertools.combinations([(name, v) for name in OPTIONS for v in OPTIONS[name]], 2))
    missing = {pair for pair in pairs if pair[0][0] != pair[1][0]}
    missing.discard((("net", "lif"), ("temporal_backend", "norse")))
    cases = []
    while missing:
        seeds = sorted(missing, key=repr)
        best, best_pairs = None, set()
        for _ in range(40):
            case = {name: draw.choice(values) for name, values in OPTIONS.items()} | dict(draw.choice(seeds))
            met = missing & set(itertools.combinations(case.items(), 2))
            if possible(case) and len(met) > len(best_pairs):
                best, best_pairs = case, met
        if best:
            cases.append(best)
            missing -= best_pairs
    return cases


def config_of(case, **more):
    case = {name: value for name, value in case.items() if name not in ("frames", "training")}
    return Config(**{**TINY, **WEIGHTS, **case, **more})


def events(config, T, B=2, seed=0, density=0.1):
    """Frames (T, B, C, H, W) uint8."""
    shape = (T, B, config.in_channels, *config.resolution)
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density).to(torch.uint8)


def window(config, B=2, T=4):
    """Both halves of a window, each (T + stack_frames - 1, B, 2, H, W), and its labels."""
    raw = Config(resolution=config.resolution)
    halves = [events(raw, T + config.stack_frames - 1, B, seed) for seed in range(2)]
    return *halves, labels(config, T, B)


def stacked(config, frames):
    """Steps (T, B, C, H, W) as the network sees them, of frames (T + stack_frames - 1, B, 2, H, W)."""
    seen = frames.unfold(0, config.stack_frames, 1).movedim(-1, 2)
    return seen.sum(2) if config.sum_frames else seen.flatten(2, 3)


def labels(config, T, B=2):
    """Positions (T, B, N, 2) in pixels."""
    drawn = torch.rand(T, B, config.n_classes, 2, generator=torch.Generator().manual_seed(7))
    return drawn.double() * torch.tensor(config.resolution, dtype=torch.float64)


def lively(model):
    """Weights for which maps and gradients are not mostly zero: outputs that differ, LIF that fires."""
    generator = torch.Generator().manual_seed(3)
    gain = 4 if model.config.net == "lif" else 1
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("spatial.weight", "classifier.0.weight")):
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.add_(gain * noise / p[0].numel() ** 0.5)
            elif ".norm." in name or name.endswith("skip_weight"):
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def assert_equals_oracle(project, config, training=True, B=2):
    model = lively(project.build(config)).train(training)
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    *halves, positions = window(config, B, config.timesteps)
    warmup, x = (stacked(config, half) for half in halves)
    wanted = reference_run(config, parameters, buffers, warmup, x, positions, training)
    wanted_gradients = gradients(wanted.terms["loss"], parameters)
    actual = project.run(model, *halves, positions)

    assert project.error(actual.heatmaps, wanted.heatmaps) < TOLERANCE
    assert project.error(actual.coordinates, wanted.coordinates) < TOLERANCE
    assert actual.terms.keys() == wanted.terms.keys()
    for name, term in wanted.terms.items():
        assert project.error(actual.terms[name], term) < TOLERANCE, name
    resolution = torch.tensor(config.resolution)
    off_px = (wanted.coordinates + 1) / 2 * resolution - positions
    assert project.error(actual.error_px, off_px.square().sum(-1).sqrt().mean()) < TOLERANCE
    if config.net == "lif":
        assert wanted.activities.abs().min() > 0.001  # it fires
        assert project.error(actual.activities, wanted.activities) < TOLERANCE
    assert wanted.heatmaps.std() > 0
    for name, buffer in wanted.buffers.items():
        assert project.error(buffers[name], buffer) < TOLERANCE, name
    actual_gradients = gradients(actual.terms["loss"], parameters)
    assert_same_gradients(project, actual_gradients, wanted_gradients)


def gradients(loss, parameters):
    return dict(
        zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True)
    )


def assert_same_gradients(project, actual, wanted):
    unused = {name for name, value in wanted.items() if value is None}
    assert {name for name, value in actual.items() if value is None} == unused
    for name in wanted.keys() - unused:
        assert wanted[name].abs().max() > 0, name  # or there is nothing to compare
        assert project.error(actual[name], wanted[name]) < TOLERANCE, name


def short_name(case):
    stack, summed = case["frames"]
    return f"{case['net']}-{case['temporal_backend']}-share{case['weight_sharing']}-x{stack}{'S' * summed}"


@pytest.mark.parametrize("case", covering_cases(), ids=short_name)
def test_equals_the_oracle(project, case):
    stack, summed = case["frames"]
    config = config_of(case, stack_frames=stack, sum_frames=summed, timesteps=4)
    assert_equals_oracle(project, config, case["training"])


@pytest.mark.parametrize("net", OPTIONS["net"])
@pytest.mark.parametrize("T, B", [(1, 2), (4, 1), (1, 1)])
def test_equals_the_oracle_for_one_step_and_one_recording(project, net, T, B):
    config = config_of({"net": net, "n_temporal_scales": 2, "regularization": "js"}, timesteps=T)
    assert_equals_oracle(project, config, B=B)


@pytest.mark.parametrize("sharing", [1, 0])
@pytest.mark.parametrize("skips", [1, 0])
@pytest.mark.parametrize("training", [True, False])
def test_relu_channels_computed_once_equal_all_of_them(project, sharing, skips, training):
    """The oracle walks every channel; statistics of shared batch norm take an update from each."""
    case = {"net": "ann", "n_temporal_scales": 3, "batch_normalization": 1, "coordinate": "dsnt"}
    config = config_of(case, timesteps=4, weight_sharing=sharing, skip_connections=skips)
    assert_equals_oracle(project, config, training)


def test_separate_channels_take_the_fields_of_their_scale():
    config = config_of({"separate_spatial_channels": 1, "n_spatial_scales": 2, "n_temporal_scales": 2})
    whole = SpatioTemporalModel(config_of({"n_spatial_scales": 2}))
    fields = whole.channels[0].spatiotemporal[0].spatial.spatial.weight
    parts = [
        channel.spatiotemporal[0].spatial.spatial.weight for channel in SpatioTemporalModel(config).channels
    ]
    assert len(parts) == 4 and parts[0] is parts[2] and parts[1] is parts[3]  # tau-major, shared over tau
    rows = sorted(row.tolist() for row in fields[:, 0].flatten(1))
    assert sorted(row.tolist() for part in parts[:2] for row in part[:, 0].flatten(1)) == rows


@pytest.mark.parametrize("net", OPTIONS["net"])
@pytest.mark.parametrize("sharing", [1, 0])
def test_two_chunks_are_the_whole(project, net, sharing):
    case = {"net": net, "weight_sharing": sharing, "batch_normalization": 1, "skip_connections": 1}
    one, other = (lively(project.build(config_of(case, n_temporal_scales=2))).net for _ in range(2))
    x = events(one.config, 7)
    whole = one(x)
    first = other(x[:3])
    second = other(x[3:], first.state)
    repeated = other.eval()(x[3:], first.state)
    again = other(x[3:], first.state)
    assert torch.equal(repeated.heatmaps, again.heatmaps)  # a state handed in is left as it was
    chunks = torch.cat([first.heatmaps, second.heatmaps])
    assert project.error(chunks, whole.heatmaps) < TOLERANCE
    activities = (3 * first.activities + 4 * second.activities) / 7
    torch.testing.assert_close(activities, whole.activities, rtol=TOLERANCE, atol=1e-14)
    buffers = dict(other.named_buffers())
    for name, buffer in one.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=TOLERANCE, atol=1e-14)
    if net != "ann":
        for actual, wanted in zip(second.state.fields[0], whole.state.fields[0], strict=True):
            assert project.error(actual.v, wanted.v) < TOLERANCE
        assert project.error(second.state.classifier.v, whole.state.classifier.v) < TOLERANCE


@pytest.mark.parametrize("net", ["li", "lif"])
def test_warm_up_states_are_constants(project, net):
    model = lively(project.build(config_of({"net": net, "n_temporal_scales": 2})))
    with torch.no_grad():
        state = model.net(events(model.config, 3)).state
    voltages = [layer.v for layer in state.fields[0]] + [state.classifier.v]
    assert not any(v.requires_grad for v in voltages) and all(v.abs().max() > 0 for v in voltages)


# --- time constants of one memory cell ---


def time_constants(net, k):
    """The different parameters of temporal scale k, in the order of the network's parameters."""
    stride = len(net.channels) // net.config.n_temporal_scales
    fields = (f for c in net.channels[k * stride : (k + 1) * stride] for f in c.spatiotemporal)
    return list({id(f.temporal.tau_mem_inv): f.temporal.tau_mem_inv for f in fields}.values())


UNSHARED = {"weight_sharing": 0, "n_temporal_scales": 2, "init_scheme_spatial": "uniform"}


@pytest.mark.parametrize(
    "options, count",
    [
        ({"weight_sharing": 1}, 1),
        ({"weight_sharing": 1, "separate_spatial_channels": 1, "n_spatial_scales": 2}, 2),
        ({"weight_sharing": 0}, 3),
        ({"weight_sharing": 0, "separate_spatial_channels": 1, "n_spatial_scales": 2}, 6),
    ],
)
def test_one_adam_step_moves_a_time_constant_as_aliased_parameters_do(project, options, count):
    lr, weight_decay, eps = 4e-3, 1e-2, 1e-8
    config = config_of(UNSHARED | options, timesteps=4, lr=lr, weight_decay=weight_decay)
    model = lively(project.build(config))
    project.run(model, *window(config)).terms["loss"].backward()
    wanted = []
    for k in range(2):
        constants = time_constants(model.net, k)
        assert len(constants) == count
        tau = constants[0].item()
        for parameter in constants:  # first step of Adam: both moments are the gradient's own
            gradient = parameter.grad.item() + weight_decay * tau
            tau -= lr * gradient / (abs(gradient) + eps)
        wanted.append(tau)
    before = [time_constants(model.net, k)[0].item() for k in range(2)]
    (optimizer,), _ = model.configure_optimizers()
    optimizer.step()
    for k in range(2):
        moved = {parameter.item() for parameter in time_constants(model.net, k)}
        assert len(moved) == 1
        assert moved.pop() - before[k] == pytest.approx(wanted[k] - before[k], rel=1e-6)


def test_time_constants_stay_one_memory_cell(tmp_path):
    net = SpatioTemporalModel(config_of(UNSHARED))
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    loaded = SpatioTemporalModel(net.config)
    loaded.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assigned = SpatioTemporalModel(net.config)
    assigned.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), assign=True)
    for one in (net, loaded, assigned, net.double(), net.float(), net.to("cpu")):
        for k in range(2):
            constants = time_constants(one, k)
            with torch.no_grad():
                constants[1].add_(1.0)
            assert len(constants) == 3 and len({c.item() for c in constants}) == 1
        others = [c.item() for c in time_constants(one, 0)], [c.item() for c in time_constants(one, 1)]
        assert others[0] != others[1]  # scales stay apart
    assert time_constants(net, 0)[0].data_ptr() != net.classifier[1].tau_mem_inv.data_ptr()


# --- what comes in, what is refused, what is random ---


@pytest.mark.parametrize("resolution", [(15, 48), (48, 15), (8, 8)])
def test_a_field_too_small_is_refused(resolution):
    net = SpatioTemporalModel(config_of({}))
    with pytest.raises(
        ValueError, match=f"{resolution[0]} x {resolution[1]} pixels: expected .* at least 16 x 16"
    ):
        net(torch.zeros(2, 1, 2, *resolution))
    assert net(torch.zeros(2, 1, 2, 16, 16)).heatmaps.shape == (2, 1, 3, 5, 5)


@pytest.mark.parametrize(
    "options, wanted", [({}, 2), ({"stack_frames": 4}, 8), ({"stack_frames": 4, "sum_frames": 1}, 2)]
)
def test_other_channels_are_refused(options, wanted):
    net = SpatioTemporalModel(config_of(options))
    with pytest.raises(ValueError, match=f"frames of 3 channels, 32 x 48 pixels: expected {wanted} channels"):
        net(torch.zeros(2, 1, 3, 32, 48))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64])
def test_events_come_in_any_dtype(dtype):
    net = SpatioTemporalModel(config_of({}))
    x = events(net.config, 3)
    assert torch.equal(net(x.to(dtype)).heatmaps, net(x).heatmaps)


def test_maps_are_dropped_in_training_only(project):
    net = lively(project.build(config_of({"net": "ann", "dropout": 0.5, "n_classes": 2}))).net
    x = events(net.config, 6)
    kept = net.eval()(x).heatmaps
    assert torch.equal(net(x).heatmaps, kept)
    torch.manual_seed(0)
    dropped = net.train()(x).heatmaps
    fired = kept > 0
    assert torch.equal(dropped[~fired], kept[~fired])
    survived = dropped[fired] > 0
    assert 0.4 < survived.double().mean() < 0.6
    torch.testing.assert_close(dropped[fired][survived], 2 * kept[fired][survived], rtol=1e-12, atol=0)
    masks = dropped[:, 0, 0][:, (kept[:, 0, 0] > 0).all(0)] > 0
    assert masks.shape[1] > 3 and len(masks.unique(dim=0)) > 1  # a new mask every step


@pytest.mark.parametrize("net", OPTIONS["net"])
def test_autocast_keeps_states_in_float32(net):
    torch.manual_seed(0)
    model = SpatioTemporalModel(config_of({"net": net, "n_temporal_scales": 2, "batch_normalization": 1}))
    x = events(model.config, 4, density=0.3)
    exact = model(x).heatmaps
    with torch.autocast("cpu", torch.bfloat16):
        response = model(x)
        again = model(x, response.state)
    states = [layer for layer in (*response.state.fields[0], response.state.classifier) if layer is not None]
    assert len(states) == {"ann": 0, "li": 4, "lif": 4}[net]
    assert all(state.v.dtype == torch.float32 for state in states)
    assert torch.isfinite(again.heatmaps).all()
    if net != "lif":
        assert (response.heatmaps - exact).abs().max() < 0.05 * exact.abs().max()
    again.heatmaps.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert "skip_weight" in name or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("sharing, calls", [(1, 3), (0, 1)])
def test_initial_values(sharing, calls):
    torch.manual_seed(0)
    case = {"n_temporal_scales": 3, "init_scheme_temporal": "uniform", "batch_normalization": 1}
    net = SpatioTemporalModel(config_of(case, weight_sharing=sharing))
    rates = [time_constants(net, k)[0].item() for k in range(3)]
    assert rates[0] < max(rates) == net.classifier[1].tau_mem_inv.item()  # of uniform rates the first is any
    for field in (field for channel in net.channels for field in channel.spatiotemporal):
        assert field.skip_weight.item() == pytest.approx(0.9)
        norm = field.spatial.norm  # as if each channel had seen one frame of zeros
        assert norm.running_var.tolist() == pytest.approx([0.9**calls] * len(norm.running_var))
        assert norm.num_batches_tracked == calls


@pytest.mark.parametrize(
    "options, training, wanted",
    [
        ({"net": "ann", "coordinate": "dsnt"}, True, False),
        ({"net": "ann", "coordinate": "dsnt", "batch_normalization": 1}, False, False),
        ({"net": "ann", "coordinate": "dsnt", "batch_normalization": 1}, True, True),
        ({"net": "ann", "coordinate": "dsntli"}, True, True),
        ({"net": "li", "coordinate": "dsnt"}, True, True),
    ],
)
def test_a_warm_up_without_effect_is_left_out(monkeypatch, options, training, wanted):
    """Loss and running statistics are those with the warm-up, which is computed only where it matters."""
    config = Config(**TINY | options, timesteps=3)
    generator = torch.Generator().manual_seed(0)
    events = torch.randint(0, 6 * 2 * 32 * 48, (400,), generator=generator).unique().int()
    batch = EventBatch(events, torch.tensor([len(events)]), labels(config, 3, 1).transpose(0, 1))
    outcomes = []
    for always in (False, True):
        torch.manual_seed(0)
        model = ShapesModel(**dataclasses.asdict(config)).double().train(training)
        assert model.needs_warmup() == wanted
        calls = []
        model.net.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if always:
            monkeypatch.setattr(ShapesModel, "needs_warmup", lambda self: True)
        tracking, _, labels_px = model.track(batch)
        assert len(calls) == 1 + (wanted or always)
        outcomes.append([model.terms(tracking, labels_px)[0]["loss"], *model.buffers()])
    monkeypatch.undo()
    for plain, short in zip(*outcomes, strict=True):
        assert torch.equal(plain, short)


def test_compiled_normalisation_is_the_plain_one(project, monkeypatch):
    """Traced and differentiated by torch.compile; its last stage, the compiler, is left out for its time."""
    compiled, compile_ = [], torch.nn.Module.compile

    def trace(module):
        compiled.append(module)
        compile_(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    config = config_of({"batch_normalization": 1}, timesteps=4)
    outcomes = []
    for compiling in (False, True):
        model = lively(project.build(config))
        if compiling:
            model.net.compile_normalisation()
        run = project.run(model, *window(config))
        run.terms["loss"].backward()
        gradients_ = [p.grad for p in model.parameters() if p.grad is not None]
        outcomes.append([run.heatmaps, *model.buffers(), *gradients_])
    assert len(compiled) == 3
    for plain, traced in zip(*outcomes, strict=True):
        assert project.error(traced, plain) < TOLERANCE
