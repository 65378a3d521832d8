"""Recordings of event cameras, read by the libraries of their formats, as frames of 1 ms.

    .raw, .dat   Prophesee EVT2, EVT3, DAT    pip install expelliarmus
    .aedat4      iniVation AEDAT 4            pip install aedat

GERD's own `.dat` files are told apart by their first bytes and read by `dataset.read_recording`.
"""

import importlib
import re
from pathlib import Path

import numpy as np
import torch

from nrf.data.dataset import DataError, Recording, read_recording

FRAME_US = 1000
HEADER = 4096  # bytes that hold a Prophesee header
UNREADABLE = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def read_any(path, resolution, max_frames=None):
    """A Recording of at most `max_frames` frames, from any of the formats.

    Foreign ones are stretched to `resolution` (H, W), begin with their first event and have no labels (None).
    DataError for files that are missing, damaged, without events, or of a format without reader.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a recording")
    with path.open("rb") as file:
        head = file.read(HEADER)
    if path.suffix == ".dat" and not head.startswith(b"%"):
        recording = read_recording(path)
    elif path.suffix in READERS:
        recording = _binned(path, *READERS[path.suffix](path, head), resolution)
    else:
        raise DataError(f"{path}: no reader for {path.suffix or 'this'}; expected .dat, {', '.join(READERS)}")
    if max_frames and max_frames < recording.shape[0]:
        inside = recording.events[:, 0] < max_frames
        labels = None if recording.labels is None else recording.labels[:max_frames]
        recording = Recording(recording.events[inside], labels, (max_frames, *recording.shape[1:]))
    return recording


def _binned(path, events, sensor, resolution):
    """Events of a structured array (microseconds, x, y, polarity) from a sensor (height, width) as a
    Recording."""
    if not len(events):
        raise DataError(f"{path}: no events in it")
    t, x, y, p = (torch.as_tensor(np.asarray(events[name], np.int64)) for name in ("t", "x", "y", "p"))
    height, width = sensor or (int(y.max()) + 1, int(x.max()) + 1)
    if min(x.min(), y.min()) < 0 or x.max() >= width or y.max() >= height:
        raise DataError(f"{path}: events lie outside its sensor of {width} x {height} pixels")
    H, W = resolution
    frame = (t - t.min()) // FRAME_US
    cells = torch.stack([frame, (p > 0).long(), y * H // height, x * W // width], 1)
    return Recording(torch.unique(cells, dim=0), None, (int(frame.max()) + 1, 2, H, W))


def _prophesee(path, head):
    header = b" ".join(re.match(rb"(?:%[^\n]*\n)*", head)[0].split()).decode("latin-1")
    version = re.search(r"\bevt ?(\d)(?:\.?0)?\b", header, re.IGNORECASE)
    encoding = "dat" if path.suffix == ".dat" else f"evt{version[1]}" if version else "unknown"
    if encoding not in ("dat", "evt2", "evt3"):
        raise DataError(f"{path}: encoding {encoding}; expected EVT2, EVT3 or DAT, as its header states")
    sensor = re.search(r"\bgeometry (?P<width>\d+)x(?P<height>\d+)", header)
    if not sensor:
        width, height = (re.search(rf"\b{n}[ =](\d+)", header, re.IGNORECASE) for n in ("width", "height"))
        sensor = {"width": width[1], "height": height[1]} if width and height else None
    events = _with("expelliarmus", path, lambda library: library.Wizard(encoding=encoding).read(path))
    return events, sensor and (int(sensor["height"]), int(sensor["width"]))


def _aedat4(path, head):
    def read(library):
        decoder = library.Decoder(str(path))
        streams = [s for s in decoder.id_to_stream().values() if s["type"] == "events"]
        packets = [packet["events"] for packet in decoder if "events" in packet]
        events = np.concatenate(packets) if packets else np.empty(0)
        return events, (streams[0]["height"], streams[0]["width"]) if streams else None

    return _with("aedat", path, read)


def _with(package, path, read):
    """What `read(package)` returns, its failures told as ours."""
    try:
        library = importlib.import_module(package)
    except ImportError:
        raise DataError(f"{path}: needs a reader: pip install {package}") from None
    try:
        return read(library)
    except UNREADABLE as error:
        raise DataError(f"{path}: damaged or foreign ({type(error).__name__}: {error})") from error


READERS = {".raw": _prophesee, ".dat": _prophesee, ".aedat4": _aedat4}
