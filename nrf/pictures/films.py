"""Films of tracks: events with true and predicted positions.  Split off `plots.py` for length.

Positions in pixels (..., 2) run first along the rows of an image, then along its columns, from 0 to the
field's size.
"""

import importlib.util
import math
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw

from nrf.pictures.plots import BLACK, BLUE, GREY, MARGIN, ORANGE, WHITE, font

PURPLE = (150, 20, 110)
EVENT_COLOURS = np.array([WHITE, ORANGE, BLUE, GREY], np.uint8)  # by off + 2 * on
SHADES = np.linspace(WHITE, (214, 165, 205), 12).round().astype(np.uint8)  # of heat maps, from none to most
FINE = 2  # tracks are drawn so many times larger, then reduced: smooth lines
FPS = (1, 50)  # browsers slow down delays of less than 20 ms


def track_gif(path, frames, true_px, predicted_px, heatmaps=None, fps=20, trail=12, title=None):
    """Events with true and predicted positions over time: a GIF at `path` (.mp4 with imageio-ffmpeg).

    frames: (T, 2, H, W) events, off then on; any value above 0 is an event.  true_px, predicted_px: (T, N, 2)
    in pixels; a line joins the two of each object, and a trail shows the last `trail` steps of both.
    heatmaps: (T, N, h, w), shaded behind the events, each step by its own maximum; negatives count as 0.
    Every frame states the mean distance over the objects.  Positions that are not finite are left out, those
    outside are drawn at the border.  fps: 1 to 50; a GIF rounds its delays to 10 ms.
    ValueError for another ending or rate, or shapes that do not fit.
    """
    frames = np.asarray(frames) > 0
    true_px, predicted_px = np.asarray(true_px, float), np.asarray(predicted_px, float)
    check_film(path, fps)
    _check_track(frames, true_px, predicted_px, heatmaps)
    pictures = _pictures(frames, true_px, predicted_px, heatmaps, trail, title)
    if Path(path).suffix == ".mp4":
        with imageio.imopen(path, "w", plugin="FFMPEG") as film:
            film.write(list(pictures), fps=fps, macro_block_size=2)
    else:
        palette = _palette()
        images = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in pictures)
        next(images).save(path, save_all=True, append_images=images, duration=round(100 / fps) * 10, loop=0)


def _pictures(frames, true_px, predicted_px, heatmaps, trail, title):
    T, _, H, W = frames.shape
    zoom = max(1, round(480 / max(H, W)))
    stage, corner = _stage(W * zoom, H * zoom, title)
    distances_px = np.linalg.norm(predicted_px - true_px, axis=-1).mean(-1)
    name = "error" if true_px.shape[1] == 1 else "mean error"
    for t in range(T):
        recent = slice(max(0, t - trail), t + 1)
        paper = _paper(frames[t], None if heatmaps is None else heatmaps[t])
        picture = stage.copy()
        picture.paste(_field(paper, true_px[recent], predicted_px[recent], FINE * zoom), corner)
        draw, y = ImageDraw.Draw(picture), picture.height - 42 * FINE
        draw.text((MARGIN * FINE, y), f"frame {t + 1} / {T}", BLACK, font(16 * FINE), "lm")
        if np.isfinite(distances_px[t]):
            error = f"{name} {distances_px[t]:.1f} px"
            draw.text((picture.width - MARGIN * FINE, y), error, BLACK, font(16 * FINE), "rm")
        yield picture.reduce(FINE)


def terminal_picture(frame, true_px, predicted_px, heatmap, size):
    """The field as text for a terminal of `size` (columns, lines) in 24-bit colours, two pixels a character.

    frame: (2, H, W) events.  true_px, predicted_px: (N, 2), black and purple crosses, left out where they
    are not finite.  heatmap: (N, h, w) or None.  The field is made to fit; a place has the events that fall
    on it.
    """
    _, H, W = frame.shape
    columns, lines = size
    h, w = (max(1, int(n * min(2 * lines / H, columns / W, 1))) for n in (H, W))
    h += h % 2
    small = np.zeros((2, h, w), bool)
    p, row, column = np.nonzero(frame)
    small[p, row * h // H, column * w // W] = True
    paper = _paper(small.astype(int), heatmap).copy()
    for positions_px, colour in ((true_px, BLACK), (predicted_px, PURPLE)):
        for position in positions_px[np.isfinite(positions_px).all(-1)]:
            i, j = (
                int(np.clip(x * n / N, 0, n - 1)) for x, n, N in zip(position, (h, w), (H, W), strict=True)
            )
            paper[max(i - 1, 0) : i + 2, j] = paper[i, max(j - 1, 0) : j + 2] = colour
    lines = (
        "".join(
            "\x1b[38;2;{};{};{};48;2;{};{};{}m\u2580".format(*above, *below)
            for above, below in zip(*pair, strict=True)
        )
        for pair in paper.reshape(h // 2, 2, w, 3)
    )
    return "\x1b[0m\n".join(lines) + "\x1b[0m"


def check_film(path, fps):
    """ValueError for a film's name or rate that cannot be."""
    suffix = Path(path).suffix
    if suffix not in (".gif", ".mp4"):
        raise ValueError(f"{path}: expected a name that ends in .gif or .mp4")
    if suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError(f"{path}: .mp4 needs a package, pip install imageio-ffmpeg; or write a .gif")
    if not FPS[0] <= fps <= FPS[1]:
        raise ValueError(f"fps {fps}: expected {FPS[0]} to {FPS[1]}")


def _check_track(frames, true_px, predicted_px, heatmaps):
    T = len(frames)
    if frames.ndim != 4 or frames.shape[1] != 2 or not frames.size:
        raise ValueError(f"frames: expected (T, 2, H, W), got {frames.shape}")
    if true_px.ndim != 3 or true_px.shape[::2] != (T, 2) or not true_px.size:
        raise ValueError(f"true positions: expected ({T}, N, 2), got {true_px.shape}")
    if predicted_px.shape != true_px.shape:
        raise ValueError(f"predicted positions: expected {true_px.shape}, got {predicted_px.shape}")
    if heatmaps is not None and (np.ndim(heatmaps) != 4 or len(heatmaps) != T):
        raise ValueError(f"heat maps: expected ({T}, N, h, w), got {np.shape(heatmaps)}")


def _paper(events, heatmap):
    """The field (H, W, 3) uint8: events (2, H, W) in their colours, on heat maps (N, h, w) or None."""
    picture = EVENT_COLOURS[events[0] + 2 * events[1]]
    if heatmap is None:
        return picture
    heat = np.nan_to_num(np.asarray(heatmap, float)).clip(0).sum(0)
    rows, columns = (_hats(n, cells) for n, cells in zip(events.shape[1:], heat.shape, strict=True))
    heat = rows @ heat @ columns.T
    shades = SHADES[(heat / (heat.max() or 1) * (len(SHADES) - 1)).round().astype(int)]
    return np.where(events.any(0)[..., None], picture, shades)


def _hats(n, cells):
    """Linear interpolation at the centres of n pixels among cells from border to border: (n, cells)."""
    position = (np.arange(n) + 0.5) / n * (cells - 1)
    return (1 - np.abs(position[:, None] - np.arange(cells))).clip(0)


def _field(paper, true_px, predicted_px, scale):
    """`paper` enlarged, with the last positions (steps, N, 2) marked and joined, and trails behind them."""
    image = Image.fromarray(paper.repeat(scale, 0).repeat(scale, 1))
    draw = ImageDraw.Draw(image)
    H, W, _ = paper.shape
    true, predicted = (p.clip(0, (H, W))[..., ::-1] * scale for p in (true_px, predicted_px))
    for positions, colour in ((true, BLACK), (predicted, PURPLE)):
        for steps in positions.swapaxes(0, 1):
            draw.line([tuple(xy) for xy in steps if np.isfinite(xy).all()], colour, 3)
    for start, end in zip(true[-1], predicted[-1], strict=True):
        if np.isfinite([start, end]).all():
            draw.line([*start, *end], GREY, 3)
        for mark, xy in ((_ring, start), (_cross, end)):
            if np.isfinite(xy).all():
                mark(draw, *xy)
    return image


def _ring(draw, x, y):
    draw.ellipse((x - 18, y - 18, x + 18, y + 18), outline=BLACK, width=5)


def _cross(draw, x, y):
    draw.line((x - 15, y - 15, x + 15, y + 15), PURPLE, 7)
    draw.line((x - 15, y + 15, x + 15, y - 15), PURPLE, 7)


def _stage(width, height, title):
    """What all frames of a track share, FINE times as large: title and legend around an empty field, width x
    height; and the corner of that field."""
    heading, small = font(17 * FINE), font(14 * FINE)
    top = 38 if title else MARGIN
    inner = max(width, 420, math.ceil(heading.getlength(title or "") / FINE))
    size = inner + 2 * MARGIN + inner % 2, top + height + 62 + (top + height) % 2  # films need even numbers
    corner = (MARGIN + (inner - width) // 2) * FINE, top * FINE
    stage = Image.new("RGB", (size[0] * FINE, size[1] * FINE), WHITE)
    draw = ImageDraw.Draw(stage)
    draw.text((MARGIN * FINE, corner[1] / 2), title or "", BLACK, heading, "lm")
    right, bottom = corner[0] + width * FINE, corner[1] + height * FINE
    draw.rectangle((corner[0] - 2, corner[1] - 2, right + 1, bottom + 1), GREY)
    x, y = MARGIN * FINE + 20, (size[1] - 17) * FINE
    for name, mark in (("true", _ring), ("predicted", _cross), ("event off", ORANGE), ("event on", BLUE)):
        if callable(mark):
            mark(draw, x, y)
        else:
            draw.rectangle((x - 10, y - 10, x + 9, y + 9), mark)
        draw.text((x + 28, y), name, BLACK, small, "lm")
        x += small.getlength(name) + 84
    return stage, corner


def _palette():
    """The colours of a track, an image to quantize by: papers, inks, and blends of each two for smooth edges.
    One palette for all frames, so that nothing flickers."""
    papers, inks = np.concatenate([EVENT_COLOURS, SHADES[1:]]), np.array([BLACK, PURPLE, GREY])
    weights = np.arange(1, 4)[:, None, None, None] / 4
    blends = papers[:, None] * (1 - weights) + inks * weights
    colours = np.concatenate([papers, inks, blends.reshape(-1, 3)]).round().astype(np.uint8)
    image = Image.new("P", (1, 1))
    image.putpalette(colours.tobytes())
    return image
