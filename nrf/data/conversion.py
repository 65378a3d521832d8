"""Cameras' recordings, and tonic's data sets, as recordings to train on.

Each file becomes a folder of GERD recordings of equal length, numbered in the order of time, so that
`ShapeDataset` trains on the first 80 % of it and validates on the rest.
"""

import importlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from nrf.data.cameras import Stretch, View, stretches
from nrf.data.dataset import TRAIN_SHARE
from nrf.data.event_files import Events
from nrf.data.labels import Labels
from nrf.data.recordings import DataError, write_recording

TONIC = "tonic:"  # IN is tonic:DATASET or tonic:DATASET=FOLDER


class Converted(NamedTuple):
    folder: Path
    written: int  # recordings
    unlabelled: int  # stretches left out because an object has no position somewhere in them
    short: int  # stretches left out because they have too few frames

    def __str__(self) -> str:
        left_out = [f"{n} {why}" for n, why in zip(self[2:], ("not labelled", "too short"), strict=True) if n]
        train = int(TRAIN_SHARE * self.written)
        return f"{self.folder}: {self.written} recordings, {train} to train on" + (
            f"; left out: {', '.join(left_out)}" if left_out else ""
        )


def convert(path: str | Path, folder: Path, view: View, labels: Labels | None = None) -> Converted:
    """Write the stretches of a file that are whole and labelled throughout as `folder`/0000.dat, ...

    labels: `Labels`, a frame's being the position in its middle; None for `centroids`.  DataError where
    nothing is left to write.
    """
    return _write(path, folder, view, labels, stretches(path, view))


def convert_tonic(name: str, folder: Path, view: View) -> Converted:
    """Write the stretches of all samples of one of tonic's data sets, labelled by `centroids`."""
    dataset, _, save_to = name.removeprefix(TONIC).partition("=")
    try:
        datasets = importlib.import_module("tonic.datasets")
    except ImportError:
        raise DataError(f"{name}: needs tonic: pip install tonic") from None
    if not hasattr(datasets, dataset):
        raise DataError(f"{name}: tonic has no such data set")
    try:
        data = getattr(datasets, dataset)(save_to=save_to or "data")
    except (OSError, RuntimeError) as error:  # of its download, or of an archive that came damaged
        raise DataError(f"{name}: tonic cannot fetch it: {error}") from None
    width, height, *_ = data.sensor_size
    view = view._replace(sensor=view.sensor or (height, width))
    samples = (stretches(name, view, _events(data[i][0])) for i in range(len(data)))
    return _write(name, folder, view, None, itertools.chain.from_iterable(samples))


def _events(array: np.ndarray) -> Iterator[Events]:
    t_us, x, y = (np.asarray(array[column], np.int64) for column in "txy")
    yield Events(t_us, x, y, np.asarray(array["p"]) > 0)


def _write(
    name: str | Path, folder: Path, view: View, labels: Labels | None, found: Iterable[Stretch]
) -> Converted:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is there already; delete it, or take another OUT")
    folder.mkdir(parents=True, exist_ok=True)
    written = unlabelled = short = 0
    for stretch in found:
        events, _, shape = stretch.recording
        positions = centroids(events, shape) if labels is None else positions_of(labels, stretch, view.bin_us)
        if view.frames is not None and shape[0] < view.frames:
            short += 1
        elif not np.isfinite(positions).all():
            unlabelled += 1
        else:
            write_recording(folder / f"{written:04d}.dat", events, positions, shape)
            written += 1
    if not written:
        folder.rmdir()
        raise DataError(
            f"{name}: no recording of {view.frames} frames in it ({short} too short, {unlabelled} not "
            "labelled from end to end); take smaller --frames, or labels on the clock of the events"
        )
    return Converted(folder, written, unlabelled, short)


def positions_of(labels: Labels, stretch: Stretch, bin_us: int) -> np.ndarray:
    """Where the objects are in the middle of each frame, in pixels of the field (T, N, 2)."""
    frames = stretch.first + np.arange(stretch.recording.shape[0])
    return stretch.placement.positions(*labels.at(stretch.start_us + (frames + 0.5) * bin_us))


def centroids(events: Tensor, shape: Sequence[int]) -> np.ndarray:
    """The mean place of each frame's events (T, 1, 2), of a frame without any that of the frame before; the
    field's centre before the first.  The middle of pixel k is at k + 1/2."""
    T, _, *size = shape
    frame, places = events[:, 0].numpy(), events[:, 2:].numpy() + 0.5
    n = np.bincount(frame, minlength=T)
    sums = np.stack([np.bincount(frame, places[:, axis], T) for axis in (0, 1)], 1)
    means = np.vstack([np.array(size) / 2, sums / np.maximum(n, 1)[:, None]])
    newest = np.maximum.accumulate(np.concatenate([[0], np.where(n > 0, np.arange(1, T + 1), 0)]))[1:]
    return means[newest][:, None]


def folders_of(paths: Sequence[str], out: str | Path) -> list[Path]:
    """The folder of each file, named as it is; ValueError where two would share one."""
    stems = (
        path[len(TONIC) :].partition("=")[0] if path.startswith(TONIC) else Path(path).stem for path in paths
    )
    folders = [Path(out) / stem for stem in stems]
    for one, other in itertools.combinations(zip(paths, folders, strict=True), 2):
        if one[1] == other[1]:
            raise ValueError(f"{one[0]} and {other[0]}: both would become {one[1]}; convert them apart")
    return folders
