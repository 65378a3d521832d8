"""The compiled kernels are built once, and a machine that cannot build them trains without."""

import functools
import os
import shlex
import shutil
import subprocess
from pathlib import Path

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


def other_library(path):
    """A valid library without our functions."""
    subprocess.run([*shlex.split(COMPILER), "-shared", "-x", "c++", os.devnull, "-o", str(path)], check=True)


DAMAGES = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "overwritten": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "another library": other_library,
    "writable by all": lambda path: path.chmod(0o777),
    "a fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "gone": lambda path: path.unlink(),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A folder with the library and its sum, that no process has loaded from there."""
    folder, library = tmp_path_factory.mktemp("pristine"), Path(native.load()._name)
    for path in (library, library.with_suffix(".sum")):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("pattern", ["*.so", "*.sum"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_it_was_built_is_built_again(fresh, pristine, tmp_path, monkeypatch, damage, pattern):
    folder, built = tmp_path / "cache/nrf", []
    shutil.copytree(pristine, folder)

    def build(command, path):  # in no time
        built.append(path)
        for file in folder.glob("native*"):
            file.unlink()
        for file in pristine.glob("native*"):
            shutil.copy(file, folder)

    monkeypatch.setattr(native, "_build", build)
    (path,) = folder.glob(pattern)
    DAMAGES[damage](path)
    assert fresh() is not None and built == list(folder.glob("*.so"))
    assert native.load.__wrapped__() is not None and len(built) == 1


def test_a_cache_of_another_user_is_refused_and_ours_closed_to_others(fresh, pristine, tmp_path, monkeypatch):
    folder = tmp_path / "cache/nrf"
    shutil.copytree(pristine, folder)
    folder.chmod(0o777)
    assert native.load.__wrapped__() is not None and folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(native.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.warns(UserWarning, match="nrf: expected a folder of your own"):
        assert fresh() is None


def test_a_library_of_others_is_not_loaded(fresh, pristine, tmp_path, monkeypatch):
    shutil.copytree(pristine, tmp_path / "cache/nrf")
    (path,) = (tmp_path / "cache/nrf").glob("*.so")
    assert native._is_intact(path)
    monkeypatch.setattr(native.os, "geteuid", lambda: os.getuid() + 1)
    assert not native._is_intact(path)


def test_no_umask_makes_a_library_that_is_refused(fresh, tmp_path, monkeypatch):
    """Where groups may write by default, the library would be built at each start."""
    before = os.umask(0)
    try:
        compiler = tmp_path / "compiler"
        compiler.write_text(
            f'#!/bin/sh\nfor last; do :; done\nexec {COMPILER} -shared -o "$last" -x c++ {os.devnull}\n'
        )
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        assert fresh() is not None
    finally:
        os.umask(before)
    (path,) = (tmp_path / "cache/nrf").glob("*.so")
    assert native._is_intact(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_no_dtype_of_voltages(dtype):
    assert native.is_available(torch.device("cpu"), torch.float64)
    assert not native.is_available(torch.device("cpu"), dtype)
    assert not native.is_available(torch.device("meta"), torch.float32)
