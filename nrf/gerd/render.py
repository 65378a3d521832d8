"""Event recordings of moving shapes (GERD), rendered without drawing pictures.

    picture difference d[n] = picture[n-1] - picture[n]     integrator v[n] = v[n-1] + d[n]
    v > 1/2: event of polarity 0 (the shape leaves), v -= 1/2     v < -1/2: polarity 1 (it arrives), v += 1/2

One code path, two sources of randomness. `render` draws its own numbers from a seed per recording. `replay`
consumes torch's stream as GERD does and returns GERD's recording bit by bit. Source:
GERD, by running it; FIDELITY 30-38.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nrf.gerd.motion import WARMUP_STEPS, OwnStream, TorchStream, clean_motion, gerd_motion, pixels_needed
from nrf.gerd.outlines import Pictures, TruePictures, f32, row_spans
from nrf.gerd.pictures import UPSAMPLING, GerdPictures

SHAPES = ("circle", "square", "triangle")
GENERATORS = ("published", "gerd-0.5.1", "clean")
THRESHOLD = f32(0.5)
START_RANGE = 0.45  # integrators start at U(-0.45, 0.45)
TIE = 1e-5  # integrators this close to the threshold are computed again from exact values in every frame
CHUNK = 4096  # pixel values evaluated at once


@dataclass(frozen=True)
class RenderParameters:
    """What to render.  Sizes in pixels, velocities in pixels a frame on each axis unless `generator` differs.

    generator: "clean" true shapes, labels on the centroid, noise once; "gerd-0.5.1" that release;
        "published" the paper's version: velocity in eighths of a pixel, shear that drifts, sizes below 15
        (of 300) that become 15, noise thrice.
    scale: size in pixels, or "random" (constant per recording), or "changing" (random at first, then
        growing, shrinking).
    event_density: part of the events that survives, (0, 1].
    bg_density: noise per pixel and frame, [0, 1), over both polarities; once for "clean", once per shape
        for the other two.
    """

    generator: str = "clean"
    resolution: tuple[int, int] = (300, 300)
    length: int = 128
    shapes: tuple[str, ...] = SHAPES
    scale: float | str = 20.0
    velocity: float = 0.2
    translate: bool = True
    rotate: bool = False
    shear: bool = False
    event_density: float = 1.0
    bg_density: float = 0.001

    def __post_init__(self) -> None:
        height, width = self.resolution
        wanted = (
            (
                self.generator in GENERATORS,
                f"generator {self.generator!r}: expected one of {', '.join(GENERATORS)}",
            ),
            (height > 0 and width > 0, f"resolution {height} x {width}: expected two positive numbers"),
            (self.length >= 1, f"length {self.length}: expected at least 1 frame"),
            (bool(self.shapes), f"no shapes: expected some of {', '.join(SHAPES)}"),
            (
                set(self.shapes) <= set(SHAPES),
                f"shapes {' '.join(self.shapes)}: expected some of {', '.join(SHAPES)}",
            ),
            (
                len(set(self.shapes)) == len(self.shapes),
                f"shapes {' '.join(self.shapes)}: expected each at most once",
            ),
            (0 <= self.velocity < np.inf, f"velocity {self.velocity}: expected a number >= 0"),
            (0 < self.event_density <= 1, f"event_density {self.event_density}: expected a number in (0, 1]"),
            (0 <= self.bg_density < 1, f"bg_density {self.bg_density}: expected a number in [0, 1)"),
        )
        for good, message in wanted:
            if not good:
                raise ValueError(message)
        if isinstance(self.scale, str) and self.scale not in ("random", "changing"):
            raise ValueError(f"scale {self.scale!r}: expected a size in pixels, random or changing")
        if not isinstance(self.scale, str) and not 1 <= self.scale < np.inf:
            raise ValueError(f"scale {self.scale}: expected at least 1 pixel")
        needed = pixels_needed(self)
        if needed > min(height, width):
            raise ValueError(
                f"resolution {height} x {width}: expected at least {math.ceil(needed)} pixels a side for "
                f"scale {self.scale} with generator {self.generator}"
            )


class Rendered(NamedTuple):
    """events (n, 4) int32, sorted and unique: frame, polarity (0 leaves, 1 arrives), x (axis -2), y (axis
    -1); labels (T, N, 2) float32 pixels, where each shape is; shape (T, 2, H, W)."""

    events: np.ndarray
    labels: np.ndarray
    shape: tuple[int, int, int, int]


def render(
    parameters: RenderParameters, seed: int | Sequence[int], background: np.ndarray | None = None
) -> Rendered:
    """A recording with random numbers of its own: equal parameters and seed give an equal recording anywhere.

    seed: int or sequence of ints.  background: (n, 4) integer events of a recording to lay under it.
    """
    stream = OwnStream(np.random.default_rng(seed))
    height, width = parameters.resolution
    cells, labels = [], []
    for kind in parameters.shapes:
        events, label = _render_shape(parameters, kind, stream)
        cells.append(events)
        labels.append(label)
    fields = 1 if parameters.generator == "clean" else len(parameters.shapes)
    density = 1 - (1 - parameters.bg_density / 2) ** fields  # the union of as many independent fields
    cells.append(_noise(stream.generator, parameters.length * 2 * height * width, density))
    if background is not None:
        cells.append(_background(background, parameters))
    return _recording(parameters, cells, labels)


def replay(parameters: RenderParameters, seed: int) -> tuple[Rendered, np.ndarray]:
    """The recording that GERD renders after `torch.manual_seed(seed)` on a CPU, and torch's generator state
    afterwards: uint8 (5056,), equal to `torch.get_rng_state()`.  Generators "published" and "gerd-0.5.1";
    ValueError for "clean", and for a seed that torch does not take.
    """
    if parameters.generator == "clean":
        raise ValueError(
            "generator clean: replay follows GERD's own versions, expected published or gerd-0.5.1"
        )
    stream = TorchStream(seed)
    cells, labels = [], []
    for kind in parameters.shapes:
        events, label = _render_shape(parameters, kind, stream)
        cells += [events, _torch_noise(stream, parameters)]
        labels.append(label)
    return _recording(parameters, cells, labels), stream.state()


def _recording(p: RenderParameters, cells: list[np.ndarray], labels: list[np.ndarray]) -> Rendered:
    shape = (p.length, 2, *p.resolution)
    linear = np.sort(np.concatenate(cells), kind="stable")  # runs already sorted
    linear = linear[np.append(True, linear[1:] != linear[:-1])] if len(linear) else linear
    events = np.stack(np.unravel_index(linear, shape), 1).astype(np.int32)
    return Rendered(events, np.stack(labels, 1), shape)


def _render_shape(
    p: RenderParameters, kind: str, stream: OwnStream | TorchStream
) -> tuple[np.ndarray, np.ndarray]:
    """Linear indices of one shape's events in (T, 2, H, W) and its labels (T, 2)."""
    if p.generator == "clean":
        drawn = clean_motion(p, kind, stream)
        pictures: Pictures = TruePictures(kind, drawn.poses, p.resolution)
    else:
        drawn = gerd_motion(p, kind, stream)
        pictures = GerdPictures(kind, drawn.poses, p.resolution)
    cell = f32(1 if p.generator == "clean" else UPSAMPLING)
    width = p.resolution[1]
    values, rows, cols = _changing(pictures, len(drawn.poses.x))
    pixels = rows * width + cols
    if drawn.integrators is not None:
        start = drawn.integrators[pixels]
    else:
        assert isinstance(stream, OwnStream)  # a replay draws them with the motion
        start = stream.generator.uniform(-START_RANGE, START_RANGE, len(pixels)).astype(f32)
    fired, near = _integrate(values, start)
    if near.any():
        frames = np.arange(len(values))
        exact = [
            pictures.values(frames, np.full(len(frames), k), np.full(len(frames), l))
            for k, l in zip(rows[near], cols[near], strict=True)
        ]
        fired[:, :, near] = _integrate(np.stack(exact, 1), start[near])[0]
    step, polarity, which = np.unravel_index(np.flatnonzero(fired), fired.shape)
    if p.event_density < 1:
        if drawn.kept is not None:
            kept = drawn.kept[step, pixels[which]]
        else:
            assert isinstance(stream, OwnStream)
            kept = stream.generator.random((len(values) - 1, len(pixels)))[step, which] < p.event_density
        step, polarity, which = step[kept], polarity[kept], which[kept]
    recorded = step >= WARMUP_STEPS
    frame = step[recorded] - WARMUP_STEPS
    linear = (2 * frame + polarity[recorded]) * (p.resolution[0] * width) + pixels[which[recorded]]
    labels = np.stack([drawn.poses.x, drawn.poses.y], -1)[WARMUP_STEPS + 1 :].astype(f32) / cell
    return linear, labels


def _changing(pictures: Pictures, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pixel whose value ever changes: values (frames, A) float32, rows (A,), columns (A,)."""
    first_row, last_row, first_col, last_col = pictures.box
    rows = np.arange(first_row, last_row)
    (outer_low, outer_high), (inner_low, inner_high) = row_spans(pictures, rows)
    clip = [
        np.clip(span, first_col, last_col).astype(np.int16)
        for span in (outer_low, inner_low, inner_high, outer_high)
    ]
    outer_low, inner_low, inner_high, outer_high = clip
    inner_low, inner_high = (
        np.clip(inner_low, outer_low, outer_high),
        np.clip(inner_high, outer_low, outer_high),
    )
    frame, row, col = _expand(np.stack([outer_low, inner_high]), np.stack([inner_low, outer_high]))
    lost, where_row, where_col = _expand(*_moved(inner_low, inner_high))
    changing = np.zeros((last_row - first_row, last_col - first_col), bool)
    changing[row, col - first_col] = True
    changing[where_row, where_col - first_col] = True
    rows_in, cols_in = changing.nonzero()
    number = np.zeros(changing.shape, np.int32)
    number[rows_in, cols_in] = np.arange(len(rows_in))
    place = (cols_in + first_col).astype(np.int16)
    per_row = changing.sum(1)
    low, high = (np.repeat(span, per_row, axis=1) for span in (inner_low, inner_high))
    values = ((place >= low) & (place < high)).astype(f32)
    which = number[row, col - first_col]
    for i in range(0, len(frame), CHUNK):
        part = slice(i, i + CHUNK)
        values[frame[part], which[part]] = pictures.values(frame[part], row[part] + first_row, col[part])
    return values, rows_in + first_row, place


def _moved(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans (2, n - 1, rows) of all pixels that enter or leave [low, high) from one frame to the next, and
    some more."""
    edges = np.stack([low, high])
    return np.minimum(edges[:, 1:], edges[:, :-1]), np.maximum(edges[:, 1:], edges[:, :-1])


def _expand(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every (frame, row, column) of half-open spans of columns (2, frames, rows), as three index arrays."""
    length = np.maximum(high - low, 0)
    _, frame, row = length.nonzero()
    length, low = length[length > 0], low[high > low]
    inside = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return np.repeat(frame, length), np.repeat(row, length), np.repeat(low, length) + inside


def _integrate(values: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integrate and fire: values (n, A) and start (A,) float32 to events (n - 1, 2, A) bool and, per pixel,
    whether an integrator ever came so close to the threshold that a last bit could decide."""
    v = start.copy()
    fired = np.zeros((len(values) - 1, 2, values.shape[1]), bool)
    near = np.zeros(len(start), bool)
    change = np.empty_like(v)
    for n, (leaves, arrives) in enumerate(fired):
        v += np.subtract(values[n], values[n + 1], out=change)
        np.greater(v, THRESHOLD, out=leaves)
        np.less(v, -THRESHOLD, out=arrives)
        np.subtract(np.abs(v, out=change), THRESHOLD, out=change)
        near |= np.abs(change, out=change) < TIE
        v -= np.multiply(leaves, THRESHOLD, out=change)
        v += np.multiply(arrives, THRESHOLD, out=change)
    return fired, near


def _noise(generator: np.random.Generator, cells: int, density: float) -> np.ndarray:
    """Indices below `cells` that fire with probability `density` each, sorted: the gaps between them are
    geometric."""
    if density <= 0:
        return np.zeros(0, np.int64)
    found, last, expected = [], -1, cells * density
    while last < cells:
        at = last + np.cumsum(generator.geometric(density, int(expected + 6 * expected**0.5 + 16)))
        found.append(at)
        last = at[-1]
    at = np.concatenate(found)
    return at[: np.searchsorted(at, cells)]


def _torch_noise(stream: TorchStream, p: RenderParameters) -> np.ndarray:
    """The same field as torch draws it: one float32 uniform per cell."""
    cells, found = p.length * 2 * p.resolution[0] * p.resolution[1], []
    for start in range(0, cells, 1 << 20):
        fires = stream.uniforms(min(1 << 20, cells - start)) < f32(p.bg_density / 2)
        found.append(start + fires.nonzero()[0])
    return np.concatenate(found)


def _background(events: np.ndarray, p: RenderParameters) -> np.ndarray:
    """Linear indices of a background recording's first frames, refused where it does not cover the field."""
    events = np.asarray(events)
    shape = (p.length, 2, *p.resolution)
    events = events[events[:, 0] < p.length]
    if len(events) and np.any(events[:, 1:].max(0) >= shape[1:]):
        raise ValueError(
            f"the background is larger than the field of {p.resolution[0]} x {p.resolution[1]} pixels"
        )
    return np.ravel_multi_index(tuple(events.T), shape)
