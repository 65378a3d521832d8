"""A recording of events in a file, read and written.

A recording is a GERD `.dat` file: `torch.save([events, labels])`, events a sparse (T, 2, H, W) tensor, labels
(T, N, 2) positions in pixels (release 0.5.1) or (T, N, 1, 2) (the paper's version).  GERD's label x runs
along H, y along W.
"""

import math
import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from nrf.system.archive import ArchiveError, load_tensors, save_whole
from nrf.system.text import printable

RENDER = "render recordings with data_generation.sh or nrf generate_data"
CONTENT = "expected [sparse events (T, 2, H, W), labels (T, N, 2)]"
FAR_PX = 2**24  # from here on float32 does not tell one pixel from the next
MAX_CELLS = 2**62  # of a recording, so that their numbers fit 64 bits


class DataError(ValueError):
    """A recording or a folder of them that cannot be used; the message names it and the remedy."""

    def __init__(self, message: str) -> None:
        # out of a DataLoader's worker comes its whole traceback as the message; our line ends it
        super().__init__(printable(message.strip().rpartition(f"{__name__}.DataError: ")[2]))


class Recording(NamedTuple):
    events: Tensor  # (n, 4) int64: frame, polarity, position along H, position along W; sorted, no two equal
    labels: Any  # (T, N, 2) float32, pixels; None of a camera's recording
    shape: tuple[int, ...]  # (T, 2, H, W)


def write_recording(path: str | Path, events: ArrayLike, labels: ArrayLike, shape: Sequence[int]) -> None:
    """Write a recording as GERD does, atomically; the same recording makes the same bytes.

    events: (n, 4) integers (frame, polarity, H, W), in any order.  labels: (T, N, 2) pixels.
    shape: (T, 2, H, W).  ValueError for events or labels that do not fit the shape.
    """
    path, shape = Path(path), tuple(map(int, shape))
    events = torch.as_tensor(events)
    if events.dim() != 2 or events.shape[1] != 4:
        raise ValueError(f"{path}: events of shape {tuple(events.shape)}; expected (n, 4)")
    frames = _sparse(events.T.to(torch.int64), torch.ones(len(events)), shape)
    labels = torch.as_tensor(labels, dtype=torch.float32).clone()
    problem = _problem(frames, labels)
    if problem:
        raise ValueError(f"{path}: {problem}; {CONTENT}")
    indices = frames.coalesce().indices().clone()  # its storage is longer, and would be saved
    frames = _sparse(indices, torch.ones(indices.shape[1]), shape, is_coalesced=True)
    save_whole(path, [frames, labels])


def read_recording(path: str | Path) -> Recording:
    """The recording in a GERD `.dat` file of either version. DataError for anything else.

    Values of 1 and more are an event, of 0 and less none, as published; those between are refused.
    """
    return read_with_places(path)[0]


def read_with_places(path: str | Path) -> tuple[Recording, Tensor]:
    """The recording, and the index of each event in its cells (n,) int64, as `_linear` counts them."""
    check_file(path)
    try:
        frames, labels = load_tensors(path, 2)
        problem = _problem(frames, labels)
    except Exception as error:  # noqa: BLE001  a foreign pickle may hold anything
        reason = error if isinstance(error, ArchiveError) else type(error).__name__
        raise DataError(f"{path}: damaged or foreign ({reason}); {RENDER}") from error
    if problem:
        raise DataError(f"{path}: {problem}; {CONTENT}; {RENDER}")
    indices, values = frames._indices(), frames._values()
    linear = _linear(indices, frames.shape)
    if not (linear[1:] > linear[:-1]).all():  # equal ones add up, as in to_dense()
        frames = _sparse(indices, values.float(), frames.shape).coalesce()
        indices, values = frames.indices(), frames.values()
        linear = _linear(indices, frames.shape)
    if values.numel() and not values.min() >= 1:
        indices, linear = indices[:, values >= 1], linear[values >= 1]
    return Recording(indices.T, labels.float().flatten(1, -2).clone(), tuple(frames.shape)), linear


def check_file(path: str | Path) -> None:
    """DataError unless both ends of the file are those of a torch archive: missing, cut short, a pipe."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for a writer
            raise DataError(f"{path}: not a file; {RENDER}")
        with open(path, "rb") as file:
            head = file.read(4)
            whole = head == b"PK\3\4" and zipfile.is_zipfile(file)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {RENDER}") from None
    if not whole:
        camera = "an event camera's; make recordings of it with nrf convert"
        what = camera if head[:1] == b"%" else f"not a recording, or cut short; {RENDER}"
        raise DataError(f"{path}: {what}")


def _problem(frames: Tensor, labels: Tensor) -> str | None:
    """What is wrong with the content of a file, in words; None if nothing is."""
    if frames.layout != torch.sparse_coo or frames.sparse_dim() != 4 or frames.dense_dim():
        return f"events are {frames.layout} of shape {tuple(frames.shape)}"
    if frames.shape[1] != 2 or not 0 < math.prod(frames.shape) < MAX_CELLS or frames.is_complex():
        return f"events are {frames.dtype} of shape {tuple(frames.shape)}"
    return _problem_of_labels(labels, len(frames)) or _problem_of_events(frames)


def _problem_of_labels(labels: Tensor, n_frames: int) -> str | None:
    if labels.layout != torch.strided or not labels.is_floating_point() or labels.dim() not in (3, 4):
        return f"labels are {labels.dtype} of shape {tuple(labels.shape)}"
    if labels.shape[2:] not in ((2,), (1, 2)) or len(labels) != n_frames or not labels.numel():
        return f"labels of shape {tuple(labels.shape)} do not go with {n_frames} frames"
    far = labels[~(labels.abs() < FAR_PX)]  # NaN, too
    return f"a label is {far[0].item():g} pixels; expected less than {FAR_PX}" if len(far) else None


def _problem_of_events(frames: Tensor) -> str | None:
    indices, values = frames._indices(), frames._values()
    if indices.numel() and (indices.min() < 0 or (indices.amax(dim=1) >= torch.tensor(frames.shape)).any()):
        return "events lie outside the field"
    if values.numel() and not values.min() >= 1:
        neither = ~((values <= 0) | (values >= 1))  # NaN, too
        if neither.any():
            return f"an event has the value {values[neither][0].item():g}, neither 0 nor 1"
    return None


def _sparse(
    indices: Tensor, values: Tensor, shape: tuple[int, ...], is_coalesced: bool | None = None
) -> Tensor:
    """A sparse tensor whose indices `_problem` checks."""
    return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=is_coalesced, check_invariants=False)


def _linear(indices: Tensor, shape: Sequence[int]) -> Tensor:
    """Index of cells (4, n), (frame, polarity, h, w), in a flat (_, P, H, W)."""
    frame, polarity, h, w = indices
    _, P, H, W = shape
    row = torch.add(h, torch.add(polarity, frame, alpha=P), alpha=H)
    return torch.add(w, row, alpha=W)
