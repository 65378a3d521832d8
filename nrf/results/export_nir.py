"""Trained networks of spiking neurons as NIR graphs (Neuromorphic Intermediate Representation).

    frames -> pool -> per temporal channel k, layer l:  conv_k_l -> lif_k_l [-> pool_k_l] -> spikes_k

NIR has convolutions, average pooling, LIF neurons, scales (of skip connections) and sums of what arrives at a
node.  What it lacks is the named split, `LEFT_OUT`: it stays with whoever runs the graph, and is reported.
Times are in seconds; the network's step is `neurons.DT_S`.  Source: Pedersen et al. 2024.
"""

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nrf.config import Config
from nrf.network.neurons import DT_S, V_TH, LIFBoxFeedForwardState, lif_step
from nrf.training.module import ShapesModel

LEFT_OUT = (
    "max-pooling by 2",
    "mean over temporal channels",
    "read-out (transposed convolution, leaky integrator, ReLU)",
    "rectifier of the heat maps",
    "coordinates",
)


def problem(config: Config) -> str | None:
    """Why NIR cannot hold a network of these settings, None if it can."""
    if config.net != "lif":
        return f"net {config.net}: NIR has no ReLU, which follows its neurons; expected lif"
    if config.batch_normalization:
        return "batch_normalization 1: NIR has no normalisation"
    return None


def graph(model: ShapesModel) -> Any:
    """The nir.NIRGraph of a network of LIF neurons."""
    nir = importlib.import_module("nir")
    config, net = model.config, model.net
    size = (config.in_channels, *config.resolution)
    nodes, edges = {"frames": nir.Input({"input": _array(size)}), "pool": _pool(nir)}, [("frames", "pool")]
    for k, channel in enumerate(net.channels):
        before, (h, w) = "pool", (n // 2 for n in config.resolution)
        for l, layer in enumerate(channel.spatiotemporal):
            weight = layer.spatial.spatial.weight.detach().float()
            shape, same = (len(weight), h, w), weight.shape[-1] // 2
            conv, neuron = f"conv_{k}_{l}", f"lif_{k}_{l}"
            bias = torch.zeros(len(weight)).numpy()
            nodes[conv] = nir.Conv2d((h, w), weight.numpy(), 1, (same, same), 1, 1, bias)
            nodes[neuron] = _lif(nir, layer.temporal.tau_mem_inv.item(), shape)
            edges += [(before, conv), (conv, neuron)]
            if layer.skip_connection:  # what arrives at a node adds up
                skip, total = f"skip_{k}_{l}", f"sum_{k}_{l}"
                nodes[skip] = nir.Scale(torch.full(shape, layer.skip_weight.item()).numpy())
                nodes[total] = nir.Scale(torch.ones(shape).numpy())
                edges += [(conv, skip), (skip, total), (neuron, total)]
                neuron = total
            last = l == len(channel.spatiotemporal) - 1
            before = f"spikes_{k}" if last else f"pool_{k}_{l}"
            nodes[before] = nir.Output({"output": _array(shape)}) if last else _pool(nir)
            edges.append((neuron, before))
            h, w = h // 2, w // 2
    metadata = {"dt_s": DT_S, "left_out": "; ".join(LEFT_OUT)}
    return nir.NIRGraph(nodes, edges, metadata, type_check=False)


def write(model: ShapesModel) -> bytes:
    """The bytes of a .nir file."""
    nir = importlib.import_module("nir")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.nir"
        nir.write(path, graph(model))
        return path.read_bytes()


def run(content: bytes, frames: Tensor) -> dict[int, Tensor]:
    """What nirtorch makes of a .nir file's bytes: {k: spikes (T, B, N, H, W)} under frames (T, B, C, H, W).

    It runs graphs of one output, so each temporal channel is run by itself.
    """
    nir, nirtorch = importlib.import_module("nir"), importlib.import_module("nirtorch")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.nir"
        path.write_bytes(content)
        whole = nir.read(path, type_check=False)
    outputs = sorted(name for name in whole.nodes if name.startswith("spikes_"))
    found = {}
    for k in range(len(outputs)):
        own = {
            name: node
            for name, node in whole.nodes.items()
            if "_" not in name or int(name.split("_")[1]) == k
        }
        edges = [edge for edge in whole.edges if set(edge) <= own.keys()]
        part = nir.NIRGraph(own, edges, type_check=False)
        module = nirtorch.nir_to_torch(part, {nir.LIF: _Lif, nir.Scale: _Scale})
        state, spikes = None, []
        for frame in frames:
            out, state = module(frame, state)
            spikes.append(out)
        found[k] = torch.stack(spikes)
    return found


def spikes_of(model: ShapesModel, frames: Tensor) -> dict[int, Tensor]:
    """The same of the network itself, up to the split: what its last layers hand to max-pooling."""
    found = {}
    for k, channel in enumerate(model.net.channels):
        out = frames
        for layer in channel.spatiotemporal:
            pooled = nn.functional.avg_pool2d(out.flatten(0, 1), 2).unflatten(0, out.shape[:2])
            current = layer.spatial(pooled[:, None])[:, 0]
            out, _ = layer.temporal(current)
            out = out + layer.skip_weight * current if layer.skip_connection else out
        found[k] = out
    return found


class _Lif(nn.Module):
    """A NIR LIF node, stepped as the network's."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        tensors = {name: torch.as_tensor(getattr(node, name)) for name in ("tau", "r", "v_threshold")}
        self.decay = DT_S / tensors["tau"]
        self.r, self.v_th = tensors["r"], tensors["v_threshold"]

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = torch.zeros_like(x) if state is None else state
        z, (v,) = lif_step(self.v_th, 1.0, self.r * x, LIFBoxFeedForwardState(v), self.decay)
        return z, v


class _Scale(nn.Module):
    def __init__(self, node: Any) -> None:
        super().__init__()
        self.scale = torch.as_tensor(node.scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def _pool(nir: ModuleType) -> Any:
    return nir.AvgPool2d(_array((2, 2)), _array((2, 2)), _array((0, 0)))


def _lif(nir: ModuleType, rate_hz: float, shape: tuple[int, ...]) -> Any:
    full = [torch.full(shape, value).numpy() for value in (1 / rate_hz, 1.0, 0.0, V_TH)]
    return nir.LIF(*full)


def _array(values: Sequence[int]) -> np.ndarray:
    return torch.tensor(values).numpy()
