"""Several processes of one command: they end with their parent, and add up what each of them holds."""

import ctypes
import functools
import signal
import sys

from torch import distributed

PR_SET_PDEATHSIG = 1  # prctl: the signal that a process gets when its parent dies


@functools.cache
def _prctl():
    return ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None


def follow_parent(number=signal.SIGKILL):
    """The calling process gets this signal when its parent dies; where the system can (Linux)."""
    prctl = _prctl()
    if prctl:
        prctl(PR_SET_PDEATHSIG, int(number))


def n_processes():
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_of_all(value):
    """The sum of a tensor over all processes that train together; without gradients."""
    value = value.detach()
    if n_processes() > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value


def mean_of_all(value, weight=1):
    """The weighted mean of a tensor over all processes; its gradient is that of this process's part.

    DDP averages gradients, so what is computed from this mean gets the gradient it has in one process.
    """
    if n_processes() == 1:
        return value
    parts = value.detach().new_full((value.numel() + 1,), float(weight))
    parts[1:] = value.detach().flatten() * weight if weight else 0
    total, sums = sum_of_all(parts).split((1, value.numel()))
    return value + ((sums / total).view_as(value) - value.detach())
