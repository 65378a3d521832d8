"""Positions of objects over time, from a user's table:  t, x, y and, of several objects, object.

A CSV file with these names in its first line, or an .npz with arrays of these names.  Positions are in pixels
of the sensor, pixel k reaching from k to k + 1; times are on the clock of the recording.
"""

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nrf.data.event_files import UNITS_US
from nrf.data.event_tables import NAMES
from nrf.data.recordings import DataError

OBJECT = ("object", "objects", "id", "class", "label", "track", "track_id")
Columns = dict[str, Any]  # by name, each a sequence of one value an entry


class Labels:
    """Where each object is at any time between its first and its last entry, straight lines between them."""

    def __init__(self, t_us: np.ndarray, x: np.ndarray, y: np.ndarray, names: Sequence) -> None:
        self.names = sorted(set(names))
        self.paths = []
        for name in self.names:
            own = np.flatnonzero(np.asarray(names) == name)
            own = own[np.argsort(t_us[own], kind="stable")]
            self.paths.append((t_us[own], x[own], y[own]))

    def at(self, t_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions y and x (T, N) at times (T,), NaN before an object's first and after its last entry."""
        y, x = (
            [np.interp(t_us, path[0], path[axis], np.nan, np.nan) for path in self.paths] for axis in (2, 1)
        )
        return np.stack(y, 1), np.stack(x, 1)


def read_labels(path: str | Path, time_unit: str | None = None) -> Labels:
    """The Labels in a .csv or .npz file.  DataError for anything else."""
    path = Path(path)
    readers = {".csv": _csv, ".npz": _npz}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: expected labels as .csv or .npz with t, x, y and object")
    try:
        columns = readers[path.suffix.lower()](path)
        t, x, y = (np.asarray(columns[name], np.float64) for name in "txy")
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        raise DataError(f"{path}: no labels of t, x, y and object ({error})") from error
    names = np.asarray(columns.get("object", np.zeros(t.shape, int)))
    if not t.shape == x.shape == y.shape == names.shape or t.ndim != 1 or not len(t):
        shapes = ", ".join(str(column.shape) for column in (t, x, y, names))
        raise DataError(f"{path}: t, x, y, object of shapes {shapes}; expected one entry or more of each")
    if not all(np.isfinite(column).all() for column in (t, x, y)):
        raise DataError(f"{path}: a time or position is not finite; leave out what is unknown")
    return Labels(t * UNITS_US[time_unit or "us"], x, y, names.tolist())


def _csv(path: Path) -> Columns:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return _named(rows[0] if rows else [], list(zip(*(row for row in rows[1:] if row), strict=True)))


def _npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as arrays:
        return _named(list(arrays), [arrays[name] for name in arrays])


def _named(names: Sequence[str], columns: Sequence) -> Columns:
    known = {"t": NAMES["t"], "x": NAMES["x"], "y": NAMES["y"], "object": OBJECT}
    lower = [name.strip().lower() for name in names]
    return {
        column: columns[lower.index(found)]
        for column, aliases in known.items()
        if (found := next((name for name in aliases if name in lower), None)) and columns
    }
