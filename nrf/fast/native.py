"""The compiled kernels of native.cpp: built at first use, kept in the user's cache, called with tensors.

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
    """The shared library, or None where it cannot be built, which a warning explains."""
    compiler = os.environ.get("CXX") or "c++"
    try:
        command = [*shlex.split(compiler), *FLAGS]
        key = "\n".join([SOURCE.read_text(), *command, *platform.libc_ver(), _processor()])
        name = f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nrf" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path):  # of processes that start together one builds
                if not path.exists():
                    _build(command, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace").splitlines()
        reason = next((line for line in lines if "error" in line.lower()), lines[0])
        warnings.warn(f"scans are not compiled, training is slower: {compiler}: {reason}", stacklevel=2)
        return None


def _build(command, path):
    with whole_file(path, ending=".so") as partial:
        command = [*command, str(SOURCE), "-o", str(partial)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"LC_ALL": "C"})
        ctypes.CDLL(str(partial))  # what does not load is not kept


def _processor():
    """What `-march=native` depends on: a home may be shared by machines."""
    try:
        with open("/proc/cpuinfo") as lines:
            first = itertools.takewhile(str.strip, lines)  # of several equal ones
            return "".join(line for line in first if line.startswith(PROCESSOR))
    except OSError:
        return platform.machine() + platform.processor()
