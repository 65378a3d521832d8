"""What `ShapesModel` reports of a step besides its loss: logs, validation, pictures, a loss not finite."""

import dataclasses
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from nrf.config import Config
from nrf.data.dataset import EventBatch
from nrf.training import module
from nrf.training.callbacks import PICTURE_EVERY
from nrf.training.module import ShapesModel, TrackingState
from nrf.training.persistence import TrainingError

T, B, H, W = 3, 2, 32, 48
TINY = dict(
    timesteps=T,
    resolution=(H, W),
    n_spatial_scales=1,
    n_angles=2,
    n_ratios=2,
    n_temporal_scales=2,
    dropout=0.0,
    regularization_scale=0.2,
    regularization_activity_mean=0.07,
    regularization_activity_scale=0.3,
)


def built(**settings):
    torch.manual_seed(0)
    model = ShapesModel(**dataclasses.asdict(Config(**TINY | settings))).double()
    with torch.no_grad():
        for name, p in model.named_parameters():  # LIF fires
            if name.endswith("spatial.weight"):
                p.add_(4 * torch.randn_like(p) / p[0].numel() ** 0.5)
    return model


def batch(config, seed=0, size=B):
    generator = torch.Generator().manual_seed(seed)
    cells = 2 * T * 2 * H * W
    events = [
        torch.randperm(cells, generator=generator)[: cells // 10].sort().values.int() for _ in range(size)
    ]
    labels = torch.rand(size, T, config.n_classes, 2, generator=generator).double() * torch.tensor([H, W])
    counts = torch.tensor([len(own) for own in events])
    return EventBatch(torch.cat(events), counts, labels)


def logged(method, *arguments):
    """What a step returns, and what it logs: value and options by tag."""
    model, calls = method.__self__, {}

    def log(name, value, **options):
        assert name not in calls
        calls[name] = value, options

    def log_dict(values, **options):
        for name, value in values.items():
            log(name, value, **options)

    with mock.patch.multiple(model, log=log, log_dict=log_dict):
        return method(*arguments), calls


@pytest.mark.parametrize("net", ["li", "lif", "ann"])
def test_a_training_step_logs_its_terms_once_each(net):
    model = built(net=net)
    result, calls = logged(model.training_step, batch(model.config), 0)
    tracking, _, labels_px = model.track(batch(model.config))
    terms, error_px, _ = model.terms(tracking, labels_px)
    wanted = {f"train/{name}": value for name, value in terms.items()}
    wanted["train/loss"] = wanted["loss"] = terms["norm"] + terms["reg"] + terms.get("spike_reg", 0)
    wanted["train/error_px"] = error_px.mean()
    wanted["train/out/2"] = tracking.heatmaps.mean()
    if net == "lif":
        assert tracking.activities.min() > 0 and terms["spike_reg"] > 0
        wanted |= {f"train/out/{k}": tracking.activities[k] for k in range(2)}
    assert set(calls) == set(wanted) and ("spike_reg" in terms) == (net == "lif")
    for tag, value in wanted.items():
        assert torch.equal(calls[tag][0], value), tag
        size = {} if tag == "loss" or tag.startswith("train/out") else {"batch_size": B}
        bar = {"prog_bar": True} if tag in ("loss", "train/error_px") else {}
        assert calls[tag][1] == size | bar | ({"logger": False} if tag == "loss" else {}), tag
    assert torch.equal(result["loss"], wanted["loss"]) and result["loss"].requires_grad


@pytest.mark.parametrize("step, shown", [(0, True), (1, False), (PICTURE_EVERY, True)])
def test_a_picture_is_handed_over_now_and_then(monkeypatch, step, shown):
    model = built()
    monkeypatch.setattr(ShapesModel, "global_step", step)
    result, _ = logged(model.training_step, batch(model.config), 0)
    assert set(result) == {"loss", "panel"} if shown else {"loss"}
    if shown:
        tracking, frames, labels_px = model.track(batch(model.config))
        targets = model.terms(tracking, labels_px)[-1]
        wanted = frames[:, 0].sum((0, 1)), tracking.heatmaps[-1, 0], targets[-1, 0]
        assert all(torch.equal(a, b) for a, b in zip(result["panel"], wanted, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("callback", [None, SimpleNamespace(dirpath="kept/here")])
def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch, value, callback):
    model = built()
    model._trainer = SimpleNamespace(checkpoint_callback=callback)
    monkeypatch.setattr(ShapesModel, "global_step", 7)
    monkeypatch.setattr(module, "coordinate_distance", lambda *_: torch.tensor(value))
    monkeypatch.setattr(module, "diverged", lambda *arguments: repr(arguments))
    with pytest.raises(TrainingError) as error:
        logged(model.training_step, batch(model.config), 0)
    assert str(error.value) == repr((f"the loss is {value}", 7, callback and callback.dirpath))


@pytest.mark.parametrize("net, n_classes", [("li", 3), ("lif", 3), ("li", 2), ("ann", 1)])
def test_validation_averages_over_recordings(net, n_classes):
    """Batches of 2 and 1, weighted so; by shape, GERD's names or numbers; hp_metric without spike_reg."""
    model = built(net=net, n_classes=n_classes).eval()
    model.on_validation_epoch_start()
    sums, shapes = {}, {3: ["circle", "square", "triangle"], 2: ["0", "1"], 1: []}[n_classes]
    for i, size in enumerate((2, 1)):
        data = batch(model.config, i, size)
        shown, calls = logged(model.validation_step, data, i)
        assert bool(shown) == (i == 0)
        tracking, frames, labels_px = model.track(data)
        terms, error_px, targets = model.terms(tracking, labels_px)
        own = {f"val/{name}": value for name, value in terms.items()} | {"val/error_px": error_px.mean()}
        own |= {f"val/error_px/{shape}": error for shape, error in zip(shapes, error_px, strict=bool(shapes))}
        own["hp_metric"] = terms["norm"] + terms["reg"]
        sums = {tag: sums.get(tag, 0) + size * value for tag, value in own.items()}
        assert set(calls) == set(own)
        for tag, (metric, options) in calls.items():
            assert metric.compute() == pytest.approx(sums[tag].item() / (2 + i), rel=1e-12), tag
            bar = tag == "val/error_px"
            assert options == {"on_step": False, "on_epoch": True, "prog_bar": bar, "batch_size": size}, tag
        if i == 0:
            wanted = frames[:, 0].sum((0, 1)), tracking.heatmaps[-1, 0], targets[-1, 0]
            assert all(torch.equal(a, b) for a, b in zip(shown["panel"], wanted, strict=True))
    assert all(metric.compute().dtype == torch.float64 for metric, _ in calls.values())


@pytest.mark.parametrize("net", ["li", "lif"])
def test_an_empty_share_takes_part_in_the_sums_and_counts_nothing(monkeypatch, net):
    model, sums, means = built(net=net).eval(), [], []
    monkeypatch.setattr(module, "sum_of_all", lambda x: sums.append(x) or x)
    monkeypatch.setattr(module, "mean_of_all", lambda x, n: means.append((x, n)) or x)
    logged(model.validation_step, batch(model.config), 0)
    model.terms(*model.track(batch(model.config))[::2])
    shapes = [[x.shape for x in sums[:1]], [(x.shape, n) for x, n in means[:1]]]
    before = {name: metric.compute() for name, metric in model.validation.items()}
    sums.clear(), means.clear()
    none = torch.empty(0, dtype=torch.int32)
    shown, calls = logged(model.validation_step, EventBatch(none, none.long(), torch.empty(0, 0, 0, 2)), 0)
    assert shown is None and {name: metric.compute() for name, metric in model.validation.items()} == before
    assert [x.shape for x in sums] == shapes[0] and not sum(sums)
    assert [x.shape for x, _ in means] == [shape for shape, _ in shapes[1]] and all(n == 0 for _, n in means)
    assert bool(means) == (net == "lif") and shapes[1] == ([((2,), B)] if means else [])
    assert all(options["batch_size"] == 1 for _, options in calls.values())


def test_state_carries_over_from_chunk_to_chunk():
    """Positions, too: dsntli remembers."""
    model = built()
    frames = (torch.rand(7, B, 2, H, W, generator=torch.Generator().manual_seed(0)) < 0.1).to(torch.uint8)
    whole = model(frames)
    first = model(frames[:3])
    second = model(frames[3:], first.state)
    for name in ("heatmaps", "coordinates"):
        chunks = torch.cat([getattr(first, name), getattr(second, name)])
        torch.testing.assert_close(chunks, getattr(whole, name), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(second.state.coordinate, whole.state.coordinate, rtol=1e-10, atol=1e-12)
    assert torch.equal(model(frames, TrackingState(None, None)).coordinates, whole.coordinates)
    again = model(frames[:3], TrackingState(first.state.network, None))
    assert not torch.allclose(again.coordinates, first.coordinates)


def test_heat_maps_are_rectified_in_float32_at_least():
    model = built(net="ann").float()  # whose read-out responds in bfloat16
    frames = torch.zeros(T, 1, 2, H, W)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(frames).heatmaps.dtype == torch.float32
    assert model.double()(frames).heatmaps.dtype == torch.float64


@pytest.mark.parametrize("skips", [0, 1])
def test_what_no_loss_reaches_is_frozen(skips):
    model = built(skip_connections=skips)
    model.coordinate.li_tm.requires_grad_(False)
    model.setup("fit")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    unused = {name for name, _ in model.named_parameters() if name.endswith("skip_weight")}
    assert unused and frozen == {"coordinate.li_tm"} | (set() if skips else unused)


def test_settings_are_kept_with_the_weights():
    config = Config(**TINY)
    assert dict(built().hparams) == dataclasses.asdict(config) and built().config == config


def test_of_several_processes_the_mean_is_logged(monkeypatch):
    """Of every number, in one sum; each trains on its own loss."""
    model = built()
    _, own = logged(model.training_step, batch(model.config), 0)
    monkeypatch.setattr(module, "n_processes", lambda: 2)
    monkeypatch.setattr(module, "sum_of_all", lambda x: x + 12 if x.dim() else x)
    result, calls = logged(model.training_step, batch(model.config), 0)
    assert torch.equal(result["loss"], own["train/loss"][0]) and calls.keys() == own.keys()
    for tag in ("train/loss", "train/norm", "train/reg", "train/error_px", "loss"):
        assert calls[tag][0].item() == pytest.approx(own[tag][0].item() / 2 + 6, rel=1e-6), tag


def test_on_a_gpu_the_loss_is_checked_a_step_later(monkeypatch):
    """What a GPU is asked for, by a stand-in: the copy is pinned, and waited for only when it is read."""
    done = []

    class Event:
        def record(self):
            done.append("record")

        def synchronize(self):
            done.append("wait")

    class Loss:
        is_cuda = True

        def __init__(self, value):
            self.value = value

        def detach(self):
            return self.value

    class Pinned:
        def copy_(self, value, non_blocking):
            assert non_blocking
            return torch.tensor(value)

    def empty(shape, pin_memory):
        assert shape == () and pin_memory
        return Pinned()

    stand_in = SimpleNamespace(empty=empty, cuda=SimpleNamespace(Event=Event))
    model, found = built(), []
    with monkeypatch.context() as patch:
        patch.setattr(module, "torch", stand_in)
        for step, value in enumerate((3.0, 4.0, 5.0), start=10):
            patch.setattr(ShapesModel, "global_step", step)
            found.append(model.late_loss(Loss(value)))
    assert found == [(10, 0.0), (10, 3.0), (11, 4.0)]
    assert done == ["record", "record", "wait", "record", "wait"]
    assert model.late_loss(torch.tensor(2.0)) == (model.global_step, 2.0)


def test_a_coordinate_that_does_not_say_is_warmed_up():
    """One of the user's own may remember."""
    model = built(net="ann", coordinate="dsnt")
    assert not model.needs_warmup()
    model.coordinate = torch.nn.Identity()
    assert model.needs_warmup()
