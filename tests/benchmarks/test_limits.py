"""What a step needs at least is counted as defined."""

import pytest
import torch

from benchmarks import limits
from nrf.fast.convolution import convolve, multiplications


@pytest.mark.parametrize("method", ["direct", "spectral"])
def test_products_of_a_convolution_and_what_it_reads_and_writes(method):
    frames, weight = torch.rand(3, 4, 20, 22), torch.rand(6, 4, 7, 7)
    counts = dict(zip(("direct", "spectral"), multiplications(frames.shape, weight.shape), strict=True))
    operations, n_bytes = limits.needs(lambda: convolve(frames, weight, method))
    assert operations == 2 * counts[method]
    assert n_bytes == 4 * (frames.numel() + weight.numel() + 3 * 6 * 20 * 22)
    twice, _ = limits.needs(lambda: convolve(frames, weight.requires_grad_(), method).sum().backward())
    assert twice == 2 * operations  # with the weights' gradient alone


def test_a_row_says_how_far_a_step_is_from_the_limit():
    row = limits.row("li", (2e9, 1e9), (1e9, 1e9), 6000.0)
    assert row == "| li | 2 GFLOP | 2000 ms | 1 GB | 1000 ms | 3000 ms | 6000 ms, 2 times that |"
