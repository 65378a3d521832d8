"""Convolution over frequencies against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from nrf.fast import convolution, spectral_native, spectral_torch
from nrf.fast.convolution import convolve, spectral_is_faster

SHAPES = {  # frames, weights
    "odd field, even circle": ((3, 4, 11, 13), (5, 4, 7, 7)),
    "even field, odd circle": ((2, 3, 8, 10), (3, 3, 7, 7)),
    "small kernel": ((2, 3, 9, 6), (4, 3, 3, 3)),
    "field smaller than the kernel": ((2, 2, 4, 3), (3, 2, 9, 9)),
    "one tap": ((2, 2, 5, 5), (2, 2, 1, 1)),
    "one tap, one row": ((2, 2, 1, 5), (2, 2, 1, 1)),
    "one pixel": ((2, 2, 1, 1), (2, 2, 1, 1)),
    "one channel each way": ((1, 1, 16, 5), (1, 1, 5, 5)),
    "more frames than a chunk": ((7, 2, 6, 7), (3, 2, 5, 5)),
    "more tiles than a chunk, more channels than a vector": ((3, 9, 14, 23), (19, 9, 7, 7)),
    "circles of three passes": ((2, 3, 29, 21), (2, 3, 7, 7)),
}


def draw(frames, weights, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in (frames, weights)]


@pytest.mark.parametrize("kernels", ["compiled", "torch"], indirect=True)
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("tile", [3, 5, 100])  # many, some, one
def test_values_and_gradients_are_those_of_torch(project, kernels, monkeypatch, shapes, layout, tile):
    monkeypatch.setitem(spectral_torch.CHUNK, "cpu", 3)
    monkeypatch.setattr(spectral_torch, "TILE", tile)
    monkeypatch.setattr(spectral_native, "CIRCLE", tile + SHAPES[shapes][1][-1] - 1)
    spectral_torch.Transform.cache_clear()
    frames, weight = (
        value.contiguous(memory_format=layout).requires_grad_() for value in draw(*SHAPES[shapes])
    )
    actual = convolve(frames, weight, "spectral")
    wanted = F.conv2d(frames, weight, padding="same")
    assert project.error(actual, wanted) < 1e-13
    probe = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for got, gradient in zip(
        torch.autograd.grad(actual, (frames, weight), probe),
        torch.autograd.grad(wanted, (frames, weight), probe),
        strict=True,
    ):
        assert project.error(got, gradient) < 1e-13


@pytest.mark.parametrize("kernels", ["compiled", "torch"], indirect=True)
def test_single_precision_is_as_exact_as_torchs(project, kernels):
    """Both against float64, on the second layer's kernel and field with fewer channels."""
    given = [x.requires_grad_() for x in draw((4, 16, 75, 75), (16, 16, 7, 7))]
    probe = torch.randn(4, 16, 75, 75, generator=torch.Generator().manual_seed(1))

    def results(method, given):
        out = convolve(*given, method)
        return out, *torch.autograd.grad(out, given, probe.to(out.dtype))

    exact = results("direct", given)
    narrow = [x.detach().float().requires_grad_() for x in given]
    errors = {
        method: [project.error(*pair) for pair in zip(results(method, narrow), exact, strict=True)]
        for method in ("direct", "spectral")
    }
    for spectral, direct in zip(errors["spectral"], errors["direct"], strict=True):
        assert spectral < 2e-6 and spectral < 4 * direct


def test_any_number_of_threads_gives_the_same_bits(compiler):
    frames, weight = (x.requires_grad_() for x in draw((200, 12, 16, 16), (12, 12, 7, 7), torch.float32))
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            out = convolve(frames, weight, "spectral")
            results.append([out, *torch.autograd.grad(out.square().sum(), (frames, weight))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_only_what_needs_a_gradient_gets_one(project):
    frames, weight = draw((3, 4, 8, 8), (5, 4, 5, 5))
    for leaf in (frames, weight):
        leaf.requires_grad_()
        out = convolve(frames, weight, "spectral")
        wanted = torch.autograd.grad(F.conv2d(frames, weight, padding="same").sum(), leaf)[0]
        assert project.error(torch.autograd.grad(out.sum(), leaf)[0], wanted) < 1e-13
        leaf.requires_grad_(False)


@pytest.mark.parametrize("kernels", ["compiled", "torch"], indirect=True)
def test_auto_takes_frequencies_for_second_layers_only(kernels):
    def faster(frames, weights):
        return spectral_is_faster(torch.empty(frames, device="cpu").expand(frames), torch.empty(weights))

    assert faster((40, 144, 75, 75), (144, 144, 7, 7))
    assert not faster((40, 2, 150, 150), (144, 2, 9, 9))
    assert not faster((40, 144, 37, 37), (3, 144, 5, 5))
    assert not faster((1, 4, 12, 12), (4, 4, 7, 7))
    assert faster((1280, 36, 16, 16), (36, 36, 7, 7))
    assert faster((640, 12, 12, 12), (12, 12, 7, 7)) == (kernels == "compiled")
    assert not faster((640, 36, 16, 16), (36, 36, 3, 3)) and not faster((8, 12, 12, 12), (12, 12, 7, 7))
    meta = torch.empty((40, 144, 75, 75), device="meta"), torch.empty((144, 144, 7, 7), device="meta")
    assert not spectral_is_faster(*meta)  # only on a CPU
    direct, spectral = convolution.multiplications((160, 144, 75, 75), (144, 144, 7, 7))
    assert direct == 160 * 75**2 * 49 * 144**2 and spectral < direct / 8


def test_matrix_units_of_the_processor_take_narrow_convolutions_directly(monkeypatch, compiler):
    frames, weight = torch.empty(1).expand(40, 144, 75, 75), torch.empty(144, 144, 7, 7)
    for units, narrow in ((False, False), (False, True), (True, False), (True, True)):
        monkeypatch.setattr(convolution, "has_matrix_units", lambda units=units: units)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            assert spectral_is_faster(frames, weight) == (not (units and narrow))
            of_events = convolve(*draw((1, 2, 9, 9), (3, 2, 5, 5), torch.float32), events=True)
        assert of_events.dtype == (torch.bfloat16 if units and narrow else torch.float32)


@pytest.mark.parametrize("units", [False, True])
def test_autocast_is_followed_where_it_is_faster(monkeypatch, units):
    frames, weight = draw((2, 4, 16, 16), (4, 4, 7, 7), torch.float32)
    monkeypatch.setattr(convolution, "has_matrix_units", lambda: units)
    narrow = {"direct": True, "spectral": False, "auto": units}
    for method in convolution.METHODS:
        wide = convolve(frames, weight, method)
        with torch.autocast("cpu", torch.bfloat16):
            actual = convolve(frames, weight, method)
            assert convolve(frames.double(), weight.double(), method).dtype == torch.float64
        assert wide.dtype == torch.float32
        assert actual.dtype == torch.bfloat16 if narrow[method] else torch.equal(actual, wide)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="convolution 'fft': expected one of auto, direct, spectral"):
        convolve(*draw((1, 1, 4, 4), (1, 1, 3, 3)), "fft")
