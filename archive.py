"""Torch archives, written whole or not at all and read without trusting them.

An archive (`torch.save`) is checked before torch sees it: its zip, the check sum of every record, and
its pickle, run dry with inert stand-ins, so that what claims more memory than the file holds, or calls
anything but the constructors of plain tensors, is refused.  Then `torch.load(weights_only=True)` reads it.
"""

import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import torch

from files import write_whole

GIB = 2**30
MAX_ENTRIES = 100_000  # of an archive's directory
MAX_DIRECTORY = 2**24  # bytes of it
MAX_PICKLE = 2**28
ITEM_SIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1}
ITEM_SIZES |= {"Byte": 1, "Bool": 1}
STORAGES = {f"{kind}Storage": size for kind, size in ITEM_SIZES.items()}
OPCODES_REFUSED = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}
# what damaged or foreign content raises on its way through zipfile, pickle and torch
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
)
UNREADABLE += (NotImplementedError, OSError, pickle.UnpicklingError, RecursionError, RuntimeError, TypeError)
UNREADABLE += (ValueError, zipfile.BadZipFile, struct.error)


class ArchiveError(ValueError):
    """What is wrong with an archive, in words, without its name."""


def save_whole(path, content):
    """`torch.save`, whole or not at all; the same content makes the same bytes."""
    archive = io.BytesIO()  # a file's own name would end up in it
    torch.save(content, archive)
    write_whole(path, archive.getbuffer())


def load_archive(path, max_bytes=GIB):
    """The content of a `torch.save`d file on the CPU.  ArchiveError for anything but plain tensors,
    containers, numbers and texts, whole, in at most `max_bytes`; OSError where there is no file to read."""
    with open(path, "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise ArchiveError(f"{size} bytes, want at most {max_bytes}")
            _check_directory(file, size)
            file.seek(0)
            content = io.BytesIO(file.read(size))
            check(content)
            content.seek(0)
            return torch.load(content, map_location="cpu", weights_only=True)
        except ArchiveError:
            raise
        except UNREADABLE as error:
            said = str(error).strip().partition("\n")[0][:120]
            raise ArchiveError(f"{type(error).__name__}: {said}" if said else type(error).__name__) from error


def check(file):
    """ArchiveError, or one of UNREADABLE, unless the open file is an archive that torch can read safely."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        size = file.seek(0, os.SEEK_END)
        sizes = {entry.filename: entry.file_size for entry in entries}
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise ArchiveError("compressed or encrypted, which torch never writes")
        if len(sizes) < len(entries) or sum(sizes.values()) > size:
            raise ArchiveError("its records overlap")
        if archive.testzip() is not None:
            raise ArchiveError("a check sum is wrong")
        pickles = [name for name in sizes if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1 or sizes[pickles[0]] > MAX_PICKLE:
            raise ArchiveError("no archive of torch")
        _DryRun(archive.read(pickles[0]), sizes, pickles[0].removesuffix(".pkl")).load()


def _check_directory(file, size):
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
    n: int


class _DryRun(pickle.Unpickler):
    """The pickle of an archive, with stand-ins that hold nothing: ArchiveError for what a tensor cannot
    be."""

    def __init__(self, content, sizes, folder):
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in OPCODES_REFUSED:
                raise ArchiveError(f"its pickle uses {opcode.name}")
            if "PUT" in opcode.name and int(argument) > len(
                content
            ):  # the unpickler would make room for as many
                raise ArchiveError("its pickle asks for too much memory")
        super().__init__(io.BytesIO(content))
        self.sizes, self.folder = sizes, folder

    def find_class(self, module, name):
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if f"{module}.{name}" not in STAND_INS:
            raise ArchiveError(f"it holds a {module}.{name}")
        return STAND_INS[f"{module}.{name}"]

    def persistent_load(self, identifier):
        tag, item_size, record, _, n = identifier
        if tag != "storage" or type(item_size) is not int or type(n) is not int or n < 0:
            raise ArchiveError("a storage of another kind")
        if self.sizes.get(f"{self.folder}/{record}") != n * item_size:
            raise ArchiveError(f"record {record} has not the size of its tensor")
        return _Storage(n)


def _tensor(storage, offset, size, stride, *_):
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise ArchiveError("no tensor")
    n = 1
    for length in size:
        n *= length
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if n > storage.n or (n and last >= storage.n):
        raise ArchiveError(f"a tensor of shape {tuple(size)} out of {storage.n} numbers")


STAND_INS = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch.serialization._get_layout": lambda name: None,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_sparse_tensor": lambda layout, parts: None,
    "torch._utils._rebuild_parameter": lambda data, *_: None,
}
