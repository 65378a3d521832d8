"""The slow reference: the published system one time step at a time, by loops over time, channels, layers.

Written from the published system's behaviour (FIDELITY) on Norse's cells.  It shares no code with model.py,
neurons.py, coordinates.py and losses.py: parameters and buffers come in as dictionaries by their published
names, everything published comes out, differentiable.  Frames and maps are (T, B, C, H, W), positions (T, B,
N, 2) along (H, W).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from norse.torch.functional.leaky_integrator_box import LIBoxParameters, LIBoxState, li_box_feed_forward_step
from norse.torch.functional.lif_box import (
    LIFBoxFeedForwardState,
    LIFBoxParameters,
    lif_box_feed_forward_step,
)
from torch import Tensor
from torch.nn import functional as F

from nrf.config import Config

V_TH = torch.tensor(0.1)  # float32, as published
ALPHA = 10.0
LAYERS = 3
Tensors = dict[str, Tensor]  # by published name
RECTIFY = {
    "softmax": lambda maps: torch.softmax(maps.flatten(-2), -1).view_as(maps),
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "id": lambda maps: maps,
}


class SuperSpike(torch.autograd.Function):
    """1 where `distance` is positive; backward 1 / (alpha |distance| + 1)^2, as in Norse's later source."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, alpha: Tensor | float) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.alpha = alpha
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (distance,) = ctx.saved_tensors
        return grad / (ctx.alpha * distance.abs() + 1) ** 2, None


def lif_step(
    x: Tensor, state: LIFBoxFeedForwardState, p: LIFBoxParameters, dt: float = 1e-3
) -> tuple[Tensor, LIFBoxFeedForwardState]:
    """Norse's `lif_box_feed_forward_step` with an alpha that counts (Norse 1.1.0 takes 1 whatever p says)."""
    u = state.v + dt * p.tau_mem_inv * (x - state.v)
    z = SuperSpike.apply(u - p.v_th, p.alpha)
    return z, LIFBoxFeedForwardState((1 - z) * u)


def walk(cell: Callable, current: Tensor, p: Any, state: Any, dt: float = 1e-3) -> tuple[Tensor, Any]:
    """A cell of Norse over `current` (T, ...): all outputs and the last state."""
    outputs = []
    for x in current:
        out, state = cell(x, state, p, dt)
        outputs.append(out)
    return torch.stack(outputs), state


def norse_li(current: Tensor, rate_hz: Tensor, v0: Tensor) -> tuple[Tensor, LIBoxState]:
    """Voltages and state of Norse's leaky integrator."""
    return walk(li_box_feed_forward_step, current, LIBoxParameters(tau_mem_inv=rate_hz), LIBoxState(v0))


def norse_lif(
    current: Tensor,
    rate_hz: Tensor,
    v0: Tensor,
    v_th: Tensor = V_TH,
    alpha: float = ALPHA,
    cell: Callable = lif_box_feed_forward_step,
) -> tuple[Tensor, LIFBoxFeedForwardState]:
    """Spikes and state of Norse's LIF, or of `lif_step` as `cell`."""
    p = LIFBoxParameters(tau_mem_inv=rate_hz, v_th=v_th, alpha=torch.as_tensor(alpha))
    return walk(cell, current, p, LIFBoxFeedForwardState(v0))


class Outcome(NamedTuple):
    heatmaps: torch.Tensor  # (T, B, N, h, w), rectified
    coordinates: torch.Tensor  # (T, B, N, 2), units
    activities: torch.Tensor  # (channels,)
    terms: dict  # norm, reg, [spike_reg,] loss
    buffers: dict  # afterwards
    state: dict


def reference_run(
    config: Config,
    parameters: Tensors,
    buffers: Tensors,
    warmup: Tensor,
    x: Tensor,
    labels_px: Tensor,
    training: bool = True,
) -> Outcome:
    """Warm-up without gradients, the window, its coordinates and losses, as one training step does.

    parameters, buffers: by published name, `net....` and `coordinate.li_tm`; left as they are.  labels_px:
    (T, B, N, 2) pixels of `config.resolution`.
    """
    buffers = {name: value.clone() for name, value in buffers.items()}
    with torch.no_grad():
        _, _, _, state = reference_forward(config, parameters, buffers, warmup, {}, training)
    maps, coordinates, activities, state = reference_forward(config, parameters, buffers, x, state, training)
    terms = reference_losses(config, maps, coordinates, activities, labels_px)
    return Outcome(maps, coordinates, activities, terms, buffers, state)


def reference_forward(
    config: Config, parameters: Tensors, buffers: Tensors, frames: Tensor, state: dict, training: bool = True
) -> tuple[Tensor, Tensor, Tensor, dict]:
    """Rectified maps, coordinates, activities and state after `frames`; `buffers` are updated in place."""
    maps, coordinates, activities = [], [], []
    for frame in frames:
        heatmap, activity, state = reference_step(config, parameters, buffers, frame, state, training)
        rectified = RECTIFY[config.rectification](heatmap)
        position, state = coordinate_step(config, parameters, rectified, state)
        maps.append(rectified)
        coordinates.append(position)
        activities.append(activity)
    return torch.stack(maps), torch.stack(coordinates), torch.stack(activities).mean(0), state


def reference_step(
    config: Config, parameters: Tensors, buffers: Tensors, frame: Tensor, state: dict, training: bool = True
) -> tuple[Tensor, Tensor, dict]:
    """One step of the network: heat map (B, N, h, w), not rectified, channels' activities, the new state."""
    state = dict(state)
    n_scales = config.n_spatial_scales if config.separate_spatial_channels else 1
    outputs, activities = [], []
    for k in range(n_scales * config.n_temporal_scales):
        out, means = frame.to(parameters["net.classifier.0.weight"].dtype), []
        for layer in range(LAYERS):
            # shared weights are named after the first module that holds them
            owner = k % n_scales if config.weight_sharing else k
            spatial = f"net.channels.{owner}.spatiotemporal.{layer}.spatial"
            field = f"net.channels.{k}.spatiotemporal.{layer}"
            holder = 0 if config.weight_sharing else layer
            rate = f"net.channels.{k}.spatiotemporal.{holder}.temporal.tau_mem_inv"
            current = spatial_step(config, parameters, buffers, spatial, out, training)
            out, state[k, layer] = neuron(config.net, current, parameters.get(rate), state.get((k, layer)))
            if config.skip_connections:
                out = out + parameters[f"{field}.skip_weight"] * current
            means.append(out.mean())
        outputs.append(F.max_pool2d(out, 2))
        activities.append(torch.stack(means).mean())
    read = F.conv_transpose2d(torch.stack(outputs).mean(0), parameters["net.classifier.0.weight"])
    net = "ann" if config.net == "ann" else "li"
    read_rate = parameters.get("net.classifier.1.tau_mem_inv")
    heatmap, state["classifier"] = neuron(net, read, read_rate, state.get("classifier"))
    return F.dropout(heatmap, config.dropout, training), torch.stack(activities), state


def spatial_step(
    config: Config, parameters: Tensors, buffers: Tensors, name: str, frame: Tensor, training: bool
) -> Tensor:
    """Average-pool 2, [batch norm,] convolution of frames (B, C, H, W)."""
    frame = F.avg_pool2d(frame, 2)
    if config.batch_normalization:
        norm = f"{name}.norm."
        frame = F.batch_norm(
            frame,
            buffers[norm + "running_mean"],
            buffers[norm + "running_var"],
            parameters[norm + "weight"],
            parameters[norm + "bias"],
            training,
        )
        buffers[norm + "num_batches_tracked"] += int(training)
    return F.conv2d(frame, parameters[f"{name}.spatial.weight"], padding="same")


def neuron(net: str, current: Tensor, rate_hz: Tensor | None, state: Any) -> tuple[Tensor, Any]:
    """One step of ReLU, a rectified leaky integrator, or a LIF neuron."""
    if net == "ann":
        return F.relu(current), None
    if net == "li":
        state = LIBoxState(torch.zeros_like(current)) if state is None else state
        v, state = li_box_feed_forward_step(current, state, LIBoxParameters(tau_mem_inv=rate_hz))
        return F.relu(v), state
    state = LIFBoxFeedForwardState(torch.zeros_like(current)) if state is None else state
    return lif_step(current, state, LIFBoxParameters(tau_mem_inv=rate_hz, v_th=V_TH, alpha=ALPHA))


def coordinate_step(config: Config, parameters: Tensors, heatmap: Tensor, state: dict) -> tuple[Tensor, dict]:
    """Position (B, N, 2) in units of a heat map (B, N, H, W)."""
    H, W = heatmap.shape[-2:]
    along_h, along_w = (torch.linspace(-1, 1, n).to(heatmap) for n in (H, W))
    mean = torch.stack([(heatmap * along_h[:, None]).sum((-2, -1)), (heatmap * along_w).sum((-2, -1))], -1)
    if config.coordinate == "dsntli":
        s = (1 - parameters["coordinate.li_tm"]) * state.get("coordinate", torch.zeros_like(mean)) + mean
        return s, {**state, "coordinate": s}
    if config.coordinate == "pixel":
        cell = heatmap.flatten(-2).max(-1).indices
        hottest = torch.stack([along_h[cell // W], along_w[cell % W]], -1)
        return mean - mean.detach() + hottest, state
    return mean, state


def target_maps(labels_unit: Tensor, shape: Sequence[int]) -> Tensor:
    """Gaussians of sigma 0.06 around the labels (T, B, N, 2), all together of sum 1."""
    h, w = (
        torch.exp(-(((torch.linspace(-1, 1, n).to(labels_unit) - y) / 0.06) ** 2) / 2)
        for n, y in zip(shape, labels_unit.split(1, -1), strict=True)
    )
    maps = h[..., :, None] * w[..., None, :]
    return maps / maps.sum()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of maps (..., H, W)."""
    return (p * ((p + 1e-24).log() - (q + 1e-24).log())).sum((-2, -1))


def regulariser(kind: str, p: Tensor, q: Tensor) -> Tensor:
    """The heat maps' regulariser: summed over time, averaged over the rest."""
    total = p.new_zeros(())
    for p_t, q_t in zip(p, q, strict=True):
        if kind == "js":
            middle = (p_t + q_t) / 2
            total = total + (0.5 * kl(p_t, middle) + 0.5 * kl(q_t, middle)).mean()
        elif kind == "kl":
            total = total + kl(p_t, q_t).mean()
        elif kind == "var":
            total = total + (p_t.var() - q_t.var()).abs()
    return total


def reference_losses(
    config: Config, maps: Tensor, coordinates: Tensor, activities: Tensor, labels_px: Tensor
) -> Tensors:
    """Every term of the training loss, and their sum."""
    labels_unit = labels_px * 2 / labels_px.new_tensor(config.resolution) - 1
    targets = target_maps(labels_unit, maps.shape[-2:])
    terms = {
        "norm": ((coordinates - labels_unit) ** 2).sum(-1).sqrt().mean(),
        "reg": regulariser(config.regularization, maps, targets) * config.regularization_scale,
    }
    if config.net == "lif":
        distance = config.regularization_activity_mean - activities
        terms["spike_reg"] = (distance**2 * config.regularization_activity_scale).sum()
    return {**terms, "loss": torch.stack(list(terms.values())).sum()}
