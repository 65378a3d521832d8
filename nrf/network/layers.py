"""A layer: [batch norm ->] convolution -> neurons [+ skip] -> pooling, of channels that share filters.

Frames are (T, K, B, C, H, W), K temporal channels, or (T, 1, B, C, H, W) where all see the same.  Module and
parameter names are the published ones.  Source: paper, Fig. 2 and Methods; FIDELITY 5-6.
"""

from __future__ import annotations  # those of inner functions would be traced by torch.compile

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nrf.config import table
from nrf.fast.bands import band_rows, by_bands, join, split
from nrf.fast.convolution import METHODS, convolve, spectral_is_faster
from nrf.fast.pooling import average_pool, is_one_pass
from nrf.network.field_weights import FieldWeights
from nrf.network.neurons import DT_S, State, kind, respond

SKIP_WEIGHT = 0.9
APART = 2**25  # cells of frames from which each channel runs on its own: of fewer that costs time
Pool = Callable[[Tensor], Tensor]
Pooled = tuple[Tensor, State | None, Tensor]  # responses, state, activities: see `Neurons.respond`
table("convolution", METHODS)


class StepwiseBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of frames (T, K, B, C, H, W) with the statistics of each time step and channel of
    its own.

    The running statistics take one update per step and channel, in that order, as if each had been a call;
    frames that stand for `channels` identical channels count that often.  FIDELITY 6.
    """

    running_mean: Tensor  # all are there: torch's own types leave them out on request
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, frames: Tensor, channels: int = 1) -> Tensor:
        per_channel = (-1, 1, 1)
        frames = frames.to(self.weight.dtype)
        if not self.training:
            scale = (self.running_var + self.eps).rsqrt() * self.weight
            return (frames - self.running_mean.view(per_channel)) * scale.view(per_channel) + self.bias.view(
                per_channel
            )
        dims = (2, 4, 5)
        variance, mean = torch.var_mean(frames, dims, correction=0, keepdim=True)
        with torch.no_grad():
            n = frames.numel() // (frames.shape[0] * frames.shape[1] * frames.shape[3])
            repeats = channels // frames.shape[1]
            self._update(self.running_mean, mean.flatten(0, 2).flatten(1), repeats)
            self._update(self.running_var, variance.flatten(0, 2).flatten(1) * n / max(n - 1, 1), repeats)
            self.num_batches_tracked += frames.shape[0] * channels
        normalised = (frames - mean) * (variance + self.eps).rsqrt()
        return normalised * self.weight.view(per_channel) + self.bias.view(per_channel)

    def _update(self, running: Tensor, per_call: Tensor, repeats: int) -> None:
        per_call = per_call.repeat_interleave(repeats, 0)
        weights = (1 - self.momentum) ** torch.arange(
            len(per_call), -1, -1, device=running.device, dtype=running.dtype
        )
        running.mul_(weights[0]).add_(self.momentum * (weights[1:, None] * per_call).sum(0))


class SpatialRF(nn.Module):
    """[Batch norm and] convolution with a bank of receptive fields, over frames (T, K, B, C, H, W).

    events: most cells of the frames are zero, which costs time only where they are not.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        batch_normalization: bool = False,
        convolution: str = "auto",
        events: bool = False,
    ) -> None:
        super().__init__()
        self.convolution, self.events = convolution, events and not batch_normalization
        self.spatial: nn.Conv2d | FieldWeights = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding="same", bias=False
        )
        self.norm = StepwiseBatchNorm2d(in_channels) if batch_normalization else None

    def normalise(self, frames: Tensor, channels: int = 1) -> Tensor:
        return frames if self.norm is None else self.norm(frames, channels)

    def convolve(self, frames: Tensor, weight: Tensor, padded: bool = False) -> Tensor:
        return convolve(frames, weight, self.convolution, self.events, padded)

    def forward(self, frames: Tensor, channels: int = 1) -> Tensor:
        frames = self.normalise(frames, channels)
        current = self.convolve(frames.flatten(0, 2), self.spatial.weight)
        return current.unflatten(0, frames.shape[:3])


class TemporalRF(nn.Module):
    """Neurons of one time constant (`tau_mem_inv`, Hz, trainable; none for "ann") over currents (T, ...)."""

    def __init__(self, net: str, rate_hz: Tensor, backend: str = "auto") -> None:
        super().__init__()
        self.net, self.backend = net, backend
        self.neuron = kind(net, backend)
        if self.neuron.has_tau:
            self.tau_mem_inv = nn.Parameter(rate_hz)

    def forward(self, current: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        rate_hz = self.tau_mem_inv if self.neuron.has_tau else None
        out, state = respond(self.net, current, rate_hz, state, backend=self.backend)
        return F.relu(out) if self.neuron.rectified else out, state


class SpatioTemporalRF(nn.Module):
    """One layer of one temporal channel: average-pool -> spatial -> temporal [+ skip].

    recompute: large frames are taken by bands, and computed again in the backward pass.
    """

    def __init__(
        self, spatial: SpatialRF, temporal: TemporalRF, skip_connection: bool = False, recompute: bool = False
    ) -> None:
        super().__init__()
        self.skip_weight = nn.Parameter(torch.full((1,), SKIP_WEIGHT))
        self.spatial, self.temporal = spatial, temporal
        self.skip_connection, self.recompute = skip_connection, recompute

    def trained_beside_filters(self) -> list[nn.Parameter]:
        """Parameters of the neurons and, where there is one, the skip connection."""
        return [*self.temporal.parameters(), *([self.skip_weight] if self.skip_connection else [])]

    def forward(self, frames: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """(T, B, C, H, W) and a state to (T, B, N, H // 2, W // 2) and a state."""
        out, state, _ = layer_response([self], average_pool(frames)[:, None], state)
        return out[:, 0], state


class Neurons(NamedTuple):
    """The neurons of K temporal channels that see the same filters' responses."""

    net: str
    backend: str
    K: int
    rates_hz: Tensor | None  # (K,)
    skips: Tensor | None  # (K,) weights of the current, added to the outputs

    @classmethod
    def of(cls, layers: Sequence[SpatioTemporalRF]) -> Neurons:
        temporal, rates, skips = layers[0].temporal, None, None
        if temporal.neuron.has_tau:
            rates = torch.stack([layer.temporal.tau_mem_inv for layer in layers])
        if layers[0].skip_connection:
            skips = torch.cat([layer.skip_weight for layer in layers])
        return cls(temporal.net, temporal.backend, len(layers), rates, skips)

    def respond(self, current: Tensor, state: State | None, pool: Pool | None) -> Pooled:
        """Pooled responses (T, K, B, N, h, w) to currents (T, K or 1, B, N, H, W), the state, and each
        channel's mean response (K,) if it spikes, else 0."""
        neuron = kind(self.net, self.backend)
        dtype = torch.promote_types(torch.float32, current.dtype)
        for values in (self.rates_hz, self.skips):
            dtype = dtype if values is None else torch.promote_types(dtype, values.dtype)
        if pool is average_pool and self.backend in ("auto", "fused") and neuron.pooled:
            if is_one_pass(current.device, dtype):
                decay = None if self.rates_hz is None else (DT_S * self.rates_hz).to(dtype)
                skips = None if self.skips is None else self.skips.to(dtype)
                return neuron.pooled(self.K, current, decay, state, skips)
        rates, skips = (None if x is None else x.view(-1, 1, 1, 1, 1) for x in (self.rates_hz, self.skips))
        out, state = respond(self.net, current, rates, state, backend=self.backend)
        out = F.relu(out) if neuron.rectified else out
        out = out if skips is None else torch.addcmul(out, skips, current)
        activity = out.mean((0, 2, 3, 4, 5)) if neuron.spikes else out.new_zeros(self.K)
        return pool(out) if pool else out, state, activity


def layer_response(
    layers: Sequence[SpatioTemporalRF],
    frames: Tensor,
    state: State | None = None,
    pool: Pool | None = None,
    channels: int | None = None,
) -> Pooled:
    """K layers that share one SpatialRF, at once: what `Neurons.respond` returns.

    frames: (T, K, B, C, H, W), or (T, 1, ...).  pool: what follows the neurons.  channels: how many channels
    the frames stand for, K if None.
    """
    spatial, weight = layers[0].spatial, layers[0].spatial.spatial.weight
    frames = spatial.normalise(frames, channels or len(layers))  # T K|1 B C H W

    def response(
        layers: Sequence[SpatioTemporalRF], convolution: Callable, frames: Tensor, state: State | None
    ) -> Pooled:
        current = convolution(frames.flatten(0, 2), weight).unflatten(0, frames.shape[:3])  # T K|1 B N H W
        return Neurons.of(layers).respond(current, state, pool)  # T K B N h w

    in_bands = layers[0].recompute and not torch.compiler.is_compiling()  # a graph holds no loop of bands
    if in_bands and pool is not None and spatial.convolution != "spectral":
        rows = band_rows(frames, len(weight))
        if rows < frames.shape[-2] and not spectral_is_faster(frames.flatten(0, 2), weight):
            trained = [weight, *(p for layer in layers for p in layer.trained_beside_filters())]
            banded = partial(response, layers, partial(spatial.convolve, padded=True))
            return by_bands(banded, frames, state, weight.shape[-1] // 2, rows, trained)
    if frames.shape[1] > 1 and frames.numel() >= APART:  # so the backward pass frees one after the other
        apart = zip(layers, frames.split(1, 1), split(state, len(layers)), strict=True)
        return join([response([layer], spatial.convolve, part, before) for layer, part, before in apart])
    return response(layers, spatial.convolve, frames, state)
