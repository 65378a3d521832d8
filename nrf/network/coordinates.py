"""Heat map to coordinate, and the one conversion between pixels and [-1, 1].

Coordinates are (T, B, N, 2), last axis (H, W): `_px` pixels from 0 to the field's size, `_unit` the same
field as [-1, 1].  Source: DSNT, Nibali et al. 2018; paper, Methods (coordinates); FIDELITY 9-10.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nrf.config import table


def pixel_to_unit(position_px: Tensor, resolution: Sequence[int]) -> Tensor:
    """Pixels (..., 2) in a field of `resolution` (H, W) as units: 0 is -1 and H (or W) is +1."""
    return position_px * 2 / _size(resolution, position_px) - 1


def unit_to_pixel(position_unit: Tensor, resolution: Sequence[int]) -> Tensor:
    """The inverse of `pixel_to_unit`."""
    return (position_unit + 1) * _size(resolution, position_unit) / 2


def _size(resolution: Sequence[int], like: Tensor) -> Tensor:
    """(H, W) as a tensor like another: filled in there, since a copy from the CPU would wait for a GPU."""
    return torch.stack([like.new_full((), pixels) for pixels in resolution])


def unit_grid(n: int, like: Tensor) -> Tensor:
    """Centres of n cells from -1 to 1, both included (n,): float32 constants, as published, as `like`."""
    return torch.linspace(-1, 1, n, device=like.device).to(like.dtype)


def spatial_mean(heatmaps: Tensor) -> Tensor:
    """DSNT: the mean position (..., 2) in units of heat maps (..., H, W) that sum to 1."""
    *_, H, W = heatmaps.shape
    along_h = (heatmaps.sum(-1) * unit_grid(H, heatmaps)).sum(-1)
    along_w = (heatmaps.sum(-2) * unit_grid(W, heatmaps)).sum(-1)
    return torch.stack([along_h, along_w], -1)


class DSNT(nn.Module):
    """Heat maps (T, B, N, H, W) to their mean positions (T, B, N, 2) in units; no state."""

    has_state = False

    def forward(self, heatmaps: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return spatial_mean(heatmaps), state


class DSNTLI(nn.Module):
    """DSNT, leakily summed over time:  s[t] = (1 - li_tm) * s[t-1] + dsnt[t], one trainable li_tm per axis.

    State: s of the last step (B, N, 2), zero at rest.  The gain at rest is 1 / li_tm = 1.11 until learnt
    (FIDELITY 10).
    """

    has_state = True

    def __init__(self, li_tm: float = 0.9) -> None:
        super().__init__()
        self.li_tm = nn.Parameter(torch.full((2,), li_tm))

    def forward(self, heatmaps: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        positions = spatial_mean(heatmaps)
        s = torch.zeros_like(positions[0]) if state is None else state
        trace = []
        for position in positions:
            s = (1 - self.li_tm) * s + position
            trace.append(s)
        return torch.stack(trace), s


class HottestPixel(nn.Module):
    """The centre of each heat map's hottest cell, in units, with DSNT's gradient (straight-through).

    Never worked as published (FIDELITY 11).
    """

    has_state = False

    def forward(self, heatmaps: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        *_, H, W = heatmaps.shape
        cell = heatmaps.flatten(-2).argmax(-1)
        hottest = torch.stack([unit_grid(H, heatmaps)[cell // W], unit_grid(W, heatmaps)[cell % W]], -1)
        mean = spatial_mean(heatmaps)
        return mean + (hottest - mean).detach(), state


COORDINATES = table("coordinate", {"dsnt": DSNT, "dsntli": DSNTLI, "pixel": HottestPixel})
RECTIFIERS = table(
    "rectification",
    {
        "softmax": lambda maps: maps.flatten(-2).softmax(-1).view_as(maps),
        "sigmoid": torch.sigmoid,
        "relu": torch.relu,
        "id": lambda maps: maps,
    },
)  # of heat maps (..., H, W)
