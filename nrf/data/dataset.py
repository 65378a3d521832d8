"""Published windows over recordings, and batches of them that stay sparse.

Events stay indices through workers and bus; `dense_frames` scatters them on the device.  Which axis is which:
`recordings.py`.  Source: FIDELITY 16-18.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nrf.data.recordings import RENDER, DataError, Recording, check_file, read_recording, read_with_places
from nrf.data.sampling import Batches, Position
from nrf.system.processes import follow_parent

TRAIN_SHARE = 0.8  # of each folder's files, in the order of their names as text


class Sample(NamedTuple):
    events: Tensor  # (n,) int32: index of each event in the window's (frames, 2, H, W) cells
    labels: Tensor  # (t, N, 2) float32, pixels


class EventBatch(NamedTuple):
    events: Tensor  # (n,) int32, those of all samples in turn
    counts: Tensor  # (B,) int64, events per sample
    labels: Tensor  # (B, t, N, 2) float32, pixels


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
        resolution: Sequence[int] | None = None,
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
        recording, linear = read_with_places(path)
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
    batch: EventBatch, resolution: Sequence[int], timesteps: int, stack_frames: int = 1, sum_frames: int = 0
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
    sample = torch.repeat_interleave(batch.counts, output_size=len(events))
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

    shuffle: in an order of (seed, epoch).  They start at `batch_sampler.position`, which training advances.
    drop_last None: shuffled batches are whole, unless there are too few items for one (FIDELITY 16); the
    others leave no item out.  rank of n_processes: the share of one of several processes, batch_size each.
    ValueError where there are too few items to shuffle for several.
    """
    if drop_last is None:
        drop_last = shuffle and len(dataset) >= batch_size
    if shuffle and n_processes > 1 and len(dataset) < batch_size * n_processes:
        raise ValueError(
            f"--batch_size {batch_size} in {n_processes} processes needs {batch_size * n_processes} "
            f"items to train on; there are {len(dataset)}"
        )
    position = Position(seed, shuffle)
    return DataLoader(
        dataset,
        batch_sampler=Batches(len(dataset), batch_size, drop_last, position, rank, n_processes),
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of seeds that no worker uses; else they come out of the global one
    )
