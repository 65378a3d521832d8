"""What a training step needs at least: products at the speed of a large one, traffic at that of a copy.

Products are those of the convolutions, in the ways that are taken.  Traffic is what convolutions and neurons
read and write, each operand once; what stays in a cache may be had sooner.
"""

import statistics

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.paired import seconds
from nrf.fast.convolution import multiplications

RUNS = 7
LARGE, COPIED = 3072, 2**27  # a side of the product's matrices; bytes copied
TABLE = [
    "| limit | products | at the peak | traffic | at a copy's | both | a step takes |",
    "| --- | --- | --- | --- | --- | --- | --- |",
]


def spectral(frames, weight, *args, **kwargs):
    return 2 * multiplications(frames, weight)[1]


def spectral_weight(frames, grad, k, **kwargs):
    return 2 * multiplications(frames, (grad[1], frames[1], k, k))[1]


def of_events(frames, weight, *args, **kwargs):
    return 2 * int(frames.count_nonzero()) * weight.numel() // weight.shape[1]


of_events._get_raw = True  # for FlopCounterMode: tensors, not shapes


class Traffic(TorchDispatchMode):
    """Bytes that convolutions and neurons read and write."""

    n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "nrf" or "convolution" in func.name():
            tensors = (x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor))
            self.n_bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def needs(step):
    """Operations (multiplications and additions) and bytes of a call of `step`."""
    nrf = torch.ops.nrf
    formulas = {nrf.correlate: spectral, nrf.correlate_frames: spectral_weight}
    formulas |= {nrf.convolve_events: of_events, nrf.events_weight: of_events}
    with FlopCounterMode(display=False, custom_mapping=formulas) as products, Traffic() as traffic:
        step()
    return products.get_total_flops(), traffic.n_bytes


def speeds():
    """Operations per second of a large float32 product, bytes per second of a copy, read and written."""
    a, b, out = (torch.randn(LARGE, LARGE) for _ in range(3))
    source, target = (torch.zeros(COPIED, dtype=torch.uint8) for _ in range(2))
    product = statistics.median(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(RUNS))
    copy = statistics.median(seconds(lambda: target.copy_(source)) for _ in range(RUNS))
    return 2 * LARGE**3 / product, 2 * COPIED / copy


def row(name, needed, speed, ms):
    """A line of `TABLE`; ms: what a step takes."""
    products, traffic = (amount / per_second * 1e3 for amount, per_second in zip(needed, speed, strict=True))
    both = products + traffic
    return (
        f"| {name} | {needed[0] / 1e9:.4g} GFLOP | {products:.4g} ms | {needed[1] / 1e9:.3g} GB "
        f"| {traffic:.4g} ms | {both:.4g} ms | {ms:.4g} ms, {ms / both:.3g} times that |"
    )
