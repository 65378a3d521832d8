"""Atomic files and locks; the standard library only.

A file is written beside its place, synced to the disk, and renamed into it, so that no reader and no crash
ever meets half of one.
"""

import contextlib
import importlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

fcntl = importlib.import_module("fcntl") if os.name == "posix" else None  # elsewhere nothing is locked


@contextlib.contextmanager
def whole_file(path: str | Path, ending: str = "", make_folder: bool = True) -> Iterator[Path]:
    """A name to write to, renamed to `path` if all went well and removed otherwise.

    ending: of that name, where what writes takes the kind of file from it.
    """
    path = Path(path)
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{ending}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_whole(path: str | Path, content: bytes | memoryview) -> None:
    """Write bytes to a file atomically, into an existing folder.  OSError naming the file."""
    try:
        with whole_file(path, make_folder=False) as partial, partial.open("wb") as file:
            file.write(content)
    except OSError as error:
        raise OSError(error.errno, f"not written: {error.strerror}", str(path)) from error


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Only one process at a time is inside for this path, where the file system has locks."""
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(Path(path).with_name(f".{Path(path).name}.lock").open("w"))
        with contextlib.suppress(OSError):
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
