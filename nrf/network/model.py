"""The paper's network, as its figure shows it; layers are in `layers.py`, neurons in `neurons.py`.

    events (T, B, C, H, W)
      per temporal channel, three times:  average-pool 2 -> [batch norm] -> convolution -> neuron [+ skip]
      max-pool 2 -> mean over temporal channels
      transposed convolution -> leaky integrator, rectified -> dropout
    heat maps (T, B, N, h, w)

The network is feed-forward in time, so spatial operators run once over all T * B frames and only the neurons
walk over time.  Temporal channels that share spatial weights run together, stacked on an axis K after
time.  Module and parameter names are the published ones.
Source: paper, Fig. 2 and Methods; FIDELITY 1-6, 13, 14.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nrf.config import Config, table
from nrf.fast.pooling import average_pool, max_pool
from nrf.network.field_weights import FieldWeights
from nrf.network.layers import (
    SpatialRF,
    SpatioTemporalRF,
    StepwiseBatchNorm2d,
    TemporalRF,
    layer_response,
)
from nrf.network.neurons import State, kind
from nrf.theory.receptive_fields import (
    FAMILIES,
    KERNEL_SIZES,
    SCHEMES,
    bank_layout,
    bank_weights,
    spatial_kernels,
    spatial_parameters,
    temporal_rates_hz,
)

table("receptive_fields", FAMILIES)
table("init_scheme_spatial", SCHEMES)
table("init_scheme_temporal", SCHEMES)
POOLING = 16  # pixels of the field per cell in front of the read-out, per axis


class NetworkState(NamedTuple):
    """What the network carries from one chunk of time to the next: states of `NEURONS`, None for ReLU."""

    fields: tuple  # per group of channels that run together, per layer: a state of (K, B, C, h, w)
    classifier: Any  # state of (B, N, h, w)


class Response(NamedTuple):
    heatmaps: Tensor  # (T, B, N, h, w), not rectified
    state: NetworkState
    activities: Tensor  # (channels,) of spiking neurons: mean per step and cell over the layers; else 0


class SpatioTemporalChannel(nn.Module):
    """The three layers of one temporal channel, and max-pooling."""

    spatiotemporal: Any  # a ModuleList of SpatioTemporalRFs; torch's type does not say of what

    def __init__(self, layers: Iterable[SpatioTemporalRF]) -> None:
        super().__init__()
        self.spatiotemporal = nn.ModuleList(layers)

    def forward(
        self, frames: Tensor, states: Sequence[State | None] = (None, None, None)
    ) -> tuple[Tensor, tuple[State | None, ...], Tensor]:
        """(T, B, C, H, W) and a state per layer to (T, B, N, H // 16, W // 16), states, activity (1,)."""
        out, states, activity = channels_response([self], average_pool(frames), states)
        return out[:, 0], states, activity


def channels_response(
    channels: Sequence[SpatioTemporalChannel],
    frames: Tensor,
    states: Sequence[State | None],
    count: int | None = None,
) -> tuple[Tensor, tuple[State | None, ...], Tensor]:
    """K channels that share their SpatialRFs, at once, on pooled frames (T, B, C, h, w).

    Returns (T, K, B, N, h // 8, w // 8), a state per layer, and each channel's activity (K,).  count: how
    many channels these stand for, K if None.
    """
    out, after, activities = frames[:, None], [], []  # T 1 B C h w
    layers = list(zip(*(channel.spatiotemporal for channel in channels), strict=True))
    pools = [average_pool] * (len(layers) - 1) + [max_pool]
    for layer, state, pool in zip(layers, states, pools, strict=True):
        out, state, activity = layer_response(layer, out, state, pool, count)  # T K B N h/2 w/2
        after.append(state)
        activities.append(activity)
    return out, tuple(after), torch.stack(activities).mean(0)


class SpatioTemporalModel(nn.Module):
    """All temporal channels, their mean, and the read-out.  See the module's docstring."""

    channels: Any  # a ModuleList of SpatioTemporalChannels
    classifier: Any  # a Sequential of transposed convolution, TemporalRF and dropout

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.neuron = config, kind(config.net)
        rates = temporal_rates_hz(config.n_temporal_scales, config.init_scheme_temporal)
        n_groups = config.n_spatial_scales if config.separate_spatial_channels else 1
        shared = (
            [spatial_layers(config, scale) for scale in range(n_groups)] if config.weight_sharing else None
        )
        self.channels = nn.ModuleList(
            spatiotemporal_channel(config, shared[scale] if shared else spatial_layers(config, scale), rate)
            for rate in rates
            for scale in range(n_groups)
        )
        self.classifier = nn.Sequential(
            nn.ConvTranspose2d(config.n_classes, config.n_classes, 5, bias=False),
            TemporalRF(self.neuron.read_out, rates.max().clone(), config.temporal_backend),
            nn.Dropout(config.dropout),
        )
        self._tie_time_constants()

    def fields(self, scale: int = 0) -> Tensor:
        """The receptive fields that the first channel of a spatial scale starts as: rows of a bank."""
        return field_rows(self.config, scale)

    def groups(self) -> list[list[int]]:
        """Indices of channels that share spatial weights and so run together."""
        n, stride = len(self.channels), len(self.channels) // self.config.n_temporal_scales
        if not self.config.weight_sharing:
            return [[k] for k in range(n)]
        return [list(range(scale, n, stride)) for scale in range(stride)]

    def forward(self, frames: Tensor, state: NetworkState | None = None) -> Response:
        """Heat maps of frames (T, B, C, H, W), any dtype, from a state, at rest if None.

        ValueError where a side is below 16 pixels, or C is not the configured number of channels.
        """
        *_, C, H, W = frames.shape
        if C != self.config.in_channels or min(H, W) < POOLING:
            raise ValueError(
                f"frames of {C} channels, {H} x {W} pixels: expected {self.config.in_channels} channels, "
                f"at least {POOLING} x {POOLING} pixels (four poolings by 2)"
            )
        frames = average_pool(frames.to(self.classifier[0].weight.dtype))  # T B C H/2 W/2
        frames = frames.movedim(-3, -1).contiguous().movedim(-1, -3)  # channels last in memory
        groups = self.groups()
        states = ((None,) * len(KERNEL_SIZES),) * len(groups) if state is None else state.fields
        total, after, activities = frames.new_zeros(()), [], frames.new_zeros(len(self.channels))
        for group, before in zip(groups, states, strict=True):
            # without a time constant, channels that share weights are one and the same (FIDELITY 13)
            same = not self.neuron.has_tau and not self.config.skip_connections
            channels = [self.channels[k] for k in (group[:1] if same else group)]
            out, group_state, activity = channels_response(channels, frames, before, len(group))
            total = total + out.sum(1) * (len(group) // len(channels))  # T B N H/16 W/16
            after.append(group_state)
            activities[group[0] :: len(self.channels) // len(group)] = activity.to(activities.dtype)
        convolution, neuron, dropout = self.classifier
        read = convolution((total / len(self.channels)).flatten(0, 1)).unflatten(0, frames.shape[:2])
        heatmaps, classifier = neuron(read, state and state.classifier)  # T B N H/16+4 W/16+4
        return Response(dropout(heatmaps), NetworkState(tuple(after), classifier), activities)

    def compile_normalisation(self) -> None:
        """Let torch.compile fuse batch normalisation, some ten passes over every layer's frames, into three:
        the one part left that is neither a scan, a convolution nor a pooling."""
        for module in self.modules():
            if isinstance(module, StepwiseBatchNorm2d):
                module.compile()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpatioTemporalModel":
        super()._apply(fn, recurse)
        self._tie_time_constants()
        return self

    def _tie_time_constants(self) -> None:
        """Time constants of one temporal scale that are parameters of their own are one memory cell (kept:
        FIDELITY 14), also after a move to another device or dtype."""
        if not self.neuron.has_tau:
            return
        stride = len(self.channels) // self.config.n_temporal_scales
        for first in range(0, len(self.channels), stride):
            fields = [field for c in self.channels[first : first + stride] for field in c.spatiotemporal]
            for field in fields[1:]:
                field.temporal.tau_mem_inv.data = fields[0].temporal.tau_mem_inv.data


def field_rows(config: Config, scale: int) -> Tensor:
    """The fields of a channel; those of one spatial scale alone with separate spatial channels."""
    rows = spatial_parameters(
        config.n_spatial_scales,
        config.n_angles,
        config.n_ratios,
        config.n_angles_grow,
        config.receptive_fields,
    )
    return rows[rows[:, 0] == 2.0**scale] if config.separate_spatial_channels else rows


def spatial_layers(config: Config, scale: int) -> list[SpatialRF]:
    """The three SpatialRFs of a channel."""
    rows = field_rows(config, scale)
    widths = (config.in_channels, len(rows), len(rows), config.n_classes)
    layers = [
        SpatialRF(n_in, n_out, size, bool(config.batch_normalization), config.convolution, events=i == 0)
        for i, (n_in, n_out, size) in enumerate(zip(widths[:-1], widths[1:], KERNEL_SIZES, strict=True))
    ]
    calls = config.n_temporal_scales if config.weight_sharing else 1
    for layer, size in zip(layers, KERNEL_SIZES, strict=True):
        if config.init_scheme_spatial == "rf":
            out_channels, in_channels = layer.spatial.weight.shape[:2]
            layout = bank_layout(len(rows), out_channels, in_channels, config.receptive_fields)
            if config.train_receptive_fields:
                layer.spatial = FieldWeights(rows, size, *layout)
            else:
                kernels = spatial_kernels(rows, size, config.receptive_fields)
                layer.spatial.weight.data = bank_weights(kernels, *layout)
        if layer.norm is not None:  # as if it had seen one frame of zeros per channel (kept: FIDELITY 6)
            layer.norm.running_var.fill_((1 - layer.norm.momentum) ** calls)
            layer.norm.num_batches_tracked.fill_(calls)
    return layers


def spatiotemporal_channel(
    config: Config, spatial: Sequence[SpatialRF], rate_hz: Tensor
) -> SpatioTemporalChannel:
    """One channel of the time constant 1 / rate_hz; its layers share one TemporalRF with weight sharing."""
    temporals = [TemporalRF(config.net, rate_hz.clone(), config.temporal_backend) for _ in KERNEL_SIZES]
    if config.weight_sharing:
        temporals = temporals[:1] * len(KERNEL_SIZES)
    recompute = (bool(config.checkpoint_activations), False, False)  # where it costs next to nothing
    return SpatioTemporalChannel(
        SpatioTemporalRF(s, t, bool(config.skip_connections), r)
        for s, t, r in zip(spatial, temporals, recompute, strict=True)
    )
