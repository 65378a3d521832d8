"""What a network costs on hardware that computes only where something happens, from its responses.

All counts are per frame (a step of 1 ms) of one recording, and of synapses: every weight between a cell and a
neuron.  Temporal channels have neurons, so synapses, of their own; networks without time constants have one
channel (FIDELITY 13).  Taps on the padding are no synapses.

dense MACs      a multiplication and addition for every synapse, whatever comes in, as a GPU computes them
events' ACs     an addition for every synapse of an event or a spike (0 or 1): the synaptic operations
                (SynOps) of neuromorphic hardware
graded MACs     a multiplication and addition for every synapse of a value that is neither 0 nor a spike
neurons         updated in each step besides: the leak of LI and LIF, the rectifier of ReLU

An event reaches the neurons of the next layer through the average pooling, whose 1/4 is part of the weight: a
synapse leads from each of the four cells below a pooled one.  Where more than a quarter of them are active
that costs more than the dense way.  Graded values, spikes with skip connections among them, are pooled before
they are multiplied: one MAC for the four.  Of four spikes in front of the read-out its max-pooling hands on
one.  Batch normalisation, and the mean over temporal channels, are part of the weights.  Pooling, soft-max
and coordinates are not counted.

Source: NeuroBench's synaptic operations (dense; effective MACs and ACs), Yik et al., Nature Communications
16, 1545, 2025.  Its counter sees what comes out of the pooling, multiples of 1/4, and so would take spikes
for graded values.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nrf.fast.pooling import average_pool, max_pool
from nrf.network.layers import layer_response
from nrf.network.model import NetworkState, SpatioTemporalModel
from nrf.system.markdown import markdown_table

COLUMNS = ("network", "initialisation", "dense MACs", "events' ACs", "graded MACs", "ACs + MACs", "neurons")


class Operations(NamedTuple):
    """Sums over frames of frames x recordings."""

    frames: int = 0
    dense: int = 0
    events: int = 0
    graded: int = 0
    neurons: int = 0

    def __add__(self, other: tuple) -> "Operations":
        return Operations(*(a + b for a, b in zip(self, other, strict=True)))


def reach(weight: Tensor, height: int, width: int) -> Tensor:
    """Synapses (h, w) of a cell in a "same" convolution with weights (N, C, k, k)."""
    ones, k = weight.new_ones(1, 1, height, width, dtype=torch.float64), weight.shape[-1]
    return len(weight) * F.conv2d(ones, ones.new_ones(1, 1, k, k), padding="same")[0, 0]


def synapses(
    sources: Tensor, weight: Tensor, pool: Callable[[Tensor], Tensor], binary: bool
) -> tuple[int, int]:
    """Dense operations of a convolution, and those of its sources (..., C, H, W) in front of the pooling."""
    pooled = pool(sources.double())
    per_cell = reach(weight, *pooled.shape[-2:])
    active = 4 * pooled if binary and pool is average_pool else pooled != 0
    return _sum(torch.ones_like(pooled) * per_cell), _sum(active * per_cell)


@torch.inference_mode()
def count(net: SpatioTemporalModel, frames: Tensor, state: NetworkState | None = None) -> Operations:
    """`Operations` of a `SpatioTemporalModel` on frames (T, B, C, H, W), from a state as it returns."""
    config, neuron = net.config, net.neuron
    spikes = neuron.spikes and not config.skip_connections
    binary = bool((frames <= 1).all())  # sums of frames are graded
    total = Operations(frames.shape[0] * frames.shape[1])
    same = not neuron.has_tau and not config.skip_connections
    groups = net.groups()
    for group, before in zip(groups, state.fields if state else [(None,) * 3] * len(groups), strict=True):
        channels = [net.channels[k] for k in (group[:1] if same else group)]
        out, pool, is_binary = frames.to(net.classifier[0].weight.dtype)[:, None], average_pool, binary
        layers = zip(*(channel.spatiotemporal for channel in channels), strict=True)
        for layer, layer_state in zip(layers, before, strict=True):
            weight = layer[0].spatial.spatial.weight
            times = len(channels) // out.shape[1]  # all channels see the events
            dense, sparse = (times * n for n in synapses(out, weight, pool, is_binary))
            out, *_ = layer_response(layer, pool(out), layer_state, None, len(group))  # T K B N h w
            total += Operations(0, dense, *((sparse, 0) if is_binary else (0, sparse)), out.numel())
            is_binary = spikes
        pooled = max_pool(out)
        fan_out = net.classifier[0].weight[0].numel()
        active = (pooled != 0).sum().item() * fan_out
        total += Operations(0, pooled.numel() * fan_out, *((active, 0) if spikes else (0, active)))
    h, w = (side + net.classifier[0].weight.shape[-1] - 1 for side in pooled.shape[-2:])
    return total + Operations(neurons=total.frames * config.n_classes * h * w)


def _sum(counts: Tensor) -> int:
    return round(counts.sum().item())


def operations_table(rows: Iterable[tuple[str, str | None, Operations]]) -> str:
    """The Markdown of (network, initialisation, Operations), per frame, in thousands."""
    lines = []
    for network, initialisation, sums in rows:
        dense, events, graded, neurons = (n / sums.frames / 1e3 for n in sums[1:])
        share = f"{events + graded:.1f} ({100 * (events + graded) / dense:.2g} %)"
        lines.append([network, initialisation, dense, events, graded, share, neurons])
    return markdown_table(COLUMNS, lines)
