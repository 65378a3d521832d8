"""Loss terms: distance of coordinates, heat-map regularisers against Gaussian targets, spike regulariser.

Heat maps and targets are (T, B, N, H, W).
Source: DSNT, Nibali et al. 2018; paper, Methods (loss); FIDELITY 7-8.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nrf.config import table

TARGET_SIGMA = 0.06  # standard deviation of the target in units of [-1, 1]
EPSILON = 1e-24  # inside logarithms


def coordinate_distance(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean l2 distance between positions (..., 2), in their own unit."""
    return torch.linalg.vector_norm(predicted - target, dim=-1).mean()


def gaussian_targets(
    positions_unit: Tensor, shape: Sequence[int], total: Callable[[Tensor], Tensor] = lambda own: own
) -> Tensor:
    """Gaussians of TARGET_SIGMA around positions (T, B, N, 2) on maps of `shape` (H, W): (T, B, N, H, W).

    All maps together sum to 1, not each (kept: FIDELITY 7); zeros where every position lies far outside the
    field.  total: turns the sum of the maps here into that of the whole batch, where it is spread over
    processes.
    """
    along_h, along_w = (
        torch.exp(-(((_cell_centres(n, positions_unit) - position[..., None]) / TARGET_SIGMA) ** 2) / 2)
        for n, position in zip(shape, positions_unit.unbind(-1), strict=True)
    )
    targets = along_h[..., :, None] * along_w[..., None, :]
    return targets / total(targets.sum()).clamp_min(torch.finfo(targets.dtype).tiny)


def _cell_centres(n: int, like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, n, device=like.device).to(like.dtype)  # float32 constants, as published


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (torch.log(p + EPSILON) - torch.log(q + EPSILON))).sum((-2, -1))


def _over_time(per_step: Tensor) -> Tensor:
    """Summed over time, averaged over the rest (kept: FIDELITY 8)."""
    return per_step.sum(0).mean()


def js_regulariser(heatmaps: Tensor, targets: Tensor) -> Tensor:
    """Jensen-Shannon divergence per map."""
    middle = (heatmaps + targets) / 2
    return _over_time((_kl(heatmaps, middle) + _kl(targets, middle)) / 2)


def kl_regulariser(heatmaps: Tensor, targets: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(heat map | target) per map."""
    return _over_time(_kl(heatmaps, targets))


def variance_regulariser(heatmaps: Tensor, targets: Tensor) -> Tensor:
    """Absolute difference of the variances of all cells of a time step."""
    return _over_time((heatmaps.flatten(1).var(1) - targets.flatten(1).var(1)).abs())


def no_regulariser(heatmaps: Tensor, targets: Tensor) -> Tensor:
    """Zero."""
    return heatmaps.new_zeros(())


REGULARISERS = table(
    "regularization",
    {"none": no_regulariser, "js": js_regulariser, "kl": kl_regulariser, "var": variance_regulariser},
)


def spike_regulariser(activities: Tensor, mean: float = 0.05, scale: float = 0.05) -> Tensor:
    """Sum over channels of scale * (mean - activity)^2; activities (K,): mean spikes per cell and step."""
    return ((mean - activities) ** 2).sum() * scale
