"""The compiled kernels are built once, and a machine that cannot build them trains without."""

import functools
import os

import pytest
import torch

from nrf.fast import native

COMPILER = os.environ.get("CXX") or "c++"
pytestmark = pytest.mark.usefixtures("compiler")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """`native.load` as in a new process, of a user whose cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return functools.cache(native.load.__wrapped__)


def test_built_once_and_kept(fresh, tmp_path):
    assert fresh() is not None
    (built,) = (tmp_path / "cache/nrf").glob("*.so")
    before = built.stat().st_mtime_ns
    assert native.load.__wrapped__() is not None
    assert [built] == list((tmp_path / "cache/nrf").glob("*.so")) and built.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "compiler, reason",
    [
        ("no-such-compiler", "No such file or directory"),
        (f"{COMPILER} -include no-such-header.h", "no-such-header.h"),
        ("'", "No closing quotation"),
    ],
)
def test_without_a_compiler_one_warning_says_why(fresh, tmp_path, monkeypatch, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match=f"training is slower.*{reason}"):
        assert fresh() is None
    assert not list((tmp_path / "cache/nrf").glob("*.so"))  # nothing half-written
    monkeypatch.setattr(native, "load", fresh)
    assert not native.is_available(torch.device("cpu"), torch.float32)


def test_what_does_not_load_is_not_kept(fresh, tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho nothing > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.warns(UserWarning, match="training is slower"):
        assert fresh() is None
    assert not list((tmp_path / "cache/nrf").glob("*.so"))


def test_a_cache_that_is_a_file_is_no_error(fresh, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.warns(UserWarning, match="training is slower"):
        assert fresh() is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_to_torch(dtype):
    assert native.is_available(torch.device("cpu"), torch.float64)
    assert not native.is_available(torch.device("cpu"), dtype)
    assert not native.is_available(torch.device("meta"), torch.float32)
