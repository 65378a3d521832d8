"""Torch archives, written atomically and read without trusting them.

An archive (`torch.save`) is checked before torch sees it: its zip, the check sum of every record, and
its pickle, run dry with inert stand-ins, so that what claims more memory than the file holds, or calls
anything but the constructors of plain tensors, is refused.  Then `torch.load(weights_only=True)` reads it;
or, several times faster, the tensors that the dry run found are made over the bytes of the file.
"""

import contextlib
import io
import math
import os
import pickle
import pickletools
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from nrf.system.files import write_whole

GIB = 2**30
MAX_ENTRIES = 100_000  # of an archive's directory
MAX_DIRECTORY = 2**24  # bytes of it
MAX_PICKLE = 2**28
DTYPES = {"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16}
DTYPES |= {"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8}
DTYPES |= {"Byte": torch.uint8, "Bool": torch.bool}
STORAGES = {f"{kind}Storage": dtype for kind, dtype in DTYPES.items()}
OPCODES_REFUSED = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}


class ArchiveError(ValueError):
    """What is wrong with an archive, in words, without its name."""


def save_whole(path: str | Path, content: object) -> None:
    """`torch.save`, atomically; the same content makes the same bytes."""
    archive = io.BytesIO()  # a file's own name would end up in it
    torch.save(content, archive)
    write_whole(path, archive.getbuffer())


def load_archive(path: str | Path, max_bytes: int = GIB) -> Any:
    """The content of a `torch.save`d file on the CPU.  ArchiveError for anything but plain tensors,
    containers, numbers and texts, whole, in at most `max_bytes`; OSError where there is no file to read."""
    with _archive(path, max_bytes) as (file, size):
        content = file.read(size)
        _dry_run(io.BytesIO(content), content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def load_tensors(path: str | Path, n: int, max_bytes: int = GIB) -> list[torch.Tensor]:
    """The tensors, dense or sparse, of a list of n, over the memory of the file's bytes; errors as above.

    None requires a gradient, and the indices of sparse ones are not checked.
    """
    with _archive(path, max_bytes) as (file, size):
        content = torch.empty(size, dtype=torch.uint8).numpy().data
        file.readinto(content)
        found = _dry_run(file, content)
        if not isinstance(found, list | tuple) or len(found) != n:
            raise ArchiveError(f"not a list of {n} tensors")
        return [_made(tensor) for tensor in found]


@contextlib.contextmanager
def _archive(path: str | Path, max_bytes: int) -> Iterator[tuple[io.BufferedReader, int]]:
    """The open file and its size; what goes wrong with it becomes an ArchiveError."""
    with open(path, "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise ArchiveError(f"{size} bytes, expected at most {max_bytes}")
            _check_directory(file, size)
            file.seek(0)
            yield file, size
        except ArchiveError:
            raise
        except Exception as error:  # noqa: BLE001  damaged bytes raise anything in zipfile, pickle and torch
            said = str(error).strip().partition("\n")[0][:120]
            raise ArchiveError(f"{type(error).__name__}: {said}" if said else type(error).__name__) from error


def _dry_run(file: IO[bytes], content: bytes | memoryview) -> Any:
    """What the pickle of an archive holds, with stand-ins for tensors, from the open file and its bytes.
    ArchiveError, or whatever zipfile, pickle and torch raise, unless torch can read it safely."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    names = {entry.filename for entry in entries}
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise ArchiveError("compressed or encrypted, which torch never writes")
    if len(names) < len(entries) or sum(entry.file_size for entry in entries) > len(content):
        raise ArchiveError("its records overlap")
    records = {entry.filename: _record(entry, memoryview(content)) for entry in entries}
    pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1 or len(records[pickles[0]]) > MAX_PICKLE:
        raise ArchiveError("no archive of torch")
    folder = pickles[0].removesuffix("/data.pkl")
    if records.get(f"{folder}/byteorder", b"little") != sys.byteorder.encode():
        raise ArchiveError("its numbers are in another byte order than this machine's")
    return _DryRun(bytes(records[pickles[0]]), records, folder).load()


def _record(entry: zipfile.ZipInfo, content: memoryview) -> memoryview:
    """The bytes of an entry of a zip's directory, after its header."""
    start = entry.header_offset
    signature, name, extra = struct.unpack("<4s22x2H", content[start : start + 30])
    start += 30 + name + extra
    record = content[start : start + entry.file_size]
    if signature != b"PK\3\4" or zlib.crc32(record) != entry.CRC:
        raise ArchiveError("a check sum is wrong")
    return record


def _check_directory(file: IO[bytes], size: int) -> None:
    """ArchiveError unless the end of the file is that of a zip with a directory of a likely size."""
    file.seek(max(size - 98, 0))
    tail = file.read(98)
    end = struct.unpack("<4s4H2IH", tail[-22:]) if len(tail) >= 22 else (b"",)
    if end[0] != b"PK\5\6" or end[-1]:
        raise ArchiveError("not an archive of torch, or cut short")
    n, length = end[4:6]
    wide = struct.unpack("<2Q", tail[32:48]) if tail[56:60] == b"PK\6\7" else (n, length)
    if n > MAX_ENTRIES or length > MAX_DIRECTORY or wide != (n, length):
        raise ArchiveError(f"a directory of {max(n, wide[0])} records in {max(length, wide[1])} bytes")


class _Storage(NamedTuple):
    record: memoryview
    dtype: torch.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Sparse(NamedTuple):
    indices: _Tensor
    values: _Tensor
    size: tuple[int, ...]


class _DryRun(pickle.Unpickler):
    """The pickle of an archive, with stand-ins that hold nothing: ArchiveError for what a tensor cannot
    be."""

    def __init__(self, content: bytes, records: Mapping[str, memoryview], folder: str) -> None:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in OPCODES_REFUSED:
                raise ArchiveError(f"its pickle uses {opcode.name}")
            if "PUT" in opcode.name and int(argument or 0) > len(
                content
            ):  # the unpickler would allocate as many
                raise ArchiveError("its pickle asks for too much memory")
        super().__init__(io.BytesIO(content))
        self.records, self.folder = records, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if f"{module}.{name}" not in STAND_INS:
            raise ArchiveError(f"it holds a {module}.{name}")
        return STAND_INS[f"{module}.{name}"]

    def persistent_load(self, identifier: Any) -> _Storage:
        tag, dtype, key, _, n = identifier
        types = isinstance(dtype, torch.dtype), type(key) is str, type(n) is int
        if tag != "storage" or not all(types) or n < 0:
            raise ArchiveError("a storage of another kind")
        record = self.records.get(f"{self.folder}/data/{key}")
        if record is None or len(record) != n * dtype.itemsize:
            raise ArchiveError(f"record {key!r:.40} has not the size of its tensor")
        return _Storage(record, dtype)


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *rest: object) -> _Tensor:
    numbers = (offset, *size, *stride)
    flags = any(rest[2:])  # its numbers are to be negated
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers) or flags:
        raise ArchiveError("no tensor")
    n, n_stored = math.prod(size), len(storage.record) // storage.dtype.itemsize
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if n > n_stored or (n and last >= n_stored):
        raise ArchiveError(f"a tensor of shape {tuple(size)} out of {n_stored} numbers")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _sparse(layout: str, parts: Sequence) -> _Sparse:
    if layout == "torch.sparse_coo":
        return _Sparse(*parts[:3])
    raise ArchiveError("a tensor of another layout")


def _made(found: object) -> torch.Tensor:
    """The tensor that a stand-in stands for."""
    if isinstance(found, _Sparse):
        indices, values = _made(found.indices), _made(found.values)
        return torch.sparse_coo_tensor(indices, values, found.size, check_invariants=False)
    if not isinstance(found, _Tensor):
        raise ArchiveError("no tensor")
    (record, dtype), offset, size, stride = found
    numbers = torch.frombuffer(record, dtype=dtype) if len(record) else torch.empty(0, dtype=dtype)
    if numbers.data_ptr() % dtype.itemsize:  # never as torch writes it
        numbers = numbers.clone()
    return numbers.as_strided(size, stride, offset)


STAND_INS = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch.serialization._get_layout": lambda name: name,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
}
