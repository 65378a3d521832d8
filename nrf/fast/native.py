"""The compiled kernels of native.cpp: built at first use, kept in the user's cache, called with tensors.

A library is kept beside its size and SHA-256, and built again where it is not the one that was built.
They need a C++ compiler with OpenMP (`c++`, or what CXX names).  Without one torch's operations do the same,
slower.
"""

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shlex
import stat
import subprocess
import warnings
from pathlib import Path

import torch

from nrf.system.files import locked, whole_file

SOURCE = Path(__file__).with_name("native.cpp")
# without contraction to fused multiply-adds results are those of the loops, bit by bit
FLAGS = (
    "-std=c++17 -O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp -shared -fPIC"
).split()
PROCESSOR = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
SUFFIXES = {torch.float32: "float", torch.float64: "double"}


def is_available(device, dtype):
    """Whether there are kernels for this device and dtype."""
    return device.type == "cpu" and dtype in SUFFIXES and load() is not None


@torch.compiler.disable
def call(name, dtype, *arguments):
    """A function of native.cpp: contiguous tensors of `dtype`, of float64 for sums and int32 for bits, as
    pointers, None as a null one."""
    getattr(load(), f"{name}_{SUFFIXES[dtype]}")(*(_argument(value, dtype) for value in arguments))


def _argument(value, dtype):
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    assert value.is_contiguous() and value.device.type == "cpu"
    assert value.dtype in (dtype, torch.float64, torch.int32)
    return ctypes.c_void_p(value.data_ptr())


@functools.cache
def load():
    """The shared library, or None where it cannot be built or kept, which a warning explains."""
    compiler = os.environ.get("CXX") or "c++"
    try:
        command = [*shlex.split(compiler), *FLAGS]
        key = "\n".join([SOURCE.read_text(), *command, *platform.libc_ver(), _processor()])
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nrf"
        path = folder / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(folder):
            raise RuntimeError(f"{folder}: expected a folder of your own; set XDG_CACHE_HOME to name another")
        if folder.stat().st_mode & OTHERS_WRITE:
            folder.chmod(0o700)
        if not _is_intact(path):
            with locked(path):  # of processes that start together one builds
                if not _is_intact(path):
                    _build(command, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        warnings.warn(f"scans are not compiled, training is slower: {_reason(error, compiler)}", stacklevel=2)
        return None


def _reason(error, compiler):
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").splitlines() or [f"exit code {error.returncode}"]
        return f"{compiler}: {next((line for line in lines if 'error' in line.lower()), lines[0])}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, RuntimeError) else f"{compiler}: {error}"


def _is_ours(path):
    return not hasattr(os, "geteuid") or path.stat().st_uid == os.geteuid()


def _is_private(path):
    """Whether this is a file of this user's, and nobody else may write to it."""
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) and _is_ours(path) and not mode & OTHERS_WRITE


def _sum_file(path):
    return path.with_suffix(".sum")


def _fingerprint(path):
    content = path.read_bytes()
    return f"{len(content)} {hashlib.sha256(content).hexdigest()}\n"


def _is_intact(path):
    """Whether a library is there, this user's alone, and the one that was built: a damaged one would end the
    process when it is loaded or called."""
    try:
        private = _is_private(path) and _is_private(_sum_file(path))
        return private and _sum_file(path).read_bytes() == _fingerprint(path).encode()
    except OSError:
        return False


def _build(command, path):
    with whole_file(path, ending=".so") as partial:
        command = [*command, str(SOURCE), "-o", str(partial)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"LC_ALL": "C"})
        ctypes.CDLL(str(partial))  # what does not load is not kept
        partial.chmod(0o700)  # whatever the umask
        with whole_file(_sum_file(path)) as sum_file:
            sum_file.write_text(_fingerprint(partial))
            sum_file.chmod(0o600)


def _processor():
    """What `-march=native` depends on: a home may be shared by machines."""
    try:
        with open("/proc/cpuinfo") as lines:
            first = itertools.takewhile(str.strip, lines)  # of several equal ones
            return "".join(line for line in first if line.startswith(PROCESSOR))
    except OSError:
        return platform.machine() + platform.processor()
