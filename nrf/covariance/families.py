"""How far training leaves the theory: trained kernels from affine Gaussians, time constants from their law.

The nearest member of the family is sought for each kernel over deviations, angle and order, its amplitude by
least squares; the distance is relative, sqrt(1 - cosine^2): 0 is a member, 1 has nothing in common with any.
"""

import math

import torch
from torch import Tensor

from nrf.covariance.space import Row
from nrf.network.model import SpatioTemporalModel
from nrf.theory.affine_gaussian import affine_kernels, field_from_axes
from nrf.theory.receptive_fields import DERIVATIVES, SIGMA_RANGE

SAMPLE = 256  # kernels of a layer that are looked at, drawn evenly
GRID = 8, 12  # deviations along each axis and angles that the search starts from
SEARCH_STEPS = 24  # of the search; the last are below a hundredth of its first


def nearest_members(kernels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Relative distances (n,) of kernels (n, size, size), and their nearest members: sigma_u, sigma_v in
    pixels, phi in radians (n, 3) and the place of the order in `DERIVATIVES` (n,).  NaN for kernels of zeros.

    Deviations stay within what trainable fields may take (`SIGMA_RANGE`)."""
    size = kernels.shape[-1]
    unit = kernels.double().flatten(1)
    unit = unit / unit.norm(dim=1, keepdim=True)
    low, high = math.log(SIGMA_RANGE[0]), math.log(SIGMA_RANGE[1] * size)
    line = torch.linspace(low, high, GRID[0], dtype=torch.float64)
    start = torch.cartesian_prod(line, line, torch.arange(GRID[1]).double() * math.pi / GRID[1])
    cosines = (unit @ _members(start, size).flatten(0, 1).T).abs()
    best, where = cosines.max(1)
    parameters, order = start[where // len(DERIVATIVES)], where % len(DERIVATIVES)
    step = torch.tensor([line[1] - line[0], line[1] - line[0], math.pi / GRID[1]]) / 2
    moves = torch.cat([torch.eye(3), -torch.eye(3)]).double() * step
    rows = torch.arange(len(unit))
    scale = torch.ones(len(unit), 1, 1, dtype=torch.float64)
    for _ in range(SEARCH_STEPS):
        tried = parameters[:, None] + scale * moves  # n 6 3
        tried[..., :2] = tried[..., :2].clamp(low, high)
        members = _members(tried.flatten(0, 1), size).unflatten(0, (-1, len(moves)))
        found, move = torch.einsum("np,nmp->nm", unit, members[rows, :, order]).abs().max(1)
        better = found > best
        parameters = torch.where(better[:, None], tried[rows, move], parameters)
        best = torch.where(better, found, best)
        scale = torch.where(better[:, None, None], scale, scale * 0.6)
    distance = (1 - best.clamp(max=1) ** 2).sqrt()
    parameters = torch.cat([parameters[:, :2].exp(), parameters[:, 2:]], 1)
    return torch.where(unit.isfinite().all(1), distance, math.nan), parameters, order


def _members(parameters: Tensor, size: int) -> Tensor:
    """Members of the family of norm 1, (n, orders, size^2), at ln sigma_u, ln sigma_v, phi (n, 3)."""
    fields = field_from_axes(parameters[:, 0].exp(), parameters[:, 1].exp(), parameters[:, 2])
    kernels = affine_kernels(fields, DERIVATIVES, size).flatten(2)
    return kernels / kernels.norm(dim=2, keepdim=True)


def sample(weight: Tensor) -> Tensor:
    """Up to `SAMPLE` kernels (n, size, size) of a convolution's weight, evenly, the same in every network."""
    kernels = weight.detach().flatten(0, 1)
    if len(kernels) <= SAMPLE:
        return kernels
    drawn = torch.randperm(len(kernels), generator=torch.Generator().manual_seed(0))
    return kernels[drawn[:SAMPLE].sort().values]


def kernel_rows(network: SpatioTemporalModel, start: SpatioTemporalModel) -> list[Row]:
    """Rows {layer, kernels, measured, median, low, high, at_start} of a network's first channel: medians and
    10 and 90 % quantiles of the distances, and the median of the network `start` as it was before
    training."""
    rows = []
    layers = zip(network.channels[0].spatiotemporal, start.channels[0].spatiotemporal, strict=True)
    for i, (layer, before) in enumerate(layers):
        weight = layer.spatial.spatial.weight
        distance, at_start = (
            nearest_members(sample(one.spatial.spatial.weight))[0] for one in (layer, before)
        )
        low, median, high = distance.nanquantile(torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
        rows.append(
            {
                "layer": i + 1,
                "kernels": weight.shape[0] * weight.shape[1],
                "measured": len(distance),
                "median": median,
                "low": low,
                "high": high,
                "at_start": at_start.nanmedian().item(),
            }
        )
    return rows


def time_rows(network: SpatioTemporalModel) -> list[Row]:
    """Rows {layer, tau_ms, ratio, distance}: time constants of the channels, short to long, the ratio of the
    logarithmic distribution that fits best, and the root mean square of ln tau around it.  Nothing for
    ReLU."""
    if not network.neuron.has_tau:
        return []
    stride = len(network.channels) // network.config.n_temporal_scales
    rows = []
    for i in range(len(network.channels[0].spatiotemporal)):
        rates = [c.spatiotemporal[i].temporal.tau_mem_inv.item() for c in list(network.channels)[::stride]]
        tau = 1000 / torch.tensor(rates, dtype=torch.float64)
        row = {"layer": i + 1, "tau_ms": " ".join(f"{t:.2f}" for t in tau.tolist())}
        if len(tau) > 1 and (tau > 0).all():
            logs, k = tau.log().sort().values, torch.arange(len(tau), dtype=torch.float64)
            slope = ((k - k.mean()) * logs).sum() / (k - k.mean()).square().sum()
            left = logs - logs.mean() - slope * (k - k.mean())
            row |= {"ratio": slope.exp().item(), "distance": left.square().mean().sqrt().item()}
        rows.append(row)
    return rows
