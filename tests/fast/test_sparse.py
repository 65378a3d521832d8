"""The convolution of events against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from nrf.fast import sparse
from nrf.fast.convolution import convolve
from nrf.fast.sparse import convolve_events

pytestmark = pytest.mark.usefixtures("compiler")
SHAPES = {  # frames, weights, padding
    "padded by half a kernel": ((3, 2, 11, 13), (5, 2, 7, 7), 3),
    "brings its padding": ((2, 3, 14, 9), (3, 3, 5, 5), 0),
    "smaller than the kernel": ((2, 2, 4, 3), (2, 2, 9, 9), 4),
    "one pixel": ((1, 2, 1, 1), (2, 2, 1, 1), 0),
    "wide": ((40, 2, 16, 40), (16, 2, 9, 9), 4),  # enough cells for several threads
    "no frame": ((0, 2, 5, 5), (3, 2, 3, 3), 1),
}


def draw(shapes, density, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    frames, weight = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    frames *= torch.rand(frames.shape, generator=generator) < density
    return frames.requires_grad_(), weight.requires_grad_()


def outcome(function, frames, weight, padding):
    out = function(frames, weight, padding=padding)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return out, *torch.autograd.grad(out, (frames, weight), probe)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("density", [0, 0.02, 0.3, 1])
@pytest.mark.parametrize("most", [0, 1])  # of cells that are not zero: all dense, all sparse
def test_values_and_gradients_are_those_of_torch(project, monkeypatch, shapes, density, most):
    monkeypatch.setattr(sparse, "DENSITY", most)
    *shapes, padding = SHAPES[shapes]
    given = *draw(shapes, density), padding
    for actual, expected in zip(outcome(convolve_events, *given), outcome(F.conv2d, *given), strict=True):
        assert actual.shape == expected.shape
        assert actual.numel() == 0 or project.error(actual, expected) < 1e-13


def test_bfloat16_is_rounded_where_it_lies_in_memory(monkeypatch):
    """Values and the weights' gradient are those of float32, rounded."""
    monkeypatch.setattr(sparse, "DENSITY", 1)
    *shapes, padding = SHAPES["wide"]
    given = [x.detach().bfloat16().requires_grad_() for x in draw(shapes, 0.05)]
    narrow = outcome(convolve_events, *given, padding)
    wide = [x.detach().float().requires_grad_() for x in given]
    out = convolve_events(*wide, padding=padding)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.bfloat16).float()
    frames_grad, weight_grad = torch.autograd.grad(out, wide, probe)
    assert torch.equal(narrow[0], out.bfloat16()) and torch.equal(narrow[2], weight_grad.bfloat16())
    torch.testing.assert_close(narrow[1].float(), frames_grad, rtol=2e-2, atol=0.1)


def test_few_events_take_the_sparse_way_and_many_the_dense_one(monkeypatch):
    taken = []
    monkeypatch.setattr(sparse.native, "call", lambda name, *_: taken.append(name))
    for density in (0.01, 0.2):
        frames, weight = draw(((2, 2, 30, 30), (3, 2, 5, 5)), density)
        convolve(frames, weight, events=True).sum().backward()
    assert taken == ["sparse", "sparse_backward"]


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    monkeypatch.setattr(sparse, "DENSITY", 1)
    *shapes, padding = SHAPES["wide"]
    given, results, before = (*draw(shapes, 0.05, torch.float32), padding), [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(outcome(convolve_events, *given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
