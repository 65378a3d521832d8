"""The compiled kernels of native.cpp and spectral.cpp, built at first use, kept in the user's cache.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from nrf.system.files import locked, whole_file

FLAGS = "-std=c++17 -O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp -shared -fPIC".split()
# without contraction to fused multiply-adds results are those of the loops, bit by bit
CONTRACTION = {"native": "-ffp-contract=off", "spectral": "-ffp-contract=fast"}  # by source
PROCESSOR = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
CELLS_PER_THREAD = 2**15  # cells for a thread of its own, as torch has it
SUFFIXES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}
COMPUTED = {torch.bfloat16: torch.float32}  # dtypes that kernels read and write, and what they compute in


@torch.compiler.assume_constant_result
def is_available(device: torch.device, dtype: torch.dtype, source: str = "native") -> bool:
    """Whether there are kernels for this device and dtype."""
    known = dtype in SUFFIXES and dtype not in COMPUTED
    return device.type == "cpu" and known and load(source) is not None


def call(
    name: str,
    dtype: torch.dtype,
    sizes: Sequence[int],
    constants: Sequence[float],
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor | None],
) -> None:
    """A function of the kernels: contiguous tensors of `dtype` or what is computed in, of float64 for sums,
    int64 for indices; None for a null pointer.

    name: of a function of native.cpp, or spectral.NAME.  sizes: the last is the number of all cells, which
    the kernel gets as how many threads share them.  A custom operator, which torch.compile and torch.export
    pass through.
    """
    some = next(x for x in outputs if x is not None)
    written = [some.new_empty(0) if x is None else x for x in outputs]
    tensors = (x for x in (*inputs, *written) if x is not None)
    expected = dtype, COMPUTED.get(dtype), torch.float64, torch.int64
    assert all(x.dtype in expected for x in tensors)
    torch.ops.nrf.native.default(f"{name}_{SUFFIXES[dtype]}", sizes, constants, inputs, written)


def _call(
    name: str,
    sizes: Sequence[int],
    constants: Sequence[float],
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
) -> None:
    (source, _, name), (*sizes, cells) = name.rpartition("."), sizes
    assert all(x.is_contiguous() and x.device.type == "cpu" for x in (*inputs, *outputs) if x is not None)
    getattr(load(source or "native"), name)(
        *map(ctypes.c_int64, (*sizes, _threads(cells))),
        *map(ctypes.c_double, constants),
        *(ctypes.c_void_p(None if x is None else x.data_ptr()) for x in (*inputs, *outputs)),
    )


def _threads(cells: int) -> int:
    """How many threads share so many cells of all steps: beside other programs they wait for each other."""
    return max(1, min(torch.get_num_threads(), cells // CELLS_PER_THREAD))


_OPERATORS = torch.library.Library("nrf", "DEF")


def operator(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    keep: Callable[..., Any] | None = None,
) -> None:
    """Define torch.ops.nrf.NAME, which torch.compile and torch.export pass through as it is.

    fake: gives empty tensors of the shapes and strides that the kernel returns.  backward, keep: its
    gradient, as `torch.library.register_autograd` takes them.
    """
    name = _OPERATORS.define(schema, tags=(torch.Tag.needs_exact_strides,))
    _OPERATORS.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nrf::{name}", fake, lib=_OPERATORS)
    if backward:
        torch.library.register_autograd(f"nrf::{name}", backward, setup_context=keep, lib=_OPERATORS)


def _without_gradient(
    name: str,
    sizes: Sequence[int],
    constants: Sequence[float],
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
) -> None:
    """The operator where it may be outside of the function that knows its gradient, as in an exported
    program: there a backward pass is an error rather than cut off in silence."""
    with torch._C._AutoDispatchBelowAutograd():
        torch.ops.nrf.native.default(name, sizes, constants, inputs, outputs)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        for x in outputs:
            if x.is_floating_point():
                x.requires_grad_().register_hook(_refuse)


def _refuse(grad: Tensor) -> NoReturn:
    raise RuntimeError("an exported network has no backward pass; train the network it was exported from")


operator(
    "native(str name, SymInt[] sizes, float[] constants, Tensor?[] inputs, Tensor(a!)[] outputs) -> ()",
    _call,
    lambda *arguments: None,
)
_OPERATORS.impl("native", _without_gradient, "Autograd")


def source_file(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.cpp")


@functools.cache
def load(name: str = "native") -> ctypes.CDLL | None:
    """The shared library of a source, or None where it cannot be built or kept, which a warning explains."""
    compiler, source = os.environ.get("CXX") or "c++", source_file(name)
    try:
        command = [*shlex.split(compiler), *FLAGS, CONTRACTION[name], str(source)]
        key = "\n".join([source.read_text(), *command[:-1], *platform.libc_ver(), _processor()])
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nrf"
        path = folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
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
        reason = _reason(error, compiler)
        warnings.warn(f"{name}.cpp is not compiled, training is slower: {reason}", stacklevel=2)
        return None


def _reason(error: Exception, compiler: str) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").splitlines() or [f"exit code {error.returncode}"]
        return f"{compiler}: {next((line for line in lines if 'error' in line.lower()), lines[0])}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, RuntimeError) else f"{compiler}: {error}"


def _is_ours(path: Path) -> bool:
    return not hasattr(os, "geteuid") or path.stat().st_uid == os.geteuid()


def _is_private(path: Path) -> bool:
    """Whether this is a file of this user's, and nobody else may write to it."""
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) and _is_ours(path) and not mode & OTHERS_WRITE


def _sum_file(path: Path) -> Path:
    return path.with_suffix(".sum")


def _fingerprint(path: Path) -> str:
    content = path.read_bytes()
    return f"{len(content)} {hashlib.sha256(content).hexdigest()}\n"


def _is_intact(path: Path) -> bool:
    """Whether a library is there, this user's alone, and the one that was built: a damaged one would end the
    process when it is loaded or called."""
    try:
        private = _is_private(path) and _is_private(_sum_file(path))
        return private and _sum_file(path).read_bytes() == _fingerprint(path).encode()
    except OSError:
        return False


def _build(command: Sequence[str], path: Path) -> None:
    with whole_file(path, ending=".so") as partial:
        command = [*command, "-o", str(partial)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"LC_ALL": "C"})
        ctypes.CDLL(str(partial))  # what does not load is not kept
        partial.chmod(0o700)  # whatever the umask
        with whole_file(_sum_file(path)) as sum_file:
            sum_file.write_text(_fingerprint(partial))
            sum_file.chmod(0o600)


def _processor() -> str:
    """What `-march=native` depends on: a home may be shared by machines."""
    try:
        with open("/proc/cpuinfo") as lines:
            first = itertools.takewhile(str.strip, lines)  # of several equal ones
            return "".join(line for line in first if line.startswith(PROCESSOR))
    except OSError:
        return platform.machine() + platform.processor()
