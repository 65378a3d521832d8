"""What a layer of temporal channels that share their kernels makes of frames: convolution, neurons, pooling.

Frames are (T, K, B, C, H, W), K temporal channels, or (T, 1, B, C, H, W) where all see the same.
"""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from convolution import convolve, spectral_is_faster
from temporal import (
    ALPHA,
    V_TH,
    LIBoxParameters,
    LIFBoxParameters,
    leaky_integrate,
    leaky_integrate_and_fire,
)

BAND = 2**23  # cells of a band's responses, over all steps: they stay in cache, and bound the memory


def respond(net, current, rate_hz, state=None, backend="auto"):
    """Neurons' responses and state under `current` (T, ...): "li" voltages of leaky integrators; "lif"
    spikes; "ann" the current, with no state.  "li" and "ann" are still to be rectified.  rate_hz: 1 / tau,
    broadcast with a step."""
    if net == "ann":
        return current, None
    if net == "li":
        return leaky_integrate(current, LIBoxParameters(tau_mem_inv=rate_hz), state, backend=backend)
    p = LIFBoxParameters(tau_mem_inv=rate_hz, v_th=torch.as_tensor(V_TH), alpha=torch.as_tensor(ALPHA))
    return leaky_integrate_and_fire(current, p, state, backend=backend)


def layer_response(fields, frames, state=None, channels=None, pool=None):
    """K fields that share one SpatialRF, at once: responses (T, K, B, N, H, W), pooled by `pool`, state, and
    mean responses (K,) of "lif", else zeros.

    channels: how many channels the frames stand for, K if None.
    """
    spatial = fields[0].spatial
    frames = spatial.normalise(frames, channels or len(fields))
    weight = spatial.spatial.weight
    if fields[0].recompute and pool is not None and spatial.convolution != "spectral":
        rows = 2 * max(1, BAND // (2 * len(fields) * frames[:, :, :, 0, 0].numel() * len(weight)))
        if rows < frames.shape[-2] and not spectral_is_faster(frames.flatten(0, 2), weight):
            return banded_response(fields, frames, weight, state, pool, rows)
    current = convolve(frames.flatten(0, 2), weight, spatial.convolution)
    return neurons_response(fields, current.unflatten(0, frames.shape[:3]), state, pool)


def banded_response(fields, frames, weight, state, pool, rows):
    """`neurons_response` to the convolution of frames, by bands of `rows` rows, an even number.

    Few channels come in, many go out four times as large as the next layer takes them, once per time
    constant: in the paper's first layer 8 GB of float32 voltages that a cheap convolution of 29 MB of events
    makes.  So only frames, weights and states are kept, and each band is computed again for its gradients.
    A band is small enough to stay in cache from its convolution to its pooled responses.
    """
    H, pad = frames.shape[-2], weight.shape[-1] // 2
    padded = F.pad(frames.flatten(0, 2), (pad,) * 4).contiguous(memory_format=torch.channels_last)

    def band(part, weight, state):
        current = F.conv2d(part, weight).unflatten(0, frames.shape[:3])
        return neurons_response(fields, current, state, pool)

    outs, states, activities = [], [], []
    tops = range(0, max(H - 1, 1), rows)  # a last single row is not pooled: the band above takes it
    for top, bottom in zip(tops, [*tops[1:], H], strict=True):
        before = None if state is None else type(state)(state.v[..., top:bottom, :])
        part = padded[..., top : bottom + 2 * pad, :]
        out, after, activity = checkpoint(
            band, part, weight, before, use_reentrant=False, preserve_rng_state=False
        )
        outs.append(out)
        states.append(after)
        activities.append(activity * ((bottom - top) / H))
    if states[0] is not None:
        states = type(states[0])(join_rows([state.v for state in states]))
    else:
        states = None
    return join_rows(outs), states, sum(activities)


def join_rows(bands):
    """(..., C, h, W) bands one above the other, channels last in memory."""
    return torch.cat([band.movedim(-3, -1) for band in bands], -3).movedim(-1, -3)


def neurons_response(fields, current, state=None, pool=None):
    """`layer_response` to the convolved frames."""
    temporal = fields[0].temporal
    rates = None
    if temporal.net != "ann":
        rates = torch.stack([field.temporal.tau_mem_inv for field in fields]).view(-1, 1, 1, 1, 1)
    out, state = respond(temporal.net, current, rates, state, temporal.backend)  # T K B N H W
    rectify = temporal.net != "lif"
    if fields[0].skip_connection:
        out = F.relu(out) if rectify else out
        out = out + torch.stack([field.skip_weight for field in fields]).view(-1, 1, 1, 1, 1) * current
        rectify = False
    activity = out.mean((0, 2, 3, 4, 5)) if temporal.net == "lif" else out.new_zeros(out.shape[1])
    if pool is not None:
        return pool(out, rectify), state, activity
    return F.relu(out) if rectify else out, state, activity
