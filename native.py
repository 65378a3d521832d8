"""The compiled kernels of native.cpp: built at first use, kept in the user's cache, called with tensors.

They need a C++ compiler with OpenMP (`c++`, or what CXX names).  Without one torch's operations do the same,
slower.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import warnings
from pathlib import Path

import torch

from files import whole_file

SOURCE = Path(__file__).with_name("native.cpp")
# without contraction to fused multiply-adds results are those of the loops, bit by bit
FLAGS = (
    "-std=c++17 -O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp -shared -fPIC"
).split()
SUFFIXES = {torch.float32: "float", torch.float64: "double"}


def is_available(device, dtype):
    """Whether there are kernels for this device and dtype."""
    return device.type == "cpu" and dtype in SUFFIXES and library() is not None


@torch.compiler.disable
def call(name, dtype, *arguments):
    """A function of native.cpp: contiguous tensors as pointers to `dtype`, None as a null pointer."""
    getattr(library(), f"{name}_{SUFFIXES[dtype]}")(*map(_argument, arguments))


def _argument(value):
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    assert value.is_contiguous()
    return ctypes.c_void_p(value.data_ptr())


@functools.cache
def library():
    """The shared library, or None where it cannot be built, which a warning explains."""
    command = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS]
    key = "\n".join([SOURCE.read_text(), *command, _processor()])
    name = f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nrf" / name
        if not path.exists():
            with whole_file(path, ending=".so") as partial:
                command += [str(SOURCE), "-o", str(partial)]
                subprocess.run(command, check=True, capture_output=True, text=True)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # no home
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        reason = next((line for line in lines if "error" in line.lower()), lines[0])
        warnings.warn(f"scans are not compiled, training is slower: {command[0]}: {reason}", stacklevel=2)
        return None


def _processor():
    """What `-march=native` depends on: a home may be shared by machines."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.machine() + platform.processor()
