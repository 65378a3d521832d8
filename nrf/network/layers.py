"""What a layer of temporal channels that share their kernels makes of frames: convolution, neurons, pooling.

Frames are (T, K, B, C, H, W), K temporal channels, or (T, 1, B, C, H, W) where all see the same.
"""

import torch
from torch.nn import functional as F

from nrf.fast.convolution import convolve, spectral_is_faster
from nrf.fast.pooling import average_pool, is_one_pass, pooled_neurons
from nrf.network.neurons import (
    ALPHA,
    DT_S,
    V_TH,
    LIBoxParameters,
    LIBoxState,
    LIFBoxFeedForwardState,
    LIFBoxParameters,
    leaky_integrate,
    leaky_integrate_and_fire,
)

CONSTANTS = torch.tensor(V_TH).item(), ALPHA  # of LIF neurons; the threshold in float32, as published
# cells of a band's responses, over all steps, which bound the memory: on a CPU they stay in cache, on a GPU
# each band costs the start of some twenty kernels
BAND = {"cpu": 2**23, "cuda": 2**28}
APART = 2**25  # cells of all channels' frames from which each channel runs on its own: of fewer it costs time


def respond(net, current, rate_hz, state=None, backend="auto"):
    """Neurons' responses and state under `current` (T, ...): "li" voltages of leaky integrators; "lif"
    spikes; "ann" the current, with no state.  "li" and "ann" are still to be rectified.  rate_hz: 1 / tau,
    broadcast with a step."""
    if net == "ann":
        return current, None
    if net == "li":
        return leaky_integrate(current, LIBoxParameters(tau_mem_inv=rate_hz), state, backend=backend)
    v_th, alpha = map(torch.tensor, CONSTANTS)
    p = LIFBoxParameters(tau_mem_inv=rate_hz, v_th=v_th, alpha=alpha)
    return leaky_integrate_and_fire(current, p, state, backend=backend)


def layer_response(fields, frames, state=None, channels=None, pool=None):
    """K fields that share one SpatialRF, at once: responses (T, K, B, N, H, W), pooled by `pool`, state, and
    mean responses (K,) of "lif", else zeros.

    channels: how many channels the frames stand for, K if None.  Large responses, in front of layers without
    batch norm, are a list of K tensors (T, 1, B, N, H, W), and so are those to a list, which is emptied.
    """
    spatial = fields[0].spatial
    weight = spatial.spatial.weight
    if isinstance(frames, list):
        return one_by_one(fields, frames, weight, state, pool)
    frames = spatial.normalise(frames, channels or len(fields))
    if fields[0].recompute and pool is not None and spatial.convolution != "spectral":
        band = BAND.get(frames.device.type, BAND["cpu"])
        rows = 2 * max(1, band // (2 * len(fields) * frames[:, :, :, 0, 0].numel() * len(weight)))
        if rows < frames.shape[-2] and not spectral_is_faster(frames.flatten(0, 2), weight):
            return banded_response(fields, frames, weight, state, pool, rows)
    return whole_response(fields, frames, weight, state, pool)


def whole_response(fields, frames, weight, state, pool):
    """`neurons_response` to the convolution of frames, of all rows together."""
    current = convolve(frames.flatten(0, 2), weight, fields[0].spatial.convolution)
    return neurons_response(fields, current.unflatten(0, frames.shape[:3]), state, pool)


def one_by_one(fields, frames, weight, state, pool):
    """`whole_response` of K channels, each to frames (T, 1, B, C, H, W) of its own, one after the other.

    Currents are as large as their gradients, and all together the largest tensors there are.  Here the
    backward pass makes the gradient at one channel's at a time, and frees what was kept of it before it comes
    to the next.  Frames that a convolution under autocast has copied are freed at once.
    """
    befores = [None] * len(fields) if state is None else map(_state(fields), state.v.split(1))
    responses = [
        whole_response([field], frames.pop(0), weight, before, pool)
        for field, before in zip(fields, befores, strict=True)
    ]
    out, afters, activities = zip(*responses, strict=True)
    after = None if afters[0] is None else _state(fields)(torch.cat([after.v for after in afters]))
    return list(out), after, torch.cat(activities)


def as_one(parts):
    """K tensors (T, 1, B, C, H, W) as one (T, K, B, C, H, W), channels last in memory."""
    return torch.cat([part.movedim(-3, -1) for part in parts], 1).movedim(-1, -3)


def banded_response(fields, frames, weight, state, pool, rows):
    """`neurons_response` to the convolution of frames, by bands of `rows` rows, an even number; large
    responses are a list, as in `layer_response`.

    Few channels come in, many go out four times as large as the next layer takes them, once per time
    constant: in the paper's first layer 8 GB of float32 voltages that a cheap convolution of 29 MB of events
    makes.  So only frames, weights and states are kept, and each band is computed again for its gradients.
    A band is small enough to stay in cache from its convolution to its pooled responses.
    """
    pad = (weight.shape[-1] // 2,) * 4
    padded = F.pad(frames.flatten(0, 2), pad).contiguous(memory_format=torch.channels_last)
    parameters = [] if fields[0].temporal.net == "ann" else [f.temporal.tau_mem_inv for f in fields]
    parameters += [f.skip_weight for f in fields if f.skip_connection]
    cells = frames[:, 0, :, 0].numel() // 4 * len(fields) * len(weight)
    apart = cells >= APART and fields[0].spatial.norm is None
    setting = fields, frames.shape, pool, rows, apart
    v0 = None if state is None else state.v
    *out, v, activity = _Bands.apply(setting, padded, weight, v0, *parameters)
    return out if apart else out[0], None if v is None else _state(fields)(v), activity


class _Bands(torch.autograd.Function):
    """Pooled responses, one tensor or one of each channel, last voltages and activities, written band by band
    into place."""

    @staticmethod
    def forward(ctx, setting, padded, weight, v0, *parameters):
        shape = setting[1]
        outs = last = None
        activity = 0
        for top, bottom in _Bands.rows(setting):
            out, v, mean = _Bands.band(setting, top, bottom, padded, weight, v0)
            if outs is None:
                *step, C, _, w = out[0].shape
                outs = [band.new_empty(*step, shape[-2] // 2, w, C).movedim(-1, -3) for band in out]
                last = None if v is None else v.new_empty(*v.shape[:2], *shape[-2:], C).movedim(-1, -3)
            for part, band in zip(outs, out, strict=True):
                part[..., top // 2 : bottom // 2, :] = band
            if last is not None:
                last[..., top:bottom, :] = v
            activity = activity + mean * ((bottom - top) / shape[-2])
        ctx.setting = setting
        ctx.autocast = (
            torch.is_autocast_enabled(padded.device.type),
            torch.get_autocast_dtype(padded.device.type),
        )
        ctx.save_for_backward(padded, weight, v0, *parameters)
        ctx.set_materialize_grads(False)
        return *outs, last, activity

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *given):
        *grads_out, grad_last, grad_activity = given
        padded, weight, v0, *parameters = ctx.saved_tensors
        inputs = [padded, weight, v0, *parameters]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        grads = {i: torch.zeros_like(inputs[i]) for i in wanted}
        enabled, dtype = ctx.autocast
        for top, bottom in _Bands.rows(ctx.setting):
            with torch.enable_grad(), torch.autocast(padded.device.type, dtype, enabled):
                leaves = [
                    None if x is None else x.detach().requires_grad_(i in wanted)
                    for i, x in enumerate(inputs[:3])
                ]
                out, v, mean = _Bands.band(ctx.setting, top, bottom, *leaves)
                leaves += parameters
            height = ctx.setting[1][-2]
            pairs = [
                (band, None if grad is None else grad[..., top // 2 : bottom // 2, :])
                for band, grad in zip(out, grads_out, strict=True)
            ]
            pairs += [
                (v, None if grad_last is None else grad_last[..., top:bottom, :]),
                (mean, None if grad_activity is None else grad_activity * ((bottom - top) / height)),
            ]
            pairs = [pair for pair in pairs if pair[1] is not None and pair[0].requires_grad]
            found = torch.autograd.grad(
                [value for value, _ in pairs],
                [leaves[i] for i in wanted],
                [grad for _, grad in pairs],
                allow_unused=True,
            )
            for i, grad in zip(wanted, found, strict=True):
                if grad is not None:
                    grads[i] += grad
        return None, *(grads.get(i) for i in range(len(inputs)))

    @staticmethod
    def rows(setting):
        """(top, bottom) of the bands; a last single row is not pooled: the band above takes it."""
        _, shape, _, rows, _ = setting
        tops = range(0, max(shape[-2] - 1, 1), rows)
        return zip(tops, [*tops[1:], shape[-2]], strict=True)

    @staticmethod
    def band(setting, top, bottom, padded, weight, v0):
        fields, shape, pool, _, apart = setting
        part = padded[..., top : bottom + weight.shape[-1] - 1, :]
        current = F.conv2d(part, weight).unflatten(0, shape[:3])
        state = None if v0 is None else _state(fields)(v0[..., top:bottom, :])
        out, state, activity = neurons_response(fields, current, state, pool)
        # in the order of memory: so the gradients at parts are put together in one copy
        parts = out.movedim(-3, -1).split(1 if apart else len(fields), 1)
        return [part.movedim(-1, -3) for part in parts], None if state is None else state.v, activity


def _state(fields):
    return LIBoxState if fields[0].temporal.net == "li" else LIFBoxFeedForwardState


def neurons_response(fields, current, state=None, pool=None):
    """`layer_response` to the convolved frames.

    A skip connection adds to the neurons' output their current, times a weight.
    """
    net, backend = fields[0].temporal.net, fields[0].temporal.backend
    rates = skips = None
    if net != "ann":
        rates = torch.stack([field.temporal.tau_mem_inv for field in fields]).view(-1, 1, 1, 1, 1)
    if fields[0].skip_connection:
        skips = torch.stack([field.skip_weight for field in fields]).view(-1, 1, 1, 1, 1)
    dtype = current.dtype
    for values in (rates, skips):
        dtype = dtype if values is None else torch.promote_types(dtype, values.dtype)
    if pool is average_pool and backend in ("auto", "fused") and is_one_pass(current.device, dtype):
        rates, skips = (None if values is None else values.flatten() for values in (rates, skips))
        decay, v0 = None if rates is None else DT_S * rates, None if state is None else state.v
        tensors = (None if x is None else x.to(dtype) for x in (decay, v0, skips))
        out, v, activity = pooled_neurons(net, len(fields), current, *tensors, *CONSTANTS)
        return out, None if v is None else _state(fields)(v), activity
    out, state = respond(net, current, rates, state, backend)  # T K B N H W
    out = out if net == "lif" else F.relu(out)
    out = out if skips is None else torch.addcmul(out, skips, current)
    activity = out.mean((0, 2, 3, 4, 5)) if net == "lif" else out.new_zeros(len(fields))
    return pool(out) if pool else out, state, activity
