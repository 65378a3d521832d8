"""Films of tracks: events with true and predicted positions.  Split off `plots.py` for length.

Positions in pixels (..., 2) run first along the rows of an image, then along its columns, from 0 to the
field's size.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as imageio
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from nrf.pictures.plots import BLACK, BLUE, GREY, MARGIN, ORANGE, WHITE, font

PURPLE, GREEN, BROWN = (150, 20, 110), (0, 105, 60), (140, 60, 0)
INKS = (PURPLE, GREEN, BROWN)  # of predictions, by object
OBJECTS = ("circle", "square", "triangle")  # names where there are three, in GERD's order
EVENT_COLOURS = np.array([WHITE, ORANGE, BLUE, GREY], np.uint8)  # by off + 2 * on
SHADES = np.linspace(WHITE, (214, 165, 205), 12).round().astype(np.uint8)  # of heat maps, from none to most
FINE = 2  # tracks are drawn so many times larger, then reduced: smooth lines
Mark = Callable[[ImageDraw.ImageDraw, float, float], None]  # draws itself at x, y
Entry = tuple[Sequence[Any], str]  # of a legend: marks or colours, and text
FPS = (1, 50)  # browsers slow down delays of less than 20 ms


class Panel(NamedTuple):
    """What one network saw and said: a part of a film."""

    title: str | None
    predicted_px: np.ndarray  # (T, N, 2)
    heatmaps: np.ndarray | None  # (T, N, h, w)


def track_gif(
    path: str | Path,
    frames: ArrayLike,
    true_px: ArrayLike,
    predicted_px: np.ndarray,
    heatmaps: np.ndarray | None = None,
    fps: int = 20,
    trail: int = 12,
    title: str | None = None,
) -> None:
    """The film of a single network; see `film`."""
    film(path, frames, true_px, [Panel(title, predicted_px, heatmaps)], fps, trail)


def film(
    path: str | Path,
    frames: ArrayLike,
    true_px: ArrayLike,
    panels: Sequence[Panel],
    fps: int = 20,
    trail: int = 12,
) -> None:
    """Events with true and predicted positions over time, a `Panel` for each network side by side: a GIF at
    `path` (.mp4 with imageio-ffmpeg).

    frames: (T, 2, H, W) events, off then on; any value above 0 is an event.  true_px and those predicted:
    (T, N, 2) in pixels; a line joins the two of each object, and a trail shows the last `trail` steps of
    both.  Heat maps are shaded behind the events, each step by its own maximum; negatives count as 0.
    Every frame states the mean distance over the objects.  Positions that are not finite are left out, those
    outside are drawn at the border.  fps: 1 to 50; a GIF rounds its delays to 10 ms.
    ValueError for another ending or rate, or shapes that do not fit.
    """
    frames, true_px = np.asarray(frames) > 0, np.asarray(true_px, float)
    panels = [panel._replace(predicted_px=np.asarray(panel.predicted_px, float)) for panel in panels]
    check_film(path, fps)
    for panel in panels:
        _check_track(frames, true_px, panel.predicted_px, panel.heatmaps)
    pictures = _pictures(frames, true_px, panels, trail)
    if Path(path).suffix == ".mp4":
        images = [np.asarray(picture) for picture in pictures]
        imageio.imwrite(path, images, plugin="FFMPEG", fps=fps, macro_block_size=2)
    else:
        palette = _palette()
        few = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
        next(few).save(path, save_all=True, append_images=few, duration=round(100 / fps) * 10, loop=0)


def _pictures(
    frames: np.ndarray, true_px: np.ndarray, panels: Sequence[Panel], trail: int
) -> Iterator[Image.Image]:
    T, _, H, W = frames.shape
    zoom = max(1, round((480 if len(panels) == 1 else 288) / max(H, W)))
    entries = _legend(true_px, any(panel.heatmaps is not None for panel in panels), bool(frames.all(1).any()))
    stage, corners, y = _stage(W * zoom, H * zoom, [panel.title for panel in panels], entries)
    name = "error" if true_px.shape[1] == 1 else "mean error"
    small = font(16 * FINE)
    for t in range(T):
        recent = slice(max(0, t - trail), t + 1)
        picture = stage.copy()
        draw = ImageDraw.Draw(picture)
        for panel, corner in zip(panels, corners, strict=True):
            paper = _paper(frames[t], None if panel.heatmaps is None else panel.heatmaps[t])
            field = _field(paper, true_px[recent], panel.predicted_px[recent], FINE * zoom)
            picture.paste(field, corner)
            distance_px = np.linalg.norm(panel.predicted_px[t] - true_px[t], axis=-1).mean()
            if np.isfinite(distance_px):
                right = corner[0] + field.width if len(panels) > 1 else picture.width - MARGIN * FINE
                draw.text((right, y), f"{name} {distance_px:.1f} px", BLACK, small, "rm")
        draw.text((MARGIN * FINE, y), f"frame {t + 1} / {T}", BLACK, small, "lm")
        yield picture.reduce(FINE)


def terminal_picture(
    frame: np.ndarray,
    true_px: np.ndarray,
    predicted_px: np.ndarray,
    heatmap: np.ndarray | None,
    size: tuple[int, int],
) -> str:
    """The field as text for a terminal of `size` (columns, lines) in 24-bit colours, two pixels a character.

    frame: (2, H, W) events.  true_px, predicted_px: (N, 2), black and coloured crosses (`INKS`), left out
    where they are not finite.  heatmap: (N, h, w) or None.  The field is made to fit; a place has the events
    that fall on it.
    """
    _, H, W = frame.shape
    columns, lines = size
    h, w = (max(1, int(n * min(2 * lines / H, columns / W, 1))) for n in (H, W))
    h += h % 2
    small = np.zeros((2, h, w), bool)
    p, row, column = np.nonzero(frame)
    small[p, row * h // H, column * w // W] = True
    paper = _paper(small.astype(int), heatmap).copy()
    marks = [(position, BLACK) for position in true_px]
    marks += [(position, INKS[n % len(INKS)]) for n, position in enumerate(predicted_px)]
    for position, colour in marks:
        if np.isfinite(position).all():
            i, j = (
                int(np.clip(x * n / N, 0, n - 1)) for x, n, N in zip(position, (h, w), (H, W), strict=True)
            )
            paper[max(i - 1, 0) : i + 2, j] = paper[i, max(j - 1, 0) : j + 2] = colour
    rows = (
        "".join(
            "\x1b[38;2;{};{};{};48;2;{};{};{}m\u2580".format(*above, *below)
            for above, below in zip(*pair, strict=True)
        )
        for pair in paper.reshape(h // 2, 2, w, 3)
    )
    return "\x1b[0m\n".join(rows) + "\x1b[0m"


def check_film(path: str | Path, fps: float) -> None:
    """ValueError for a film's name or rate that cannot be."""
    suffix = Path(path).suffix
    if suffix not in (".gif", ".mp4"):
        raise ValueError(f"{path}: expected a name that ends in .gif or .mp4")
    if suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError(f"{path}: .mp4 needs a package, pip install imageio-ffmpeg; or write a .gif")
    if not FPS[0] <= fps <= FPS[1]:
        raise ValueError(f"fps {fps}: expected {FPS[0]} to {FPS[1]}")


def _check_track(
    frames: np.ndarray, true_px: np.ndarray, predicted_px: np.ndarray, heatmaps: np.ndarray | None
) -> None:
    T = len(frames)
    if frames.ndim != 4 or frames.shape[1] != 2 or not frames.size:
        raise ValueError(f"frames: expected (T, 2, H, W), got {frames.shape}")
    if true_px.ndim != 3 or true_px.shape[::2] != (T, 2) or not true_px.size:
        raise ValueError(f"true positions: expected ({T}, N, 2), got {true_px.shape}")
    if predicted_px.shape != true_px.shape:
        raise ValueError(f"predicted positions: expected {true_px.shape}, got {predicted_px.shape}")
    if heatmaps is not None and (np.ndim(heatmaps) != 4 or len(heatmaps) != T):
        raise ValueError(f"heat maps: expected ({T}, N, h, w), got {np.shape(heatmaps)}")


def _paper(events: np.ndarray, heatmap: np.ndarray | None) -> np.ndarray:
    """The field (H, W, 3) uint8: events (2, H, W) in their colours, on heat maps (N, h, w) or None."""
    picture = EVENT_COLOURS[events[0] + 2 * events[1]]
    if heatmap is None:
        return picture
    heat = np.nan_to_num(np.asarray(heatmap, float)).clip(0).sum(0)
    rows, columns = (_hats(n, cells) for n, cells in zip(events.shape[1:], heat.shape, strict=True))
    heat = rows @ heat @ columns.T
    shades = SHADES[(heat / (heat.max() or 1) * (len(SHADES) - 1)).round().astype(int)]
    return np.where(np.asarray(events.any(0))[..., None], picture, shades)


def _hats(n: int, cells: int) -> np.ndarray:
    """Linear interpolation at the centres of n pixels among cells from border to border: (n, cells)."""
    position = (np.arange(n) + 0.5) / n * (cells - 1)
    return (1 - np.abs(position[:, None] - np.arange(cells))).clip(0)


def _field(paper: np.ndarray, true_px: np.ndarray, predicted_px: np.ndarray, scale: int) -> Image.Image:
    """`paper` enlarged, with the last positions (steps, N, 2) marked and joined, and trails behind them."""
    image = Image.fromarray(paper.repeat(scale, 0).repeat(scale, 1))
    draw = ImageDraw.Draw(image)
    H, W, _ = paper.shape
    true, predicted = (p.clip(0, (H, W))[..., ::-1] * scale for p in (true_px, predicted_px))
    for n in range(true.shape[1]):
        for positions, colour in ((true, BLACK), (predicted, INKS[n % len(INKS)])):
            draw.line([tuple(xy) for xy in positions[:, n] if np.isfinite(xy).all()], colour, 3)
    for n, (start, end) in enumerate(zip(true[-1], predicted[-1], strict=True)):
        if np.isfinite([start, end]).all():
            draw.line([*start, *end], GREY, 3)
        for mark, xy in ((_outline, start), (_cross, end)):
            if np.isfinite(xy).all():
                mark(draw, xy[0], xy[1], n)
    return image


def _outline(draw: ImageDraw.ImageDraw, x: float, y: float, n: int = 0) -> None:
    """The true position of object n: a circle, a square or a triangle, in GERD's order."""
    if n % 3 == 0:
        draw.ellipse((x - 18, y - 18, x + 18, y + 18), outline=BLACK, width=5)
    else:
        corners = (
            ((-16, -16), (16, -16), (16, 16), (-16, 16)) if n % 3 == 1 else ((-18, 14), (18, 14), (0, -20))
        )
        points = [(x + dx, y + dy) for dx, dy in corners]
        draw.line([*points, *points[:2]], BLACK, 5, joint="curve")


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float, n: int = 0) -> None:
    colour = INKS[n % len(INKS)]
    draw.line((x - 15, y - 15, x + 15, y + 15), colour, 7)
    draw.line((x - 15, y + 15, x + 15, y - 15), colour, 7)


def _legend(true_px: np.ndarray, heatmaps: bool, both: bool) -> list[Entry]:
    """What a film shows, as (marks, text): marks are functions (draw, x, y), or a list of colours.

    Only what is there: no true positions where none is known, no colour that does not occur.
    """
    n = true_px.shape[1]
    known = np.isfinite(true_px).all(-1).any(0)
    entries: list[Entry] = []
    for k in range(n):
        of = "" if n == 1 else f" {OBJECTS[k] if n == len(OBJECTS) else k + 1}"
        entries += [([functools.partial(_outline, n=k)], f"true{of}")] * bool(known[k])
        entries.append(([functools.partial(_cross, n=k)], f"predicted{of}"))
    entries += [([ORANGE], "event off"), ([BLUE], "event on")] + [([GREY], "both")] * bool(both)
    if heatmaps:
        entries.append(
            ([tuple(SHADES[k]) for k in (3, 7, 11)], "heat map; predicted is its mean, not its peak")
        )
    return entries


def _stage(
    width: int, height: int, titles: Sequence[str | None], entries: Sequence[Entry]
) -> tuple[Image.Image, list[tuple[int, int]], int]:
    """What all frames of a film share, FINE times as large: titles and legend around empty fields, width x
    height each; the corners of the fields, and the height at which frames state number and errors."""
    heading, small = font(17 * FINE), font(14 * FINE)
    top, gap = (38 if any(titles) else MARGIN), 14
    if len(titles) > 1:
        widest = heading.getlength(max((title or "" for title in titles), key=heading.getlength))
        inner = len(titles) * (max(width, math.ceil(widest / FINE)) + gap) - gap
    else:
        inner = max(width, 420, math.ceil(heading.getlength(titles[0] or "") / FINE))
    lines = _lines([26 * len(marks) + 14 + small.getlength(text) for marks, text in entries], inner * FINE)
    foot = 41 + 21 * len(lines)
    size = (
        inner + 2 * MARGIN + inner % 2,
        top + height + foot + (top + height + foot) % 2,
    )  # even
    column = (inner + gap) / len(titles)
    left = MARGIN + (inner - width) // 2 if len(titles) == 1 else MARGIN
    corners = [(round(left + k * column) * FINE, top * FINE) for k in range(len(titles))]
    stage = Image.new("RGB", (size[0] * FINE, size[1] * FINE), WHITE)
    draw = ImageDraw.Draw(stage)
    for title, (x, y) in zip(titles, corners, strict=True):
        draw.text((x if len(titles) > 1 else MARGIN * FINE, y / 2), title or "", BLACK, heading, "lm")
        draw.rectangle((x - 2, y - 2, x + width * FINE + 1, y + height * FINE + 1), GREY)
    for row, line in enumerate(lines):
        along: float = MARGIN * FINE + 20
        y = (size[1] - 17 - 21 * (len(lines) - 1 - row)) * FINE
        for marks, text in (entries[k] for k in line):
            for mark in marks:
                if callable(mark):
                    mark(draw, along, y)
                else:
                    draw.rectangle((along - 10, y - 10, along + 9, y + 9), mark)
                along += 20 if len(marks) > 1 and mark is not marks[-1] else 28
            draw.text((along, y), text, BLACK, small, "lm")
            along += small.getlength(text) + 44
    return stage, corners, (top + height + 20) * FINE


def _lines(widths: Sequence[float], available: float) -> list[list[int]]:
    """Entries of these widths, as lists of indices that fit into lines of `available` each."""
    lines: list[list[int]] = [[]]
    used = 0.0
    for k, width in enumerate(widths):
        if lines[-1] and used + width > available:
            lines.append([])
            used = 0
        lines[-1].append(k)
        used += width + 44
    return lines


def _palette() -> Image.Image:
    """The colours of a track, an image to quantize by: papers, inks, and blends of each two for smooth edges.
    One palette for all frames, so that nothing flickers."""
    papers, inks = np.concatenate([EVENT_COLOURS, SHADES[1:]]), np.array([BLACK, GREY, *INKS])
    weights = np.arange(1, 4)[:, None, None, None] / 4
    blends = papers[:, None] * (1 - weights) + inks * weights
    colours = np.concatenate([papers, inks, blends.reshape(-1, 3)]).round().astype(np.uint8)
    image = Image.new("P", (1, 1))
    image.putpalette(colours.tobytes())
    return image
