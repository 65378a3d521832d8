"""Event cameras' files as streams of events, each format by a reader that is kept up.

    .raw .dat .aedat4 .es   Prophesee EVT2, EVT2.1, EVT3 and DAT, iniVation AEDAT 4, Event Stream   faery
    .h5 .hdf5               DSEC and its relatives, Metavision                                     h5py
    .npz .npy .csv .txt     arrays or columns t, x, y, p                                           numpy

`open_events` reads no more than a chunk at a time, so that memory does not grow with the file.
"""

import contextlib
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from nrf.data.event_tables import CHUNK, Columns, by_name, of_table, read_arrays, read_text
from nrf.data.recordings import DataError

UNITS_US = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
HEADER = 4096  # bytes that hold a Prophesee header


class Events(NamedTuple):
    t_us: np.ndarray  # (n,) int64, microseconds
    x: np.ndarray  # (n,) int64, column of the sensor
    y: np.ndarray  # (n,) int64, row
    on: np.ndarray  # (n,) bool, polarity


class EventStream(NamedTuple):
    sensor: tuple[int, int] | None  # (height, width) in pixels as the file states it
    chunks: Iterator[Events]  # those of a chunk in the order of the file


def open_events(
    path: str | Path, columns: Sequence[str] | None = None, time_unit: str | None = None
) -> EventStream:
    """The EventStream of a file.  DataError, here or from its chunks, for what cannot be read.

    columns: what the columns of a table without names are, in their order ("t", "x", "y", "p"; others are
    skipped).  time_unit: of UNITS_US; None for what the format states, whole microseconds of a table.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        known = ", ".join(READERS)
        raise DataError(f"{path}: no reader for {path.suffix or 'files without a suffix'}; expected {known}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a recording")
    with _told(path):
        sensor, chunks = READERS[path.suffix.lower()](path, columns)
    return EventStream(sensor, _checked(path, chunks, time_unit))


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What a reader raises at a damaged file, which may be anything, becomes one line that names it."""
    try:
        yield
    except DataError:
        raise
    except BaseException as error:  # Rust's panics derive from nothing else
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged or foreign ({type(error).__name__}: {said})") from error


def _checked(path: Path, chunks: Iterable[Columns], time_unit: str | None) -> Iterator[Events]:
    """Chunks of columns as Events: one length, whole numbers that fit, times in microseconds."""
    scale = UNITS_US[time_unit or "us"]
    with _told(path):
        for columns in chunks:
            t, x, y, p = map(np.asarray, columns)
            if not t.shape == x.shape == y.shape == p.shape or t.ndim != 1:
                raise DataError(f"{path}: columns t, x, y, p of lengths {[len(c) for c in (t, x, y, p)]}")
            t_us = t if scale == 1 else np.rint(t.astype(np.float64) * scale)
            for name, values in (("t", t_us), ("x", x), ("y", y), ("p", p)):
                _check_column(path, name, values)
            if len(t):
                t_us, x, y = (column.astype(np.int64) for column in (t_us, x, y))
                yield Events(t_us, x, y, p > 0)


def _check_column(path: Path, name: str, values: np.ndarray) -> None:
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: column {name} holds {values.dtype}, expected numbers")
    if not len(values):
        return
    low, high = values.min(), values.max()
    if not (-(2**62) < low and high < 2**62):  # NaN is refused, too
        raise DataError(f"{path}: column {name} from {low} to {high}, expected finite 62-bit numbers")
    if values.dtype.kind == "f" and name != "p" and (odd := values != np.rint(values)).any():
        hint = "; give their unit with --time_unit s, ms, us or ns" if name == "t" else ""
        unit = " microseconds" if name == "t" else ""
        raise DataError(f"{path}: {name} {values[odd][0]:g}, expected whole{unit or ' pixels'}{hint}")


def _package(path: Path, name: str, install: str | None = None) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(f"{path}: needs a reader: pip install {install or name}") from None


# --- cameras' own formats ---


def _faery(path: Path, columns: Sequence[str] | None) -> tuple[tuple[int, int] | None, Iterator[Columns]]:
    reader = _package(path, "faery.file_decoder", "faery").Decoder
    kind = {".raw": "evt", ".aedat4": "aedat"}.get(path.suffix.lower(), path.suffix.lower()[1:])
    version = _version(path, kind) if kind in ("evt", "dat") else None

    def opened(size: tuple[int, int]) -> Any:
        with _quiet():
            return reader(
                path,
                dimensions_fallback=size,
                version_fallback=version,
                file_type=kind,
                time_range_cache=None,
            )

    width, height = opened((0, 0)).dimensions()
    size = (width, height) if width else (65535, 65535)  # as far as the events' 16 bits go
    return ((height, width) if width else None), _packets(opened(size))


def _packets(stream: Iterable[np.ndarray]) -> Iterator[Columns]:
    packets = iter(stream)
    while True:
        with _quiet():
            events = next(packets, None)
        if events is None:
            return
        yield events["t"], events["x"], events["y"], events["on"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing reaches the standard error, where Rust writes a page about a panic before it is raised."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _version(path: Path, kind: str) -> str:
    """The encoding that a Prophesee header states, which the reader would otherwise assume."""
    with path.open("rb") as file:
        lines = re.match(rb"(?:%[^\n]*\n)*", file.read(HEADER))
    header = lines[0].decode("latin-1") if lines else ""
    if kind == "dat":
        if not header:
            raise DataError(f"{path}: no header of lines that begin with %, as Prophesee's .dat files have")
        return "dat1" if re.search(r"^% *Version +1\b", header, re.MULTILINE) else "dat2"
    found = re.search(r"^% *(?:evt +|format +evt)(\d)\.?(\d?)", header, re.MULTILINE | re.IGNORECASE)
    encoding = f"EVT{found[1]}.{found[2] or 0}" if found else "not stated in its header"
    if encoding not in ("EVT2.0", "EVT3.0"):
        raise DataError(f"{path}: encoding {encoding}; expected EVT2.0 or EVT3.0, which Metavision exports")
    return encoding[:4].lower()


# --- HDF5 ---


def _hdf5(path: Path, columns: Sequence[str] | None) -> tuple[tuple[int, int] | None, Iterator[Columns]]:
    h5py = _package(path, "h5py")
    with contextlib.suppress(ImportError):
        importlib.import_module("hdf5plugin")  # DSEC's files are compressed with Blosc
    with h5py.File(path, "r") as file:
        sensor = _hdf5_sensor(file)
        found = _hdf5_columns(file, h5py)
        if found is None:
            raise DataError(
                f"{path}: no events in an HDF5 layout known here; expected events/{{t,x,y,p}} (DSEC), "
                f"CD/events (Metavision) or t, x, y, p"
            )
    return sensor, _hdf5_chunks(path, h5py, columns)


def _hdf5_columns(file: Any, h5py: ModuleType) -> Any:
    """The data sets or compound data set that hold the events, None if there are none."""
    for name in ("CD/events", "events", "davis/left/events", "/"):
        node = file.get(name)
        if isinstance(node, h5py.Dataset):
            return node
        if isinstance(node, h5py.Group) and (places := by_name(list(node))):
            return [node[list(node)[places[c]]] for c in "txyp"]
    return None


def _hdf5_sensor(file: Any) -> tuple[int, int] | None:
    """(height, width) in the attributes of Metavision's ("1280x720") and of event_utils' files, else None."""
    geometry = file.attrs.get("geometry", "")
    geometry = geometry.decode() if isinstance(geometry, bytes) else str(geometry)
    if stated := re.fullmatch(r"(\d+)x(\d+)", geometry.strip()):
        return int(stated[2]), int(stated[1])
    size = np.ravel(file.attrs.get("sensor_resolution", ()))
    return (int(size[0]), int(size[1])) if len(size) == 2 else None


def _hdf5_chunks(path: Path, h5py: ModuleType, columns: Sequence[str] | None) -> Iterator[Columns]:
    with h5py.File(path, "r") as file:
        found = _hdf5_columns(file, h5py)
        first = found[0] if isinstance(found, list) else found
        offset = file["t_offset"][()] if "t_offset" in file else 0  # DSEC's times are counted from it
        for start in range(0, len(first), CHUNK):
            part = slice(start, start + CHUNK)
            try:
                if isinstance(found, list):
                    t, x, y, p = (column[part] for column in found)
                else:
                    t, x, y, p = of_table(path, found[part], columns)
            except OSError as error:
                if "filter" in str(error):
                    raise DataError(
                        f"{path}: compressed; pip install hdf5plugin for DSEC's files, or point "
                        "HDF5_PLUGIN_PATH to Metavision's ECF codec"
                    ) from None
                raise
            yield np.asarray(t, np.int64) + int(offset) if t.dtype.kind in "iu" else t + offset, x, y, p


READERS = dict.fromkeys((".raw", ".dat", ".aedat4", ".es"), _faery)
READERS |= dict.fromkeys((".h5", ".hdf5"), _hdf5) | dict.fromkeys((".npz", ".npy"), read_arrays)
READERS |= dict.fromkeys((".csv", ".txt"), read_text)
