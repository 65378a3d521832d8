"""What TensorBoard's files hold, read fast and as far as they can be read."""

import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util.tensor_util import make_ndarray

Scalars = dict[str, dict[int, float]]  # by tag and step
EVENT_FILES = "events.out.tfevents.*"
CHECKED = 2**12  # bytes of the longest entry whose check sum is checked: all numbers, no pictures


def read_scalars(folder: Path, tags: Iterable[str]) -> Scalars:
    """{tag: {step: value}} of TensorBoard's files in a folder."""
    return read_logs(folder, tags)[0]


def read_logs(folder: Path, tags: Iterable[str]) -> tuple[Scalars, float, bool]:
    """`read_scalars`; the seconds between the first and the last entry of each file, summed: pauses do not
    count; and whether all that was logged could be read.  Values that are not finite are left out."""
    scalars: Scalars = {tag: {} for tag in tags}
    seconds, is_whole = 0.0, True
    for path in filter(Path.is_file, sorted(folder.glob(EVENT_FILES))):
        times = []
        for entry in entries(path):
            if entry is None:
                is_whole = False
                break
            if entry.session_log.status == SessionLog.START:  # resumed from here: what follows is discarded
                is_whole = True
                scalars = {
                    tag: {step: value for step, value in values.items() if step < entry.step}
                    for tag, values in scalars.items()
                }
            for value in entry.summary.value:
                if value.tag in scalars:
                    scalar = scalar_of(value)
                    if scalar is not None:
                        scalars[value.tag][entry.step] = scalar
            if entry.HasField("summary") and math.isfinite(entry.wall_time):
                times.append(entry.wall_time)
        seconds += max(times) - min(times) if times else 0.0
    return scalars, seconds, is_whole


def scalar_of(value: Any) -> float | None:
    """The finite number that a value of a summary is, else None."""
    if value.HasField("simple_value"):
        scalar = value.simple_value
    else:
        try:
            scalar = float(make_ndarray(value.tensor).item())
        except (ArithmeticError, LookupError, TypeError, ValueError):  # another program's
            return None
    return scalar if math.isfinite(scalar) else None


def entries(path: Path) -> Iterator[Any]:
    """The entries of a TensorBoard file, and None where it is damaged or still written.  TensorBoard's own
    reader takes a second for every 3 MB of pictures, whose check sums it takes in Python."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while file.tell() < size:
            head = file.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            if not 0 < length <= size - file.tell() - 4:
                yield None
                return
            content, check = file.read(length), struct.unpack("<I", file.read(4))[0]
            try:
                if length <= CHECKED and masked_crc32c(content) != check:
                    raise DecodeError
                entry = Event.FromString(content)
            except DecodeError:
                yield None
                return
            yield entry
