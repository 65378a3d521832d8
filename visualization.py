"""Arrays in, pictures out: kernels, predictions, learning curves, tracks.  Only this file imports matplotlib.

Pictures to log are uint8 RGB (H, W, 3); pictures to keep are files, written whole or not at all.  Positions
in pixels (..., 2) run first along the rows of an image, then along its columns, from 0 to the field's size.
"""

import contextlib
import functools
import importlib.util
import math
import os
from pathlib import Path

import imageio.v3 as imageio
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

GOLDEN_RATIO = 1.618  # kernels per row over kernels per column, about
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: for all
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)  # kinds of colour vision, as are these two
BLACK, GREY, WHITE, PURPLE = (0, 0, 0), (110, 110, 110), (255, 255, 255), (150, 20, 110)
EVENT_COLOURS = np.array([WHITE, ORANGE, BLUE, GREY], np.uint8)  # by off + 2 * on
SHADES = np.linspace(WHITE, (214, 165, 205), 12).round().astype(np.uint8)  # of heat maps, from none to most
ORDERS = {(0, 0): "g", (1, 0): "∂u g", (0, 1): "∂v g", (1, 1): "∂u∂v g"}  # u along a field, v across
MARGIN = 10  # pixels around a drawing
FINE = 2  # tracks are drawn so many times larger, then reduced: smooth lines
FPS = (1, 50)  # browsers slow down delays of less than 20 ms


def kernel_grid(kernels):
    """All kernels (n, h, w) in a picture, round(1.618 sqrt(n)) a row, over a colour bar: uint8 RGB (H, W, 3).

    Blue is negative, white zero, red positive, on one scale for all: the greatest absolute value, written at
    the bar.  Every kernel is enlarged by the same integer.  Values that are not finite are dark grey.
    ValueError without kernels.
    """
    kernels = _checked(kernels)
    n, h, w = kernels.shape
    columns = max(1, round(GOLDEN_RATIO * math.sqrt(n)))
    zoom, gap = min(max(1000 // (columns * w), 1), 16), 2
    limit = _limit(kernels)
    bar = _colour_bar(limit)
    width = max(columns * (w * zoom + gap), bar.width) + gap
    canvas = Image.new("RGB", (width, math.ceil(n / columns) * (h * zoom + gap) + gap + bar.height), WHITE)
    for i, tile in enumerate(_tiles(kernels, zoom, limit)):
        canvas.paste(tile, (gap + i % columns * (w * zoom + gap), gap + i // columns * (h * zoom + gap)))
    canvas.paste(bar, (0, canvas.height - bar.height))
    return np.array(canvas)


def kernel_bank(kernels, rows, path):
    """The bank of kernels (n, h, w) as a labelled table, a PNG at `path`.

    rows: (n, 5 or more), columns variance, angle_rad, ratio, dx, dy: the field behind each kernel.  The table
    has a line for each ratio and angle, and a column for each order of derivative (dx, dy) and variance; a
    place that no field takes stays empty.  One colour scale for all.
    ValueError if rows and kernels differ in number, or if two rows are the same field.
    """
    kernels, rows = _checked(kernels), np.asarray(rows, float)
    if rows.ndim != 2 or len(rows) != len(kernels) or rows.shape[1] < 5:
        raise ValueError(f"{len(kernels)} kernels: want rows ({len(kernels)}, 5 or more), got {rows.shape}")
    fields = [tuple(row) for row in rows[:, :5].round(6).tolist()]
    if len(set(fields)) < len(fields):
        raise ValueError("rows of the bank: the same field is there twice")
    lines = sorted({(ratio, angle) for _, angle, ratio, _, _ in fields})
    variances = sorted({variance for variance, *_ in fields})
    orders = sorted({(dx, dy) for *_, dx, dy in fields}, key=lambda order: (sum(order), -order[0]))

    _, h, w = kernels.shape
    zoom, limit = max(1, 54 // max(h, w)), _limit(kernels)
    left, top, gap, block_gap = 150, 66, 3, 16
    step_x, step_y = w * zoom + gap, h * zoom + gap
    block = len(variances) * step_x + block_gap
    bar = _colour_bar(limit)
    width = left + max(len(orders) * block, bar.width)
    canvas = Image.new("RGB", (width, top + len(lines) * step_y + MARGIN + bar.height), WHITE)
    draw = ImageDraw.Draw(canvas)
    for (variance, angle, ratio, *order), tile in zip(fields, _tiles(kernels, zoom, limit), strict=True):
        x = left + orders.index(tuple(order)) * block + variances.index(variance) * step_x
        canvas.paste(tile, (x, top + lines.index((ratio, angle)) * step_y))
    for i, order in enumerate(orders):
        x, name = left + i * block, ORDERS.get(order, "∂u^{:g} ∂v^{:g} g".format(*order))
        draw.text((x + (block - block_gap - gap) / 2, 22), name, BLACK, _font(18), "mm")
        for j, variance in enumerate(variances):
            draw.text((x + j * step_x + w * zoom / 2, top - 14), f"{variance:.3g}", BLACK, _font(14), "mm")
    draw.text((left - 12, top - 14), "variance", BLACK, _font(14), "rm")
    for i, (ratio, angle) in enumerate(lines):
        name = f"ratio {ratio:.2f}, {math.degrees(angle):.0f}°"
        draw.text((left - 12, top + i * step_y + h * zoom / 2), name, BLACK, _font(14), "rm")
    canvas.paste(bar, (left, canvas.height - bar.height - MARGIN // 2))
    with _whole_file(path) as partial:
        canvas.save(partial, "PNG")


def prediction_panel(frame, heatmap, target):
    """Input frame (H, W), heat map (h, w) and target (h, w) side by side: uint8 RGB (400, 1000, 3).

    Axes are pixels of the frame.  The first and last cells of a map are centred on the borders of the frame,
    as coordinates are read from it.  Each panel has its own scale, from 0 to the value that its title states.
    """
    H, W = np.shape(frame)
    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    panels = ("input", frame, "gray_r"), ("heat map", heatmap, "viridis"), ("target", target, "viridis")
    for axes, (name, values, colours) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        values = np.asarray(values, np.float32)
        h, w = values.shape
        half_h, half_w = H / max(h - 1, 1) / 2, W / max(w - 1, 1) / 2
        extent = (0, W, H, 0) if name == "input" else (-half_w, W + half_w, H + half_h, -half_h)
        most = values[np.isfinite(values)].max(initial=0.0)
        axes.imshow(values, cmap=colours, vmin=0, vmax=most, extent=extent)
        axes.set(xlim=(0, W), ylim=(H, 0), title=f"{name}, 0 to {most:.2g}", xlabel="W in pixels")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    figure.axes[0].set_ylabel("H in pixels")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def learning_curves(curves, path, baseline=None, ylabel="error in pixels"):
    """Errors over epochs, one line per name of `curves` = {name: (epochs, errors_px)}, a PNG at `path`.

    baseline: the error of guessing the centre always, dashed, if given.  The legend has the best values.
    ValueError without curves, or if epochs and errors differ in number.
    """
    if not curves:
        raise ValueError("learning curves: want at least one, got none")
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    if baseline is not None:
        axes.axhline(baseline, color="0.35", linestyle="--", label=f"always the centre: {baseline:.2f}")
    for i, (name, (epochs, errors_px)) in enumerate(curves.items()):
        if len(epochs) != len(errors_px):
            raise ValueError(f"curve {name!r}: {len(epochs)} epochs but {len(errors_px)} errors")
        best = min((error for error in errors_px if math.isfinite(error)), default=math.nan)
        label = f"{name}: {best:.2f} at best"
        axes.plot(epochs, errors_px, color=CYCLE[i % len(CYCLE)], marker="o", markersize=3.5, label=label)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    with _whole_file(path) as partial:
        figure.savefig(partial, format="png")


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
    _check_track(path, frames, true_px, predicted_px, heatmaps, fps)
    T, _, H, W = frames.shape
    zoom = max(1, round(480 / max(H, W)))
    stage, corner = _stage(W * zoom, H * zoom, title)
    distances_px = np.linalg.norm(predicted_px - true_px, axis=-1).mean(-1)
    name = "error" if true_px.shape[1] == 1 else "mean error"
    pictures = []
    for t in range(T):
        recent = slice(max(0, t - trail), t + 1)
        paper = _paper(frames[t], None if heatmaps is None else heatmaps[t])
        picture = stage.copy()
        picture.paste(_field(paper, true_px[recent], predicted_px[recent], FINE * zoom), corner)
        draw, y = ImageDraw.Draw(picture), picture.height - 42 * FINE
        draw.text((MARGIN * FINE, y), f"frame {t + 1} / {T}", BLACK, _font(16 * FINE), "lm")
        error = f"{name} {distances_px[t]:.1f} px"
        draw.text((picture.width - MARGIN * FINE, y), error, BLACK, _font(16 * FINE), "rm")
        pictures.append(picture.reduce(FINE))
    with _whole_file(path) as partial:
        if partial.suffix == ".mp4":
            imageio.imwrite(partial, np.stack(pictures), plugin="FFMPEG", fps=fps, macro_block_size=2)
        else:
            palette = _palette()
            first, *others = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in pictures)
            first.save(partial, save_all=True, append_images=others, duration=round(100 / fps) * 10, loop=0)


def _checked(kernels):
    kernels = np.asarray(kernels, np.float64)
    if kernels.ndim != 3 or not kernels.size:
        raise ValueError(f"kernels: want (n, h, w), none of them 0, got {kernels.shape}")
    return kernels


def _limit(kernels):
    """The greatest absolute value among the finite ones, 0.0 if there is none."""
    return float(np.abs(kernels[np.isfinite(kernels)]).max(initial=0.0))


def _blue_white_red(values, limit):
    """Colours (..., 3) uint8 of values (...): -limit blue, 0 white, limit red, not finite dark grey."""
    colours = matplotlib.colormaps["bwr"].with_extremes(bad="#404040")
    return colours(np.ma.masked_invalid(values) / (2 * limit or 1) + 0.5, bytes=True)[..., :3]


def _tiles(kernels, zoom, limit):
    """One picture per kernel, `zoom` times larger, within a thin frame to tell white kernels from paper."""
    for picture in _blue_white_red(kernels, limit).repeat(zoom, 1).repeat(zoom, 2):
        tile = Image.fromarray(picture)
        if zoom > 2:
            ImageDraw.Draw(tile).rectangle((0, 0, tile.width - 1, tile.height - 1), outline=(215, 215, 215))
        yield tile


def _colour_bar(limit, length=120, thickness=12, height=30):
    """A strip from -limit to limit with both written beside it."""
    font = _font(13)
    low, high = f"{-limit:.2g}", f"{limit:.2g}"
    room = math.ceil(font.getlength(low)) + MARGIN
    bar = Image.new("RGB", (length + 2 * room, height), WHITE)
    strip = _blue_white_red(np.linspace(-1, 1, length)[None], 1.0).repeat(thickness, 0)
    bar.paste(Image.fromarray(strip), (room, (height - thickness) // 2))
    draw = ImageDraw.Draw(bar)
    draw.text((room - 5, height / 2), low, BLACK, font, "rm")
    draw.text((room + length + 5, height / 2), high, BLACK, font, "lm")
    return bar


def _check_track(path, frames, true_px, predicted_px, heatmaps, fps):
    suffix, T = Path(path).suffix, len(frames)
    if suffix not in (".gif", ".mp4"):
        raise ValueError(f"{path}: want a name that ends in .gif or .mp4")
    if suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError(f"{path}: .mp4 needs the package imageio-ffmpeg; install it or write a .gif")
    if not FPS[0] <= fps <= FPS[1]:
        raise ValueError(f"fps {fps}: want {FPS[0]} to {FPS[1]}")
    if frames.ndim != 4 or frames.shape[1] != 2 or not frames.size:
        raise ValueError(f"frames: want (T, 2, H, W), got {frames.shape}")
    if true_px.ndim != 3 or true_px.shape[::2] != (T, 2) or not true_px.size:
        raise ValueError(f"true positions: want ({T}, N, 2), got {true_px.shape}")
    if predicted_px.shape != true_px.shape:
        raise ValueError(f"predicted positions: want {true_px.shape}, got {predicted_px.shape}")
    if heatmaps is not None and (np.ndim(heatmaps) != 4 or len(heatmaps) != T):
        raise ValueError(f"heat maps: want ({T}, N, h, w), got {np.shape(heatmaps)}")


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
    heading, font = _font(17 * FINE), _font(14 * FINE)
    top = 38 if title else MARGIN
    inner = max(width, 420, math.ceil(heading.getlength(title or "") / FINE))
    size = inner + 2 * MARGIN + inner % 2, top + height + 62 + (top + height) % 2  # films want even numbers
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
        draw.text((x + 28, y), name, BLACK, font, "lm")
        x += font.getlength(name) + 84
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


@contextlib.contextmanager
def _whole_file(path):
    """A name to write to, renamed to `path` if all went well and removed otherwise; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@functools.cache
def _font(size):
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
