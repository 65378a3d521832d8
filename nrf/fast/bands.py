"""A layer by bands of rows, each computed again for its gradients, so that its activations are never kept.

Few channels come into the paper's first layer, many go out four times as large as the next layer takes them,
once per time constant: 8 GB of float32 voltages that a cheap convolution of 29 MB of events makes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]  # a NamedTuple of the variables
Responses = tuple[Tensor, State | None, Tensor]  # responses, state, mean responses
# cells of a band's currents, over all steps: on a GPU each band costs the start of some twenty kernels
BAND = {"cpu": 2**23, "cuda": 2**28}


def band_rows(frames: Tensor, n_currents: int) -> int:
    """Rows of a band, an even number, where each cell of frames (..., C, H, W) brings so many currents."""
    cells = frames[..., 0, 0, :].numel() * n_currents
    return 2 * max(1, BAND.get(frames.device.type, BAND["cpu"]) // (2 * cells))


def by_bands(
    response: Callable[..., Responses],
    frames: Tensor,
    state: State | None,
    radius: int,
    rows: int,
    parameters: Sequence[Tensor],
) -> Responses:
    """What `response(frames, state)` returns: pooled responses, state, mean responses.

    response: takes frames that have `radius` rows and columns of padding on each side, convolves them without
    any more, and pools by 2.  frames: (T, K, B, C, H, W).  state: NamedTuple of tensors (..., H, W), or None.
    parameters: all tensors that the response depends on and that may need a gradient.
    """
    T, K, B, *_, H, _ = frames.shape
    padded = F.pad(frames.flatten(0, 2), (radius,) * 4).contiguous(memory_format=torch.channels_last)
    plan = _Plan(response, type(state), H, radius, rows)
    variables = () if state is None else tuple(state)
    tensors = padded.unflatten(0, (T, K, B)), *variables, *parameters
    out, *after, mean = _Bands.apply(plan, len(variables), *tensors)
    return out, plan.state(*after) if after else None, mean


class _Plan:
    """The bands of a response, and what each returns."""

    def __init__(
        self, response: Callable[..., Responses], state: type, height: int, radius: int, rows: int
    ) -> None:
        self.response, self.state, self.height, self.radius = response, state, height, radius
        tops = range(0, max(height - 1, 1), rows)  # a last single row is not pooled: the band above takes it
        self.spans = list(zip(tops, [*tops[1:], height], strict=True))

    def band(
        self, top: int, bottom: int, padded: Tensor, variables: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Parts of the results, channels last, and the mean responses as this band counts among them."""
        before = self.state(*(x[..., top:bottom, :] for x in variables)) if variables else None
        part = padded[..., top : bottom + 2 * self.radius, :]
        out, after, mean = self.response(part, before)
        self.state = type(after)
        return [x.movedim(-3, -1) for x in (out, *(after or ()))], mean * ((bottom - top) / self.height)

    @staticmethod
    def rows(top: int, bottom: int, n: int) -> list[slice]:
        """Where the parts of a band lie in n results; the first are pooled."""
        return [slice(top // 2, bottom // 2), *[slice(top, bottom)] * (n - 1)]


class _Bands(torch.autograd.Function):
    """All results, written band by band into place.  Concatenated they would lie in memory twice, and kept by
    `torch.utils.checkpoint` in pieces that the process does not give back: twice its peak, measured."""

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, n_variables: int, padded: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        wholes: list[Tensor] = []
        means = []
        for top, bottom in plan.spans:
            parts, share = plan.band(top, bottom, padded, tensors[:n_variables])
            means.append(share)
            if not wholes:
                heights = [plan.height // 2, *[plan.height] * (len(parts) - 1)]
                wholes = [
                    part.new_empty(*part.shape[:-3], height, *part.shape[-2:])
                    for part, height in zip(parts, heights, strict=True)
                ]
            for whole, part, rows in zip(wholes, parts, plan.rows(top, bottom, len(parts)), strict=True):
                whole[..., rows, :, :] = part
        ctx.plan, ctx.n_variables, device = plan, n_variables, padded.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.save_for_backward(padded, *tensors)
        ctx.set_materialize_grads(False)
        return *(whole.movedim(-1, -3) for whole in wholes), sum(means[1:], means[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *of_outputs, grad_mean = grads
        moved = [None if grad is None else grad.movedim(-3, -1) for grad in of_outputs]
        inputs, plan = ctx.saved_tensors, ctx.plan
        needed = [i for i, need in enumerate(ctx.needs_input_grad[2:]) if need]
        totals = {i: torch.zeros_like(inputs[i]) for i in needed}
        for top, bottom in plan.spans:
            leaves = [
                x.detach().requires_grad_(i in needed) for i, x in enumerate(inputs[: 1 + ctx.n_variables])
            ]
            with torch.enable_grad(), torch.autocast(*ctx.autocast):
                parts, share = plan.band(top, bottom, leaves[0], leaves[1:])
            rows = plan.rows(top, bottom, len(parts))
            wanted = [
                (part, grad[..., own, :, :])
                for part, grad, own in zip(parts, moved, rows, strict=True)
                if grad is not None
            ]
            wanted += [] if grad_mean is None else [(share, grad_mean)]
            values, of_values = zip(*((v, g) for v, g in wanted if v.requires_grad), strict=True)
            sources = [*leaves, *inputs[len(leaves) :]]
            found = torch.autograd.grad(values, [sources[i] for i in needed], of_values, allow_unused=True)
            for i, grad in zip(needed, found, strict=True):
                if grad is not None:
                    totals[i] += grad
        return None, None, *(totals.get(i) for i in range(len(inputs)))


def split(state: State | None, K: int) -> list[Any]:
    """K states of one channel each, of one (K, ...), or None."""
    if state is None:
        return [None] * K
    return [type(state)(*variables) for variables in zip(*(x.split(1) for x in state), strict=True)]


def join(parts: Sequence[Responses]) -> Responses:
    """Responses, state and mean responses of K channels, from those of each."""
    outs, states, means = zip(*parts, strict=True)
    if states[0] is None:
        return cat(outs, 1), None, torch.cat(means)
    state = type(states[0])(*(cat(variables, 0) for variables in zip(*states, strict=True)))
    return cat(outs, 1), state, torch.cat(means)


def cat(parts: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` of (..., C, H, W), channels last in memory.  dim: from the front."""
    return torch.cat([part.movedim(-3, -1) for part in parts], dim).movedim(-1, -3)
