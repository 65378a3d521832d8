"""Event cameras' recordings as frames in the network's field, one stretch of time after the other.

A `View` says which part of a file is taken and how the sensor is laid over the field; `stretches` walks
through the file once and holds one stretch at a time.  GERD's own `.dat` files are told apart by their first
bytes and read by `dataset.read_recording`.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nrf.data.event_files import UNITS_US, Events, EventStream, open_events
from nrf.data.recordings import DataError, Recording, read_recording

FITS = ("letterbox", "crop", "stretch")
MOST_FRAMES = 2**26  # of a stretch: 18 hours
COMPACT = 2**22  # cells of a stretch that are kept before doubles are dropped


class View(NamedTuple):
    """How a file is seen.  ValueError, from `check`, for what cannot be."""

    resolution: Sequence[int]  # (H, W) of the field in pixels
    sensor: Sequence[int] | None = None  # (height, width) of the camera, None for what the file states
    fit: str = "letterbox"  # all of the sensor, bars around it; "crop": none, its edges lost; "stretch"
    bin_us: int = 1000  # microseconds per frame
    start: int = 0  # frames to skip, from the first event on
    frames: int | None = None  # frames of a stretch, None for all in one
    columns: Sequence[str] | None = None  # of tables, see `open_events`
    time_unit: str | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace, resolution: Sequence[int]) -> "View":
        """The View of a command line's flags."""
        values = {name: getattr(arguments, name) for name in cls._fields if name != "resolution"}
        return cls(resolution, **values).check()

    def check(self) -> "View":
        """Itself, if it can be."""
        for name, least in (("start", 0), ("bin_us", 1), ("frames", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} {value}: expected {least} or more")
        if self.sensor and min(self.sensor) < 1:
            raise ValueError(f"--sensor {self.sensor[0]} {self.sensor[1]}: expected 1 or more")
        for name, known in (("fit", FITS), ("time_unit", (None, *UNITS_US))):
            if getattr(self, name) not in known:
                expected = ", ".join(filter(None, known))
                raise ValueError(f"--{name} {getattr(self, name)}: expected one of {expected}")
        return self


class Placement(NamedTuple):
    """The map from a sensor's pixels to the field's: h = (y * scale_h + shift_h), likewise w; rational, so
    that cells are exact.  scales: ((numerator, denominator) along H, along W)."""

    sensor: tuple[int, ...]
    resolution: tuple[int, ...]
    scales: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, sensor: Sequence[int], resolution: Sequence[int], fit: str) -> "Placement":
        """The placement of a sensor (height, width) in a field (H, W), its middle on the field's."""
        scales = tuple(zip(resolution, sensor, strict=True))
        if fit != "stretch":
            pick = min if fit == "letterbox" else max
            scales = (pick(scales, key=lambda scale: scale[0] / scale[1]),) * 2
        return cls(tuple(sensor), tuple(resolution), scales)

    def cells(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and columns (n,) of the field, and whether they lie in it, of pixels (n,) of the sensor."""
        axes = zip((y, x), self.sensor, self.resolution, self.scales, strict=True)
        h, w = (
            (2 * at * over + size * under - length * over) // (2 * under)
            for at, length, size, (over, under) in axes
        )
        H, W = self.resolution
        return h, w, (h >= 0) & (h < H) & (w >= 0) & (w < W)

    def positions(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Positions (..., 2) in the field of positions on the sensor, pixel k reaching from k to k + 1."""
        axes = zip((y, x), self.sensor, self.resolution, self.scales, strict=True)
        return np.stack(
            [
                (np.asarray(at, float) - length / 2) * over / under + size / 2
                for at, length, size, (over, under) in axes
            ],
            -1,
        )


class Stretch(NamedTuple):
    first: int  # its first frame, counted from the first event
    start_us: int  # the time at which the first event's frame 0 begins, on the file's clock
    placement: Placement
    recording: Recording  # labels None


def is_camera_file(path: str | Path) -> bool:
    """Whether a file is a camera's; else it is GERD's.  DataError where there is none to read."""
    path = Path(path)
    if path.suffix.lower() != ".dat":
        return True
    try:
        with path.open("rb") as file:
            return file.read(1) == b"%"
    except OSError as error:
        raise DataError(f"{path}: no such file; expected a recording ({error.strerror})") from None


def read_any(path: str | Path, view: View) -> Recording:
    """A Recording of the first `view.frames` frames from `view.start` on, from any of the formats.

    Cameras' files are laid into `view.resolution`, begin with their first event and have no labels (None);
    GERD's are as they are.  DataError for what is missing, damaged, without events or without a reader.
    """
    view.check()
    if is_camera_file(path):
        stretch = next(stretches(path, view), None)
        if stretch is None:
            what = f"no event from frame {view.start} on" if view.start else "no events in it"
            raise DataError(f"{path}: {what}")
        return stretch.recording
    recording = read_recording(path)
    T = recording.shape[0]
    last = T if view.frames is None else min(T, view.start + view.frames)
    if view.start >= T:
        raise DataError(f"{path}: {T} frames, none from frame {view.start} on")
    frame = recording.events[:, 0]
    events = recording.events[(frame >= view.start) & (frame < last)].clone()
    events[:, 0] -= view.start
    labels = None if recording.labels is None else recording.labels[view.start : last]
    return Recording(events, labels, (last - view.start, *recording.shape[1:]))


def stretches(path: str | Path, view: View, chunks: Iterator[Events] | None = None) -> Iterator[Stretch]:
    """The Stretches of `view.frames` frames in turn that have an event; the last one may be shorter.

    chunks: an iterator of `Events` to take instead of the file's.
    An event that comes late, by a frame at most, counts with the frame in which it comes; DataError for
    later ones.
    """
    view.check()
    stream = EventStream(None, chunks) if chunks else open_events(path, view.columns, view.time_unit)
    placement = Placement.of(_sensor(path, stream.sensor, view.sensor), view.resolution, view.fit)
    length = view.frames or 2**62
    start_us, latest_us = None, 0
    number, last = 0, 0  # of the stretch that is being filled, and its last frame so far
    cells: list[np.ndarray] = []  # of it
    for events in stream.chunks:
        if start_us is None:
            start_us = latest_us = int(events.t_us[0])
        t_us = np.maximum.accumulate(np.append(latest_us, events.t_us))[1:]
        latest_us = int(t_us[-1])
        if (late := t_us - events.t_us).max() > view.bin_us:
            raise DataError(f"{path}: time runs back by {late.max()} us; sort the events by time")
        frames = (t_us - start_us) // view.bin_us - view.start
        numbers = frames // length
        keys, kept = _cells(path, events, frames - numbers * length, placement)
        for n in np.unique(numbers[frames >= 0]).tolist():
            if n != number:
                if cells:
                    yield _stretch(cells, number, length, start_us, view, placement)
                number, cells = n, []
            inside = numbers == n
            last = int(frames[inside][-1]) - n * length
            if last >= MOST_FRAMES:
                raise DataError(f"{path}: lasts {last} frames or more; give --frames, or times are damaged")
            cells.append(np.unique(keys[inside & kept]))
            if sum(map(len, cells)) > COMPACT:
                cells = [np.unique(np.concatenate(cells))]
    if cells and start_us is not None:
        yield _stretch(cells, number, last + 1, start_us, view, placement, length)


def _sensor(path: str | Path, stated: Sequence[int] | None, given: Sequence[int] | None) -> tuple[int, ...]:
    sensor = given or stated
    if sensor is None:
        raise DataError(f"{path}: does not state the size of its sensor; give it with --sensor HEIGHT WIDTH")
    if given and stated and tuple(given) != tuple(stated):
        raise DataError(
            f"{path}: states a sensor of {stated[0]} x {stated[1]} pixels, --sensor {given[0]} x {given[1]}"
        )
    return tuple(sensor)


def _cells(
    path: str | Path, events: Events, frames: np.ndarray, placement: Placement
) -> tuple[np.ndarray, np.ndarray]:
    """The cells (frame, polarity, h, w) of events as numbers that sort by frame, and whether they lie in the
    field."""
    height, width = placement.sensor
    outside = (events.x < 0) | (events.y < 0) | (events.x >= width) | (events.y >= height)
    if outside.any():
        at = int(np.argmax(outside))
        raise DataError(
            f"{path}: an event at row {events.y[at]}, column {events.x[at]} lies outside its sensor of "
            f"{height} rows, {width} columns"
        )
    h, w, inside = placement.cells(events.y, events.x)
    H, W = placement.resolution
    return ((frames * 2 + events.on) * H + h) * W + w, inside


def _stretch(
    cells: list[np.ndarray],
    number: int,
    frames: int,
    start_us: int,
    view: View,
    placement: Placement,
    length: int | None = None,
) -> Stretch:
    """The Stretch of so many frames that begins with frame number * length."""
    H, W = view.resolution
    first = number * (length or frames)
    keys = torch.from_numpy(np.unique(np.concatenate(cells)))
    parts = []
    for size in (W, H, 2):
        parts.append(keys % size)
        keys = keys // size
    events = torch.stack([keys, *reversed(parts)], 1)
    return Stretch(view.start + first, start_us, placement, Recording(events, None, (frames, 2, H, W)))
