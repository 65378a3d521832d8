"""Tables of events, of arrays (.npy, .npz) and of text (.csv, .txt), read a chunk of rows at a time."""

import contextlib
import itertools
import re
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from nrf.data.recordings import DataError

CHUNK = 2**18  # events read at a time
Columns = Sequence[np.ndarray] | np.ndarray  # t, x, y and p of a chunk, one value an event in each
NAMES = {  # of columns, in any case
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps", "t_us", "time_us", "timestamp_us"),
    "x": ("x", "xs"),
    "y": ("y", "ys"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on"),
}


# --- numpy ---


def read_arrays(path: Path, columns: Sequence[str] | None) -> tuple[None, Iterator[Columns]]:
    """No sensor, and chunks of t, x, y, p of a structured array, a table, or four arrays."""
    with path.open("rb") as file:
        zipped = zipfile.is_zipfile(file)
    return None, _zip_chunks(path, columns) if zipped else _array_chunks(path, columns)


def _array_chunks(path: Path, columns: Sequence[str] | None) -> Iterator[Columns]:
    with contextlib.ExitStack() as stack:
        for part in _rows(path, lambda: stack.enter_context(path.open("rb"))):
            yield of_table(path, part, columns)


def _zip_chunks(path: Path, columns: Sequence[str] | None) -> Iterator[Columns]:
    with zipfile.ZipFile(path) as archive, contextlib.ExitStack() as stack:

        def rows(name: str) -> Iterator[np.ndarray]:
            return _rows(path, lambda: stack.enter_context(archive.open(f"{name}.npy")))

        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        places = by_name(names)
        if places is None and len(names) != 1:
            raise DataError(f"{path}: arrays {', '.join(names)}; expected t, x, y, p or one table")
        if places is None:
            for part in rows(names[0]):
                yield of_table(path, part, columns)
        else:
            four = (rows(names[places[column]]) for column in "txyp")
            yield from itertools.zip_longest(*four, fillvalue=np.empty(0))


def _rows(path: Path, opened: Callable[[], IO[bytes]]) -> Iterator[np.ndarray]:
    """The rows of a .npy file that `opened()` opens, a chunk at a time; of columns stored one after the
    other, it is opened for each."""
    file = opened()
    shape, fortran, dtype = _header(file)
    columns = shape[1] if len(shape) == 2 else 1
    row = dtype.itemsize * columns
    if dtype.hasobject or len(shape) not in (1, 2) or not 0 < row < 2**12:
        raise DataError(f"{path}: an array of {dtype} of shape {shape}; expected numbers, (n,) or (n, 4)")
    files = [file]
    if fortran and columns > 1:
        files += [opened() for _ in range(columns - 1)]
        for k, other in enumerate(files[1:], start=1):
            _header(other)
            other.seek(k * shape[0] * dtype.itemsize, 1)
    step = min(CHUNK, max(1, 2**26 // row))
    for start in range(0, shape[0], step):
        n = min(step, shape[0] - start)
        contents = [file.read(n * row // len(files)) for file in files]
        if (missing := n * row - sum(map(len, contents))) > 0:
            raise DataError(f"{path}: cut short, {missing} bytes or more are missing of {shape[0]} events")
        parts = [np.frombuffer(content, dtype) for content in contents]
        yield parts[0].reshape(n, *shape[1:]) if len(parts) == 1 else np.stack(parts, 1)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) that the header of an open .npy file states."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format .npy")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        return read(file)
    except tokenize.TokenError as error:  # numpy tries headers of Python 2 on what is damaged
        raise ValueError(f"a header that is no description of an array ({error})") from error


def by_name(names: Sequence[str]) -> dict[str, int] | None:
    """{"t": place, ...} of columns among names; None unless all four are there."""
    lower = [name.lower() for name in names]
    found = {}
    for column, known in NAMES.items():
        if name := next((name for name in known if name in lower), None):
            found[column] = lower.index(name)
    return found if found.keys() == NAMES.keys() else None


def _by_order(path: Path, columns: Sequence[str] | None, n: int) -> dict[str, int]:
    """{"t": place, ...} among n columns as the user names them, t, x, y, p by default."""
    columns = list(columns or "txyp")
    if set("txyp") - set(columns) or len(columns) > n:
        raise DataError(
            f"{path}: {n} columns, --columns {' '.join(columns)}; expected t, x, y and p among as many names "
            "or fewer"
        )
    return {column: columns.index(column) for column in "txyp"}


def of_table(path: Path, table: np.ndarray, columns: Sequence[str] | None) -> list[np.ndarray]:
    """t, x, y, p of a structured array, or of one of shape (n, columns)."""
    if table.dtype.names:
        places = by_name(table.dtype.names)
        if places is None:
            raise DataError(f"{path}: fields {', '.join(table.dtype.names)}; expected t, x, y, p")
        return [table[table.dtype.names[places[column]]] for column in "txyp"]
    if table.ndim != 2:
        raise DataError(f"{path}: an array of shape {table.shape}, expected (n, 4)")
    places = _by_order(path, columns, table.shape[1])
    return [table[:, places[column]] for column in "txyp"]


# --- text ---


def read_text(path: Path, columns: Sequence[str] | None) -> tuple[tuple[int, int] | None, Iterator[Columns]]:
    """The sensor, if stated, and chunks of columns of numbers, apart by commas, semicolons or blanks.

    Names in the first line that holds no comment (#), or in a comment; else `columns`.  A first line of two
    numbers is the sensor's width and height, as are faery's names x@1280 and y@720.
    """
    sensor, names, skip = None, None, 0
    with path.open(encoding="utf-8") as file:
        for line in itertools.islice(file, 100):
            words, comment = _words(line.lstrip("#")), line.startswith("#")
            sizes = dict(word.partition("@")[::2] for word in words)
            if words and not _is_number(words[0]):
                known = by_name(list(sizes))
                if not comment or known:
                    names = list(sizes)
                if sizes.get("x", "").isdigit() and sizes.get("y", "").isdigit():
                    sensor = int(sizes["y"]), int(sizes["x"])
            elif len(words) == 2 and not comment and all(word.isdigit() for word in words):
                sensor = int(words[1]), int(words[0])
            elif words and not comment:
                break
            skip += 1
        else:
            words = []
    if not words:
        return sensor, iter(())
    places = by_name(names) if names and not columns else _by_order(path, columns, len(words))
    if places is None:
        raise DataError(f"{path}: columns {', '.join(names or ())}; expected t, x, y, p, or --columns")
    return sensor, _text_chunks(path, places, skip)


def _text_chunks(path: Path, places: dict[str, int], skip: int) -> Iterator[np.ndarray]:
    order = [places[column] for column in "txyp"]
    with path.open(encoding="utf-8") as file:
        lines = (line for line in itertools.islice(file, skip, None) if line.strip())
        while part := list(itertools.islice(lines, CHUNK)):
            if "rue" in part[0] or "alse" in part[0]:
                part = [line.replace("True", "1").replace("False", "0") for line in part]
            separator = next((mark for mark in ",;" if mark in part[0]), None)
            table = np.loadtxt(part, np.float64, usecols=order, ndmin=2, delimiter=separator)
            yield table.T


def _words(line: str) -> list[str]:
    return [word for word in re.split(r"[,;\s]+", line.strip()) if word]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
