"""Recordings of events: one file read and written, the published windows over them, and batches that stay
sparse.

A recording is a GERD `.dat` file: `torch.save([events, labels])`, events a sparse (T, 2, H, W) tensor, labels
(T, N, 2) positions in pixels (release 0.5.1) or (T, N, 1, 2) (the paper's version).  GERD's label x runs
along H, y along W. Events stay indices through workers and bus; `dense_frames` scatters them on the device.
Source: FIDELITY 16-18.
"""

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

TRAIN_SHARE = 0.8  # of each folder's files, in the order of their names as text
RENDER = "render recordings with data_generation.sh or generate_data.py"


class DataError(ValueError):
    """A recording or a folder of them that cannot be used; the message names it and the remedy."""


class Recording(NamedTuple):
    events: Tensor  # (n, 4) int: frame, polarity, position along H, position along W
    labels: Tensor  # (T, N, 2) float32, pixels
    shape: tuple  # (T, 2, H, W)


class Sample(NamedTuple):
    events: Tensor  # (n,) int32: index of each event in the window's (frames, 2, H, W) cells
    labels: Tensor  # (t, N, 2) float32, pixels


class EventBatch(NamedTuple):
    events: Tensor  # (n,) int32, those of all samples in turn
    counts: Tensor  # (B,) int64, events per sample
    labels: Tensor  # (B, t, N, 2) float32, pixels


def write_recording(path, events, labels, shape):
    """Write a recording as GERD does, whole or not at all.

    events: (n, 4) integers (frame, polarity, H, W).  labels: (T, N, 2) pixels.  shape: (T, 2, H, W).
    """
    path = Path(path)
    indices = torch.as_tensor(events).to(torch.int64).reshape(-1, 4).T.contiguous()
    frames = torch.sparse_coo_tensor(
        indices, torch.ones(indices.shape[1]), tuple(shape), check_invariants=True
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save([frames.coalesce(), torch.as_tensor(labels, dtype=torch.float32)], file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_recording(path):
    """The recording in a GERD `.dat` file of either version. DataError for anything else,
    FileNotFoundError."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a recording, or damaged ({reason}); {RENDER}") from None
    problem = _problem(loaded)
    if problem:
        raise DataError(f"{path}: {problem}; want [sparse events (T, 2, H, W), labels (T, N, 2)]; {RENDER}")
    frames, labels = loaded
    events = frames._indices().T[frames._values() > 0]
    if labels.dim() == 4:
        labels = labels[:, :, 0]
    return Recording(events, labels.float(), tuple(frames.shape))


def _problem(loaded):
    """What is wrong with the content of a file, in words; None if nothing is."""
    if not isinstance(loaded, list | tuple) or len(loaded) != 2 or not all(map(torch.is_tensor, loaded)):
        return "not a list of two tensors"
    frames, labels = loaded
    if frames.layout != torch.sparse_coo or frames.sparse_dim() != 4 or frames.shape[1] != 2:
        return f"events are {frames.layout} of shape {tuple(frames.shape)}"
    if not labels.is_floating_point() or labels.shape[-1:] != (2,) or labels.dim() not in (3, 4):
        return f"labels are {labels.dtype} of shape {tuple(labels.shape)}"
    if labels.dim() == 4 and labels.shape[2] != 1 or len(labels) != len(frames) or not labels.numel():
        return f"labels of shape {tuple(labels.shape)} do not go with {len(frames)} frames"
    if not labels.isfinite().all():
        return "labels are not finite"
    indices, values = frames._indices(), frames._values()
    limits = torch.tensor(frames.shape)[:, None]
    if ((indices < 0) | (indices >= limits)).any():
        return "events lie outside the field"
    if not values.isfinite().all() or ((values > 0) & (values < 1)).any():
        return "events are neither 0 nor 1"
    return None


class ShapeDataset(Dataset):
    """Windows of recordings under `root`/*/*.dat, with the published split and windows.

    Item i is chunk i % chunks of file i // chunks: t warm-up steps, then t steps to train on, and the labels
    `network_delay` ms behind them (t = timesteps; with stacking a step sees `stack_frames` frames, and a
    window is t + stack_frames - 1 frames).  Only chunks that fit exist (FIDELITY 17).  split: "train", the
    first 80 % of each folder's files; "val", the rest; "all".  dataset_filter: regular expression searched in
    the path. resolution: (H, W) that every recording must have, None for that of the first.
    DataError if there is nothing to read, or it is too short for one window.
    """

    def __init__(
        self,
        root,
        timesteps=40,
        split="train",
        network_delay=1,
        stack_frames=1,
        sum_frames=0,
        dataset_filter=None,
        resolution=None,
    ):
        self.timesteps, self.network_delay = timesteps, network_delay
        self.stack_frames, self.sum_frames = stack_frames, sum_frames
        self.window = timesteps + stack_frames - 1  # frames behind the steps of one half
        self.files = recordings(root, split, dataset_filter)
        first = read_recording(self.files[0])
        self.resolution = tuple(resolution or first.shape[2:])
        self.n_classes = first.labels.shape[1]
        self.chunks = self._chunks(first, self.files[0])

    def _chunks(self, recording, path):
        frames, H, W = recording.shape[0], *recording.shape[2:]
        if (H, W) != self.resolution or recording.labels.shape[1] != self.n_classes:
            raise DataError(
                f"{path}: {recording.labels.shape[1]} shapes in {H} x {W} pixels; want {self.n_classes} in "
                f"{self.resolution[0]} x {self.resolution[1]}, as in the other recordings or --resolution"
            )
        published = frames // (2 * self.timesteps + self.network_delay)
        fitting = (frames - self.network_delay - self.window) // self.window
        if min(published, fitting) < 1:
            raise DataError(
                f"{path}: {frames} frames; twice {self.timesteps} timesteps with {self.stack_frames} stacked "
                f"frames and a delay of {self.network_delay} want {2 * self.window + self.network_delay}; "
                "take smaller --timesteps or longer recordings"
            )
        return min(published, fitting)

    def __len__(self):
        return len(self.files) * self.chunks

    def __getitem__(self, i):
        path = self.files[i // self.chunks]
        recording = read_recording(path)
        if self._chunks(recording, path) < self.chunks:
            raise DataError(f"{path}: {recording.shape[0]} frames, fewer than {self.files[0]}; {RENDER}")
        start = i % self.chunks * self.window
        middle, end = start + self.window, start + 2 * self.window
        frame, polarity, h, w = recording.events.unbind(1)
        H, W = self.resolution
        inside = (frame >= start) & (frame < end)
        events = ((((frame - start) * 2 + polarity) * H + h) * W + w)[inside]
        labels = recording.labels[middle + self.network_delay : end + self.network_delay]
        return Sample(events.to(torch.int32), labels[self.stack_frames - 1 :])


def recordings(root, split, dataset_filter=None):
    """The files of a split under `root`/*/*.dat, folders and names sorted as text. DataError if there are
    none."""
    if split not in ("train", "val", "all"):
        raise ValueError(f"split {split!r}: want train, val or all")
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {RENDER}")
    files = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        names = sorted(folder.glob("*.dat"), key=lambda path: path.name)
        n_train = int(TRAIN_SHARE * len(names))
        files += {"train": names[:n_train], "val": names[n_train:], "all": names}[split]
    if not files:
        inside = "; its .dat files must lie in folders of it" if any(root.glob("*.dat")) else ""
        raise DataError(f"{root}: no */*.dat for the split {split}{inside}; {RENDER}")
    if dataset_filter is not None:
        files = [path for path in files if re.search(dataset_filter, str(path))]
        if not files:
            raise DataError(f"{root}: no recording of the split {split} matches {dataset_filter!r}")
    for path in files:
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: not a recording, or cut short; {RENDER}")
    return files


def collate(samples):
    """Samples to an EventBatch."""
    return EventBatch(
        torch.cat([sample.events for sample in samples]),
        torch.tensor([len(sample.events) for sample in samples]),
        torch.stack([sample.labels for sample in samples]),
    )


def dense_frames(batch, resolution, timesteps, stack_frames=1, sum_frames=0):
    """Warm-up and actual frames of a batch, each uint8 (t, B, C, H, W), scattered on the batch's device.

    C is 2 polarities, times stack_frames, oldest frame first; sum_frames adds these up instead (values up to
    stack_frames).  This is where batches turn from B first to T first.
    """
    window, B = timesteps + stack_frames - 1, len(batch.counts)
    H, W = resolution
    events = batch.events.long()
    sample = torch.repeat_interleave(
        torch.arange(B, device=events.device), batch.counts, output_size=len(events)
    )
    frame, cell = events // (2 * H * W), events % (2 * H * W)
    frames = torch.zeros(2 * window * B * 2 * H * W, dtype=torch.uint8, device=events.device)
    frames[(frame * B + sample) * (2 * H * W) + cell] = 1
    frames = frames.view(2 * window, B, 2, H, W)
    return tuple(_stack(half, stack_frames, sum_frames) for half in (frames[:window], frames[window:]))


def _stack(frames, stack_frames, sum_frames):
    if stack_frames == 1:
        return frames
    stacked = frames.unfold(0, stack_frames, 1)  # t B 2 H W s
    if sum_frames:
        return stacked.sum(-1, dtype=torch.uint8)
    return stacked.movedim(-1, 2).flatten(2, 3)  # t B s*2 H W


class EpochSampler(Sampler):
    """All items, shuffled by (seed, epoch) alone, so that any epoch can be gone through again, from any
    place.

    Lightning calls `set_epoch`; `skip` items of the next epoch have been served already.
    """

    def __init__(self, n, seed):
        self.n, self.seed, self.epoch, self.skip = n, seed, 0, 0

    def __len__(self):
        return self.n

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.n, generator=generator).tolist()[self.skip :]
        self.skip = 0
        return iter(order)


def loader(dataset, batch_size, shuffle, num_workers=0, seed=0):
    """Batches of the dataset.  Shuffled ones are whole, unless there are too few items for one (FIDELITY 16);
    the others leave no item out.  Neither order nor content depends on the number of workers."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=EpochSampler(len(dataset), seed) if shuffle else None,
        drop_last=shuffle and len(dataset) >= batch_size,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
    )


def _one_thread(worker):
    torch.set_num_threads(1)
