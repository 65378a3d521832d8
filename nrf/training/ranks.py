"""Several processes that train together: what they add up, in float64 whatever each computes in."""

import torch
from torch import Tensor, distributed


def n_processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_of_all(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes that train together; without gradients."""
    value = value.detach()
    if n_processes() > 1:
        total = value.to(torch.float64, copy=True)
        distributed.all_reduce(total)
        value = total.to(value.dtype)
    return value


def shares_of_all(value: Tensor) -> Tensor:
    """A tensor (...) of every process, (process, ...); without gradients."""
    if n_processes() == 1:
        return value.detach()[None]
    shares = [torch.empty_like(value) for _ in range(n_processes())]
    distributed.all_gather(shares, value.detach().contiguous())
    return torch.stack(shares)


def mean_of_all(value: Tensor, weight: int = 1) -> Tensor:
    """The weighted mean of a tensor over all processes; its gradient is that of this process's part.

    DDP averages gradients, so what is computed from this mean gets the gradient it has in one process.
    """
    if n_processes() == 1:
        return value
    parts = value.detach().new_full((value.numel() + 1,), float(weight), dtype=torch.float64)
    parts[1:] = value.detach().flatten() * weight if weight else 0
    total, sums = sum_of_all(parts).split((1, value.numel()))
    return value + ((sums / total).view_as(value) - value.detach()).to(value.dtype)
