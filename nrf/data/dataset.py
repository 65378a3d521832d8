"""Recordings of events: one file read and written, published windows over them, batches that stay sparse.

A recording is a GERD `.dat` file: `torch.save([events, labels])`, events a sparse (T, 2, H, W) tensor, labels
(T, N, 2) positions in pixels (release 0.5.1) or (T, N, 1, 2) (the paper's version).  GERD's label x runs
along H, y along W.  Events stay indices through workers and bus; `dense_frames` scatters them on the device.
Source: FIDELITY 16-18.
"""

import math
import os
import re
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from nrf.data.sampling import EpochSampler, SharedBatches
from nrf.system.archive import UNREADABLE, ArchiveError, load_tensors, save_whole
from nrf.system.processes import follow_parent
from nrf.system.text import printable

TRAIN_SHARE = 0.8  # of each folder's files, in the order of their names as text
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
    labels: Tensor  # (T, N, 2) float32, pixels
    shape: tuple  # (T, 2, H, W)


class Sample(NamedTuple):
    events: Tensor  # (n,) int32: index of each event in the window's (frames, 2, H, W) cells
    labels: Tensor  # (t, N, 2) float32, pixels


class EventBatch(NamedTuple):
    events: Tensor  # (n,) int32, those of all samples in turn
    counts: Tensor  # (B,) int64, events per sample
    labels: Tensor  # (B, t, N, 2) float32, pixels


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
    return _read(path)[0]


def _read(path: str | Path) -> tuple[Recording, Tensor]:
    """The recording, and the index of each event in its cells (n,) int64, as `_linear` counts them."""
    check_file(path)
    try:
        frames, labels = load_tensors(path, 2)
        problem = _problem(frames, labels)
    except UNREADABLE as error:
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


class ShapeDataset(Dataset):
    """Windows of recordings under `root`/*/*.dat, with the published split and windows.

    Item i is chunk i % chunks of file i // chunks: t warm-up steps, then t steps to train on, and the labels
    `network_delay` ms after them (t = timesteps; with stacking a step sees `stack_frames` frames, and a
    window is t + stack_frames - 1 frames).  Only chunks that fit exist (FIDELITY 17).  split: "train", the
    first 80 % of each folder's files; "val", the rest; "all".  dataset_filter: regular expression searched in
    the path. resolution: (H, W) that every recording must have, None for that of the first.
    n_classes: shapes in the labels.  n_channels: of the frames that `dense_frames` makes.
    DataError if there is nothing to read, or it is too short for one window; ValueError for bad settings.
    """

    def __init__(
        self,
        root: str | Path,
        timesteps: int = 40,
        split: str = "train",
        network_delay: int = 1,
        stack_frames: int = 1,
        sum_frames: int = 0,
        dataset_filter: str | None = None,
        resolution: tuple[int, int] | None = None,
    ) -> None:
        if timesteps < 1 or stack_frames < 1 or network_delay < 0:
            raise ValueError(
                f"timesteps {timesteps}, stack_frames {stack_frames}, network_delay {network_delay}: "
                "expected 1, 1 and 0 or more"
            )
        self.timesteps, self.network_delay, self.stack_frames = timesteps, network_delay, stack_frames
        self.n_channels = 2 if sum_frames else 2 * stack_frames
        self.window = timesteps + stack_frames - 1  # frames that the steps of one half see
        self.files = recordings(root, split, dataset_filter)
        first = read_recording(self.files[0])
        self.resolution = tuple(resolution or first.shape[2:])
        self.n_classes = first.labels.shape[1]
        self.chunks = self._chunks(first, self.files[0])
        cells = math.prod((2 * self.window, 2, *self.resolution))
        if cells > torch.iinfo(torch.int32).max:
            raise ValueError(f"a window of {cells} cells; expected fewer than 2^31: take smaller timesteps")

    def _chunks(self, recording: Recording, path: Path) -> int:
        frames, H, W = recording.shape[0], *recording.shape[2:]
        if (H, W) != self.resolution or recording.labels.shape[1] != self.n_classes:
            raise DataError(
                f"{path}: {recording.labels.shape[1]} shapes in {H} x {W} pixels; "
                f"expected {self.n_classes} in {self.resolution[0]} x {self.resolution[1]}, "
                "as in the other recordings or --resolution"
            )
        published = frames // (2 * self.timesteps + self.network_delay)
        fitting = (frames - self.network_delay - self.window) // self.window
        if min(published, fitting) < 1:
            raise DataError(
                f"{path}: {frames} frames; twice {self.timesteps} timesteps with {self.stack_frames} stacked "
                f"frames and a delay of {self.network_delay} need {2 * self.window + self.network_delay}; "
                "take smaller --timesteps or longer recordings"
            )
        return min(published, fitting)

    def __len__(self) -> int:
        return len(self.files) * self.chunks

    def __getitem__(self, i: int) -> Sample:
        file, chunk = divmod(i, self.chunks)
        path = self.files[file]
        recording, linear = _read(path)
        if self._chunks(recording, path) < self.chunks:
            raise DataError(f"{path}: {recording.shape[0]} frames, fewer than {self.files[0]}; {RENDER}")
        start = chunk * self.window
        end = start + 2 * self.window
        cells = math.prod(recording.shape[1:])  # of one frame
        inside = slice(*torch.searchsorted(linear, torch.tensor([start, end]) * cells).tolist())
        events = linear[inside] - start * cells
        labels = recording.labels[end - self.timesteps + self.network_delay : end + self.network_delay]
        return Sample(events.to(torch.int32), labels)


def recordings(root: str | Path, split: str, dataset_filter: str | None = None) -> list[Path]:
    """The files of a split under `root`/*/*.dat, folders and names sorted as text. DataError if there are
    none; ValueError for a split or filter that cannot be."""
    if split not in ("train", "val", "all"):
        raise ValueError(f"split {split!r}: expected train, val or all")
    try:
        matches = re.compile(dataset_filter or "").search
    except re.error as error:
        raise ValueError(
            f"dataset_filter {dataset_filter!r}: expected a regular expression ({error})"
        ) from None
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {RENDER}")
    files, n_found = [], 0
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != "."):
        names = sorted(path for path in folder.glob("*.dat") if path.name[0] != ".")
        n_train, n_found = int(TRAIN_SHARE * len(names)), n_found + len(names)
        files += {"train": names[:n_train], "val": names[n_train:], "all": names}[split]
    if not n_found:
        inside = "; its .dat files must lie in folders of it" if any(root.glob("*.dat")) else ""
        raise DataError(f"{root}: no */*.dat{inside}; {RENDER}")
    if not files:
        raise DataError(
            f"{root}: none of {n_found} recordings is for training, which takes the first 80 % of each "
            f"folder; {RENDER}"
        )
    files = [path for path in files if matches(str(path))]
    if not files:
        raise DataError(f"{root}: no recording of the split {split} matches {dataset_filter!r}")
    for path in files:
        check_file(path)
    return files


def collate(samples: Sequence[Sample]) -> EventBatch:
    """Samples to an EventBatch; none to an empty one."""
    if not samples:
        none = torch.empty(0, dtype=torch.int32)
        return EventBatch(none, none.long(), torch.empty(0, 0, 0, 2))
    return EventBatch(
        torch.cat([sample.events for sample in samples]),
        torch.tensor([len(sample.events) for sample in samples]),
        torch.stack([sample.labels for sample in samples]),
    )


def dense_frames(
    batch: EventBatch, resolution: tuple[int, int], timesteps: int, stack_frames: int = 1, sum_frames: int = 0
) -> tuple[Tensor, Tensor]:
    """Warm-up and actual frames of a batch, each uint8 (t, B, C, H, W), scattered on the batch's device.

    C is 2 polarities, times stack_frames, oldest frame first; sum_frames adds these up instead (values up to
    stack_frames).  This is where batches turn from B first to T first.
    """
    if sum_frames:
        halves = dense_frames(batch, resolution, timesteps + stack_frames - 1)
        return stacked(halves[0], stack_frames, sum_frames), stacked(halves[1], stack_frames, sum_frames)
    window, B = timesteps + stack_frames - 1, len(batch.counts)
    H, W = resolution
    events, cells, device = batch.events, 2 * H * W, batch.events.device  # cells of one frame
    # A frame is in stack_frames steps: the oldest of one, newer in those before.  The steps of both halves as
    # one are made, with space before the first; those across the middle are left out in the end.
    n_steps, in_step = 2 * window + stack_frames - 1, B * stack_frames * cells
    sample = torch.repeat_interleave(torch.arange(B, device=device), batch.counts, output_size=len(events))
    place = torch.add(events, sample, alpha=stack_frames * cells)  # x + alpha * y, in one pass
    place = torch.add(place, events // cells, alpha=in_step - cells)
    frames = torch.zeros(n_steps * in_step, dtype=torch.uint8, device=device)
    for newer in range(stack_frames):
        frames[(stack_frames - 1 - newer) * in_step + newer * cells :][place] = 1
    steps = frames.view(n_steps, B, 2 * stack_frames, H, W)[stack_frames - 1 :]
    return steps[:timesteps], steps[window : window + timesteps]


def stacked(frames: Tensor, stack_frames: int, sum_frames: int) -> Tensor:
    """Frames (t + stack_frames - 1, B, C, H, W) as t steps of `stack_frames` each; see `dense_frames`."""
    if stack_frames == 1:
        return frames
    steps = len(frames) - stack_frames + 1
    shifted = [frames[k : k + steps] for k in range(stack_frames)]
    return sum(shifted[1:], shifted[0]) if sum_frames else torch.cat(shifted, dim=2)


def _start_worker(_: int) -> None:
    follow_parent()


def loader(
    dataset: ShapeDataset,
    batch_size: int,
    shuffle: bool,
    num_workers: int = 0,
    seed: int = 0,
    drop_last: bool | None = None,
    rank: int = 0,
    n_processes: int = 1,
) -> DataLoader:
    """EventBatches of a ShapeDataset.  Neither order nor content depends on the number of workers.

    drop_last None: shuffled batches are whole, unless there are too few items for one (FIDELITY 16); the
    others leave no item out.  rank of n_processes: the share of one of several processes, batch_size each.
    ValueError where there are too few items to shuffle for several.
    """
    if drop_last is None:
        drop_last = shuffle and len(dataset) >= batch_size
    sampler = EpochSampler(len(dataset), seed) if shuffle else None
    batches: dict[str, Any]
    if n_processes == 1:
        batches = {"batch_size": batch_size, "sampler": sampler, "drop_last": drop_last}
    else:
        if shuffle and len(dataset) < batch_size * n_processes:
            raise ValueError(
                f"--batch_size {batch_size} in {n_processes} processes needs {batch_size * n_processes} "
                f"items to train on; there are {len(dataset)}"
            )
        order = SequentialSampler(dataset) if sampler is None else sampler
        batches = {"batch_sampler": SharedBatches(order, batch_size, drop_last, rank, n_processes)}
    return DataLoader(
        dataset,
        **batches,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of seeds that no worker uses; else they come out of the global one
    )
