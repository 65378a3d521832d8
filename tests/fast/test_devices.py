"""Forward pass, loss and backward pass on a device whose values nobody sees: torch's "meta", for a GPU.

Reading a value back (`.item()`, a branch on one, `nonzero`) raises there, and so does mixing with the CPU's
tensors; copies from the CPU, which wait for a GPU as well, are looked for.  The Triton kernels stand still.
"""

import contextlib
import dataclasses

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from benchmarks import step
from nrf.config import Config
from nrf.data.dataset import EventBatch
from nrf.fast import bands, pooling, scan
from nrf.network import layers
from nrf.training.module import ShapesModel

pytest.importorskip("triton", reason="Triton does not come with torch on this platform")
from nrf.fast import pooling_triton, scan_triton  # noqa: E402

KERNELS = {
    scan_triton: ("_integrate", "_integrate_backward", "_fire", "_fire_backward"),
    pooling_triton: ("_pool", "_pool_backward"),
}


class Kernel:
    """In place of a Triton kernel: counts its launches, and wants every tensor on the device."""

    def __init__(self):
        self.launches = 0

    def __getitem__(self, grid):
        def launch(*arguments, **_):
            self.launches += 1
            tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
            assert tensors and all(tensor.is_meta and tensor.is_contiguous() for tensor in tensors)

        return launch


class NoCopies(TorchFunctionMode):
    """Refuses what takes more than a number from the CPU to the device."""

    MAKERS = torch.tensor, torch.as_tensor, torch.Tensor.new_tensor
    MOVERS = torch.as_tensor, torch.Tensor.to, torch.Tensor.copy_
    INDEXERS = torch.Tensor.__getitem__, torch.Tensor.__setitem__

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [value for value in tree_leaves((args, kwargs)) if torch.is_tensor(value)]
        there = [value for value in (result, *given) if torch.is_tensor(value) and value.is_meta]
        from_cpu = [
            value for value in given if not value.is_meta and (value.dim() or function in self.MOVERS)
        ]
        index = args[1] if function in self.INDEXERS else ()
        lists = any(isinstance(part, list) for part in (index if isinstance(index, tuple) else (index,)))
        assert not there or not (from_cpu or lists or (function in self.MAKERS and not given)), function
        return result


@pytest.fixture
def gpu(monkeypatch):
    """Takes "meta" for a GPU; gives the kernels by name."""
    kernels = {}
    for module, names in KERNELS.items():
        for name in names:
            kernels[name] = Kernel()
            monkeypatch.setattr(module, name, kernels[name])
    monkeypatch.setattr(scan, "_kernels", lambda tensor: scan_triton)
    monkeypatch.setattr(pooling, "_kernels", lambda tensor: pooling_triton)
    monkeypatch.setattr(layers, "is_one_pass", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "device_of", contextlib.nullcontext)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # there is none for "meta"
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setitem(bands.BAND, "cpu", 2**14)
    monkeypatch.setattr(layers, "APART", 0)
    return kernels


def test_what_copies_is_found():
    x = torch.ones(3, device="meta")
    for copying in (
        lambda: torch.as_tensor((1, 2), device="meta"),
        lambda: torch.tensor(0.1).to("meta"),
        lambda: torch.as_tensor(torch.tensor(0.1), device="meta"),
        lambda: x.index_put_((torch.tensor([0, 1]),), x[:2]),
        lambda: x[[0, 1]],
        lambda: x.copy_(torch.zeros(3)),
    ):
        with pytest.raises(AssertionError), NoCopies():
            copying()


def test_what_reads_a_value_is_found():
    x = torch.ones(3, device="meta")
    for reading in (lambda: x.sum().item(), lambda: bool(x.any()), x.nonzero, lambda: x + torch.ones(3)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            reading()


@pytest.mark.parametrize("skips", [0, 1])
@pytest.mark.parametrize("sharing, normalisation", [(1, 0), (1, 1), (0, 1)])
@pytest.mark.parametrize(
    "net, coordinate", [("li", "dsntli"), ("lif", "dsntli"), ("ann", "dsnt"), ("li", "pixel")]
)
def test_a_step_reads_nothing_back(gpu, net, coordinate, sharing, normalisation, skips):
    sizes = dict(resolution=(52, 46), timesteps=3, batch_size=2, n_spatial_scales=1, n_temporal_scales=2)
    options = dict(weight_sharing=sharing, batch_normalization=normalisation, skip_connections=skips)
    config = Config(net=net, coordinate=coordinate, **sizes, **options)
    model = ShapesModel(**dataclasses.asdict(config)).to("meta")
    batch = EventBatch(torch.arange(9).int(), torch.tensor([4, 5]), 40 * torch.rand(2, 3, 3, 2))
    batch = EventBatch(*(part.to("meta") for part in batch))
    with NoCopies():
        tracking, _, labels_px = model.track(batch)
        terms, *_ = model.terms(tracking, labels_px)
        (terms["loss"] + terms.get("spike_reg", 0)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.is_meta for gradient in gradients.values())
    assert any(name.endswith("spatial.weight") for name in gradients)
    launched = {name for name, kernel in gpu.items() if kernel.launches}
    assert {"_pool", "_pool_backward"} < launched or net == "ann"
    assert ("_fire_backward" in launched) == (net == "lif")


@pytest.mark.parametrize("net", ["li", "lif", "ann"])
def test_both_sides_of_the_benchmark_run_there(gpu, net):
    config = step.config_of(net, "demo")
    (loss, gradients), (wanted, wanted_gradients) = (
        side(config, "meta")() for side in (step.our_step, step.their_step)
    )
    assert loss.is_meta and wanted.is_meta and gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient is None or gradient.shape == wanted_gradients[name].shape
