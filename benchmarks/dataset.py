"""Loading one batch: the published way, dense from the file on, against sparse events and `dense_frames`.

python3 -m benchmarks.dataset [RECORDINGS]    GERD's *.dat files; without, even noise at their rate is written

Both sides load the same batch in one process.  The frames (T, B, C, H, W) are uint8 here, float32 as
published; a worker's part ends before `dense_frames`, and where the published one stacks its samples.
"""

import argparse
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import default_collate

from benchmarks.paired import machine_line, paired
from dataset import DataError, ShapeDataset, collate, dense_frames, read_recording, write_recording

TIMESTEPS, DELAY, BATCH = 40, 1, 4
SHAPE, EVENTS = (128, 2, 300, 300), 35_000  # of a 20-pixel recording of GERD's


def published_item(path, stack):
    """The published `__getitem__`: everything dense and float, then cut, clipped and stacked."""
    frames, labels = torch.load(path, weights_only=True)
    tau = TIMESTEPS + stack - 1
    dense = frames.to_dense().float()
    halves = [dense[:tau].clip(0, 1), dense[tau : 2 * tau].clip(0, 1)]
    if stack > 1:
        halves = [
            torch.stack([torch.cat(tuple(half[k : k + stack])) for k in range(TIMESTEPS)]) for half in halves
        ]
    return *halves, labels.squeeze()[tau + DELAY : 2 * tau + DELAY][stack - 1 :]


def published_batch(files, stack):
    """(warm-up, actual, labels), collated and turned T first as the published program does."""
    warmup, actual, labels = default_collate([published_item(path, stack) for path in files])
    return tuple(tensor.transpose(0, 1) for tensor in (warmup, actual, labels))


def our_batch(dataset):
    batch = collate([dataset[i] for i in range(len(dataset))])
    return *dense_frames(batch, dataset.resolution, TIMESTEPS, dataset.stack_frames), batch.labels.transpose(
        0, 1
    )


def n_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def fill(folder, recordings):
    """BATCH recordings in `folder`: copies of those given, in turn, or events spread evenly."""
    folder.mkdir()
    for i in range(BATCH):
        if recordings:
            shutil.copy(recordings[i % len(recordings)], folder / f"{i}.dat")
            continue
        rng = np.random.default_rng(i)
        labels = rng.uniform(0, 300, (SHAPE[0], 3, 2))
        write_recording(folder / f"{i}.dat", rng.integers(0, SHAPE, (EVENTS, 4)), labels, SHAPE)


def compare(root, stack, runs):
    """Asserts that both ways give one batch, then times them."""
    dataset = ShapeDataset(root, TIMESTEPS, "all", DELAY, stack)
    for ours, published in zip(our_batch(dataset), published_batch(dataset.files, stack), strict=True):
        assert torch.equal(ours.float(), published)
    paired(
        f"loading a batch of {BATCH}, {stack} frames stacked",
        lambda: our_batch(dataset),
        lambda: published_batch(dataset.files, stack),
        runs,
    )
    paired(
        f"a worker's part of it, {stack} frames stacked",
        lambda: collate([dataset[i] for i in range(len(dataset))]),
        lambda: default_collate([published_item(path, stack) for path in dataset.files]),
        runs,
    )
    ours = n_bytes(collate([dataset[i] for i in range(len(dataset))]))
    published = n_bytes(published_batch(dataset.files, stack))
    ratio = published / ours
    spread = f"{ratio:.4g} (n=1, {ratio:.4g}..{ratio:.4g})"
    print(f"ratio bytes handed over by a worker, {stack} frames stacked: {spread}")
    print(f"  ours {ours / 1e6:.3g} MB, theirs {published / 1e6:.4g} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="*", type=Path, help="GERD .dat files of 128 frames, 300 x 300")
    parser.add_argument("--runs", type=int, default=7, help="pairs timed (default: 7)")
    arguments = parser.parse_args()
    for path in arguments.recordings:
        try:
            read_recording(path)
        except DataError as error:
            parser.error(str(error))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Validating sparse tensor invariants")  # torch 2.15, on every load
    print(machine_line(timesteps=TIMESTEPS, batch=BATCH, shape=SHAPE, recordings=len(arguments.recordings)))
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "a", arguments.recordings)
        for stack in (1, 8):
            compare(folder, stack, arguments.runs)


if __name__ == "__main__":
    main()
