"""Loading one batch: GERD's own data set and torch's collate against sparse events and `dense_frames`.

python3 -m benchmarks.dataset [RECORDINGS] [--runs 7] [--save]    needs the gerd package

RECORDINGS: GERD's *.dat files of one release; without, even noise at their rate is written.  Both sides load
the same batch in one process.  The frames (T, B, C, H, W) are uint8 here, float32 as published; a worker's
part ends before `dense_frames`.  Memory is the most that torch held at a time for a worker's part.
"""

import argparse
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from gerd import GerdDataset
from torch.utils.data import default_collate

from benchmarks.paired import alternate, compare, machine_line, peak_bytes, write_table
from nrf.data.dataset import ShapeDataset, collate, dense_frames
from nrf.data.recordings import DataError, read_recording, write_recording

TIMESTEPS, DELAY, BATCH = 40, 1, 4
SHAPE, EVENTS = (128, 2, 300, 300), 35_000  # of a 20-pixel recording of GERD's


def published_batch(dataset):
    """(warm-up, actual, labels), collated and turned T first as the published program does."""
    batch = default_collate([dataset[i] for i in range(BATCH)])
    return tuple(tensor.transpose(0, 1) for tensor in batch)


def our_batch(dataset):
    batch = collate([dataset[i] for i in range(len(dataset))])
    return *dense_frames(batch, dataset.resolution, TIMESTEPS, dataset.stack_frames), batch.labels.transpose(
        0, 1
    )


def fill(folder, recordings):
    """Recordings in `folder`, of which BATCH are for training: copies of those given, in turn, or events
    spread evenly."""
    folder.mkdir()
    for i in range(BATCH + 1):
        if recordings:
            shutil.copy(recordings[i % len(recordings)], folder / f"{i}.dat")
            continue
        rng = np.random.default_rng(i)
        labels = rng.uniform(0, 300, (SHAPE[0], 3, 2))
        write_recording(folder / f"{i}.dat", rng.integers(0, SHAPE, (EVENTS, 4)), labels, SHAPE)


def measure(root, stack, runs):
    """Asserts that both ways give one batch, then measures them."""
    dataset = ShapeDataset(root, TIMESTEPS, "train", DELAY, stack)
    published = GerdDataset(root, TIMESTEPS, pose_delay=DELAY, stack=stack)
    assert len(dataset) == len(published) == BATCH
    *frames, labels = published_batch(published)
    for ours, theirs in zip(our_batch(dataset), (*frames, labels.flatten(2, -2)), strict=True):
        assert torch.equal(ours.float(), theirs)

    def our_worker():
        return collate([dataset[i] for i in range(BATCH)])

    def their_worker():
        return default_collate([published[i] for i in range(BATCH)])

    stacked = f"{stack} frames stacked"
    return [
        alternate(
            f"loading a batch of {BATCH}, {stacked}",
            lambda: our_batch(dataset),
            lambda: published_batch(published),
            runs,
        ),
        alternate(f"a worker's part of it, {stacked}", our_worker, their_worker, runs),
        compare(
            f"memory of a worker's part, {stacked}",
            [(peak_bytes(our_worker) / 1e6, peak_bytes(their_worker) / 1e6)],
            "MB",
        ),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="*", type=Path, help="GERD .dat files of 128 frames, 300 x 300")
    parser.add_argument("--runs", type=int, default=7, help="pairs timed (default: 7)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/dataset.md")
    arguments = parser.parse_args()
    for path in arguments.recordings:
        try:
            read_recording(path)
        except DataError as error:
            parser.error(str(error))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Validating sparse tensor invariants")  # torch 2.15, on every load
    machine = machine_line(
        timesteps=TIMESTEPS, batch=BATCH, shape=SHAPE, recordings=len(arguments.recordings)
    )
    print(machine)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "a", arguments.recordings)
        for stack in (1, 8):
            ratios += measure(folder, stack, arguments.runs)
    if arguments.save:
        write_table("dataset", ratios, machine)


if __name__ == "__main__":
    main()
