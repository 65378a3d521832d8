"""Kernels for a GPU are trusted only where they agree with torch's operations; in Triton's interpreter."""

import warnings

import pytest
import torch

from nrf.fast import pooling, scan_torch, trust

CPU = torch.device("cpu")
NETS = ("ann", "li", "lif")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The interpreter takes its time."""
    monkeypatch.setattr(trust, "SHAPE", (7, 1, 1, 1, 4, 3))


@pytest.fixture
def scans(interpreted):
    return interpreted("scan_triton", BLOCK=64, SEGMENT=4)


@pytest.fixture
def pools(interpreted, monkeypatch):
    kernels = interpreted("pooling_triton", BLOCK=64, SEGMENT=4)
    monkeypatch.setattr(pooling, "_kernels", lambda tensor: kernels)
    trust.pooling.cache_clear()
    return kernels


def scans_agree(kernels, dtype):
    ways = (lambda way=way: trust.scan_results(way, CPU, dtype) for way in (kernels, scan_torch))
    return trust.agrees("scans", CPU, dtype, *ways)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_right_kernels_are_believed_without_a_word(scans, pools, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scans_agree(scans, dtype)
        for net in NETS:
            assert trust.pooling(net, CPU, dtype, pooling._in_one_pass, pooling.pooled_plainly)


@pytest.mark.parametrize("name", ["integrate", "integrate_backward", "fire", "fire_backward"])
def test_each_spoiled_scan_is_found(scans, name, monkeypatch):
    whole = getattr(scans, name)

    def spoiled(*arguments):
        out = whole(*arguments)
        first = out if torch.is_tensor(out) else out[-1]
        first.view(-1)[7] += 0.3 * first.abs().max() + 1
        return out

    monkeypatch.setattr(scans, name, spoiled)
    with pytest.warns(
        UserWarning, match=r"scans, float32, on cpu with torch .*: results differ by .* of their"
    ):
        assert not scans_agree(scans, torch.float32)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["pool", "pool_backward"])
@pytest.mark.parametrize("how", ["wrong", "nan", "raises"])
def test_each_spoiled_pooling_is_found_and_torch_takes_over(pools, net, name, how, monkeypatch):
    whole = getattr(pools, name)

    def spoiled(*arguments):
        if how == "raises":
            raise RuntimeError("no kernel image is available\nfor execution on the device")
        first, *rest = whole(*arguments)
        return first * (float("nan") if how == "nan" else 1.1), *rest

    monkeypatch.setattr(pools, name, spoiled)
    with pytest.warns(UserWarning, match=f"Triton pooling of {net}, float32, on cpu") as said:
        assert not trust.pooling(net, CPU, torch.float32, pooling._in_one_pass, pooling.pooled_plainly)
        assert not trust.pooling(net, CPU, torch.float32, pooling._in_one_pass, pooling.pooled_plainly)
    assert len(said) == 1 and "taking torch's own operations" in str(said[0].message)
    assert "\n" not in str(said[0].message)


@pytest.mark.parametrize("net", NETS)
def test_the_plain_twin_is_the_compiled_kernel(net, compiler):
    plain, compiled = (
        trust.pooled_results(way, net, CPU, torch.float64)
        for way in (pooling.pooled_plainly, pooling._in_one_pass)
    )
    for actual, expected in zip(plain, compiled, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def test_the_case_fires_and_rests_and_leaves_a_row_over():
    current, decay, v0, _ = trust.case(CPU, torch.float64)
    spikes = trust.scan_results(scan_torch, CPU, torch.float64)[4]
    assert 0.05 < spikes.mean() < 0.6 and current.shape[-1] % 2 == 1 and v0.abs().max() > 0
