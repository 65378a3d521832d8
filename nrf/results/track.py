"""Follow shapes through one recording, frame by frame, as a camera would deliver it.

    python3 track.py logs/*/version_0/checkpoints/last.ckpt data/spatial/v0.20-p1.00-s20.0_1000/0.dat

The network's state is carried from frame to frame and nothing later is looked at.  A film shows the events,
the heat maps, the true positions and the predicted ones, each with a trail.  Recordings are GERD's .dat
files; those of event cameras (.raw, .dat, .aedat4) are cut into frames of 1 ms and stretched to the network's
field.
"""

import argparse
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch import Tensor

from nrf.config import Config
from nrf.data.cameras import View, read_any
from nrf.data.dataset import stacked
from nrf.data.recordings import Recording
from nrf.network.coordinates import unit_to_pixel
from nrf.pictures.films import check_film, terminal_picture, track_gif
from nrf.results.tables import initialisation_name, network_name
from nrf.system.files import whole_file
from nrf.training.checkpoints import load_trained, pick_device
from nrf.training.module import ShapesModel, TrackingState

# t, frame (2, H, W), positions so far (t + 1, N, 2), heat maps (N, h, w) or None
Step = Callable[[int, Tensor, np.ndarray, np.ndarray | None], None]


class Tracker:
    """A network that takes one frame at a time and keeps what it needs of earlier ones.

    The same numbers as the network on all frames at once, from rest: its state is carried, and the last
    `stack_frames` frames are kept where it sees several.
    """

    def __init__(self, model: ShapesModel) -> None:
        self.model = model
        self.state: TrackingState | None = None
        self.recent: deque[Tensor] = deque(maxlen=model.config.stack_frames)

    @torch.inference_mode()
    def step(self, frame: Tensor) -> tuple[Tensor, Tensor] | None:
        """Positions (N, 2) in pixels and heat maps (N, h, w) after the next frame (2, H, W).

        The position is where each shape will be `network_delay` ms later.  None while the frames that the
        network sees at once are not all there.
        """
        self.recent.append(frame)
        if len(self.recent) < self.model.config.stack_frames:
            return None
        config = self.model.config
        frames = stacked(torch.stack(list(self.recent))[:, None], config.stack_frames, config.sum_frames)
        tracking = self.model(frames, self.state)  # 1 1 C H W
        self.state = tracking.state
        return unit_to_pixel(tracking.coordinates[0, 0], config.resolution), tracking.heatmaps[0, 0]


class Track(NamedTuple):
    predicted_px: np.ndarray  # (T, N, 2), NaN where there is no prediction yet
    heatmaps: np.ndarray  # (T, N, h, w), zeros there
    step_ms: np.ndarray  # (steps,) milliseconds that the network took for each prediction


def frames_of(recording: Recording) -> Iterator[Tensor]:
    """The frames (2, H, W) of a recording in turn, uint8; one at a time in memory."""
    starts = torch.searchsorted(recording.events[:, 0].contiguous(), torch.arange(recording.shape[0] + 1))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        frame = torch.zeros(recording.shape[1:], dtype=torch.uint8)
        frame[tuple(recording.events[start:end, 1:].T)] = 1
        yield frame


def follow(model: ShapesModel, recording: Recording, each: Step | None = None) -> Track:
    """The Track of a network through a Recording; each(t, frame, position_px, heatmaps) sees every step."""
    tracker, device = Tracker(model), next(model.parameters()).device
    T, N = recording.shape[0], model.config.n_classes
    predicted_px, step_ms = np.full((T, N, 2), np.nan), []
    heatmaps: list[np.ndarray | None] = [None] * T
    for t, frame in enumerate(frames_of(recording)):
        start = time.perf_counter()
        step = tracker.step(frame.to(device))
        if step is not None:
            predicted_px[t], heatmaps[t] = (part.float().cpu().numpy() for part in step)
            step_ms.append(1000 * (time.perf_counter() - start))
        if each:
            each(t, frame, predicted_px[: t + 1], heatmaps[t])
    nothing = np.zeros_like(next((maps for maps in heatmaps if maps is not None), np.zeros((N, 1, 1))))
    maps = np.stack([nothing if one is None else one for one in heatmaps])
    return Track(predicted_px, maps, np.array(step_ms))


def delayed_labels(recording: Recording, delay: int, n_classes: int) -> np.ndarray:
    """Where the shapes are `delay` ms after each frame (T, N, 2): NaN beyond the end, or without labels."""
    labels_px = np.full((recording.shape[0], n_classes, 2), np.nan)
    if recording.labels is not None:
        later = recording.labels[delay:].numpy()
        labels_px[: len(later)] = later
    return labels_px


def summary(track: Track, labels_px: np.ndarray, config: Config) -> str:
    """Error and speed, in words."""
    errors_px = np.linalg.norm(track.predicted_px - labels_px, axis=-1).mean(1)
    known = np.isfinite(errors_px)
    lines = []
    if known.any():
        settled = errors_px[config.timesteps :][known[config.timesteps :]]
        settled_px = (
            f"; after a warm-up of {config.timesteps} frames {settled.mean():.2f}" if len(settled) else ""
        )
        lines.append(
            f"error in pixels, mean of {known.sum()} frames: {errors_px[known].mean():.2f}{settled_px}"
        )
    if len(track.step_ms):
        ms = np.median(track.step_ms)
        lines.append(
            f"{ms:.2f} ms per frame (median of {len(track.step_ms)}): {1000 / ms:.0f} frames per second"
        )
    return "\n".join(lines)


def live(recording: Recording, labels_px: np.ndarray, stream: TextIO) -> Step:
    """A function for `follow` that draws every step as text on a stream, in place on a terminal."""
    columns, lines = shutil.get_terminal_size()
    home, T = "\x1b[H" if stream.isatty() else "", recording.shape[0]
    if stream.isatty():
        stream.write("\x1b[2J")

    def draw(t: int, frame: Tensor, predicted_px: np.ndarray, heatmaps: np.ndarray | None) -> None:
        picture = terminal_picture(
            frame.numpy(), labels_px[t], predicted_px[t], heatmaps, (columns, lines - 2)
        )
        error_px = np.linalg.norm(predicted_px[t] - labels_px[t], axis=-1).mean()
        error = f", true black, error {error_px:.1f} px" if np.isfinite(error_px) else ""
        stream.write(f"{home}{picture}\nframe {t + 1} / {T}, predicted in colour{error}   \n")
        stream.flush()

    return draw


def run(arguments: argparse.Namespace) -> Track:
    """The Track of a command line; draws and prints what it asks for."""
    View.of(arguments, (1, 1))
    out = arguments.out or (None if arguments.live else "track.gif")
    if out:
        check_film(out, arguments.fps)
    trained = load_trained(arguments.checkpoint, pick_device(arguments.device))
    config = trained.model.config
    recording = read_any(arguments.recording, View.of(arguments, config.resolution))
    T, _, *size = recording.shape
    if tuple(size) != tuple(config.resolution):
        raise ValueError(
            f"{arguments.recording}: {size[0]} x {size[1]} pixels; the network was trained on "
            f"{config.resolution[0]} x {config.resolution[1]}"
        )
    shapes = config.n_classes if recording.labels is None else recording.labels.shape[1]
    if shapes != config.n_classes:
        raise ValueError(f"{arguments.recording}: {shapes} shapes; the network tracks {config.n_classes}")
    name = f"{network_name(trained.settings)}, {initialisation_name(trained.settings)}"
    print(f"{name}: {T} frames of {size[0]} x {size[1]} pixels from {arguments.recording}")
    labels_px = delayed_labels(recording, config.network_delay, config.n_classes)
    each = live(recording, labels_px, sys.stdout) if arguments.live else None
    track = follow(trained.model, recording, each)
    print(summary(track, labels_px, config))
    if out:
        title = f"{name}: {Path(arguments.recording).name}"
        frames = np.stack([frame.numpy() for frame in frames_of(recording)])
        film = frames, labels_px, track.predicted_px, track.heatmaps, arguments.fps
        with whole_file(out, ending=Path(out).suffix) as partial:
            track_gif(partial, *film, title=title)
        print(f"see {out}")
    return track
