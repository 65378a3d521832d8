"""Arrays in, pictures out: kernels, predictions, learning curves.  `theory.py` and this are the only
files that import matplotlib.

Pictures to log are uint8 RGB (H, W, 3); pictures to keep are written to a path that the caller gives.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

GOLDEN_RATIO = 1.618  # kernels per row over kernels per column, about
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: for all
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)  # kinds of colour vision, as are these two
BLACK, GREY, WHITE, FRAME = (0, 0, 0), (110, 110, 110), (255, 255, 255), (215, 215, 215)
ORDER_SYMBOLS = {(0, 0): "g", (1, 0): "∂u g", (0, 1): "∂v g", (1, 1): "∂u∂v g"}  # u along a field, v across
LEAST_SPAN = 4.0  # of an axis of errors, the largest over the smallest
LEAST_OF_A_BOX = 3  # runs; fewer are points alone
SHAPES = ("circle", "square", "triangle")  # GERD's, in its order
MARGIN = 10  # pixels around a drawing
Curve = tuple[Sequence[float], Sequence[float]]  # epochs, errors in pixels
Errors = Mapping[str, Any] | Sequence[float]  # a summary, with points if any; or points alone
Box = tuple[str, str | None, Errors, float | None]  # network, initialisation, errors, published median


def kernel_grid(kernels: ArrayLike) -> np.ndarray:
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
    tiles = _tiles(kernels, zoom, limit)
    blank = np.full((-n % columns, *tiles.shape[1:]), WHITE, np.uint8)
    tiles = np.concatenate([tiles, blank])
    tiles = np.pad(tiles, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=WHITE[0])
    rows = tiles.reshape(-1, columns, *tiles.shape[1:]).swapaxes(1, 2)
    canvas.paste(Image.fromarray(rows.reshape(len(rows) * tiles.shape[1], -1, 3)), (gap, gap))
    canvas.paste(bar, (0, canvas.height - bar.height))
    return np.array(canvas)


def kernel_bank(kernels: ArrayLike, rows: ArrayLike, path: str | Path) -> None:
    """The `bank_picture` as a PNG at `path`."""
    Image.fromarray(bank_picture(kernels, rows)).save(path, "PNG")


def bank_picture(kernels: ArrayLike, rows: ArrayLike) -> np.ndarray:
    """The bank of kernels (n, h, w) as a labelled table, uint8 RGB (H, W, 3).

    rows: (n, 5 or more), columns variance, angle_rad, ratio, dx, dy: the field of each kernel.  The table
    has a line for each ratio and angle, and a column for each order of derivative (dx, dy) and variance; a
    place that no field takes stays empty.  One colour scale for all.
    ValueError if rows and kernels differ in number, or if two rows are the same field.
    """
    kernels, rows = _checked(kernels), np.asarray(rows, float)
    if rows.ndim != 2 or len(rows) != len(kernels) or rows.shape[1] < 5:
        raise ValueError(
            f"{len(kernels)} kernels: expected rows ({len(kernels)}, 5 or more), got {rows.shape}"
        )
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
    for (variance, angle, ratio, dx, dy), tile in zip(fields, _tiles(kernels, zoom, limit), strict=True):
        x = left + orders.index((dx, dy)) * block + variances.index(variance) * step_x
        canvas.paste(Image.fromarray(tile), (x, top + lines.index((ratio, angle)) * step_y))
    for i, order in enumerate(orders):
        x, name = left + i * block, ORDER_SYMBOLS.get(order, "∂u^{:g} ∂v^{:g} g".format(*order))
        draw.text((x + (block - block_gap - gap) / 2, 22), name, BLACK, font(18), "mm")
        for j, variance in enumerate(variances):
            draw.text((x + j * step_x + w * zoom / 2, top - 14), f"{variance:.3g}", BLACK, font(14), "mm")
    draw.text((left - 12, top - 14), "variance", BLACK, font(14), "rm")
    for i, (ratio, angle) in enumerate(lines):
        name = f"ratio {ratio:.2f}, {math.degrees(angle):.0f}°"
        draw.text((left - 12, top + i * step_y + h * zoom / 2), name, BLACK, font(14), "rm")
    canvas.paste(bar, (left, canvas.height - bar.height - MARGIN // 2))
    return np.array(canvas)


def prediction_panel(
    frame: ArrayLike, heatmaps: ArrayLike, targets: ArrayLike, names: Sequence[str] = SHAPES
) -> np.ndarray:
    """Input frame (H, W), heat map (h, w) and target (h, w) side by side: uint8 RGB (250, 600, 3).

    Heat maps and targets of several shapes (N, h, w) are as many lines, named by `names` or numbers.  Axes
    are pixels of the frame.  The first and last cells of a map are centred on the borders of the frame, as
    coordinates are read from it.  Each panel has its own scale, from 0 to the value that its title states.
    """
    H, W = np.shape(frame)
    heatmaps, targets = (np.reshape(maps, (-1, *np.shape(maps)[-2:])) for maps in (heatmaps, targets))
    N, side, left, top, line, step = len(heatmaps), 152, 72, 46, 250, 178  # a card of TensorBoard is 400 wide
    names = names if len(names) == N else [f"shape {n}" for n in range(N)]
    h, w = (max(round(side * length / max(H, W)), 1) for length in (H, W))
    canvas = Image.new("RGB", (600, N * line), WHITE)
    draw, small = ImageDraw.Draw(canvas), font(13)
    for n, (name, heatmap, target) in enumerate(zip(names, heatmaps, targets, strict=True)):
        y = n * line + top + (side - h) // 2
        panels = ("input", frame, "gray_r"), ("heat map", heatmap, "viridis"), ("target", target, "viridis")
        for i, (title, values, colours) in enumerate(panels):
            x, values = left + i * step + (side - w) // 2, np.asarray(values, np.float32)
            most = values[np.isfinite(values)].max(initial=0.0)
            shown = values[_cells(len(values), h)][:, _cells(values.shape[1], w)]
            if title == "input":  # no event is left out
                shown = np.asarray(Image.fromarray(values).resize((w, h), Image.Resampling.BOX))
            shown = np.ma.masked_invalid(shown) / (most or 1)
            tile = matplotlib.colormaps[colours].with_extremes(bad="white")(shown, bytes=True)[..., :3]
            canvas.paste(Image.fromarray(tile), (x, y))
            draw.rectangle((x - 1, y - 1, x + w, y + h), outline=GREY)
            text = f"{title}\n0 to {most:.2g}"
            draw.multiline_text((x + w / 2, y - 4), text, BLACK, font(14), "md", align="center")
            for tick in _ticks(W, H):
                draw.text((x + tick * w / W, y + h + 4), f"{tick:g}", BLACK, small, "ma")
            for tick in _ticks(H, W) if i == 0 else ():
                draw.text((x - 5, y + tick * h / H), f"{tick:g}", BLACK, small, "rm")
        label = Image.new("RGB", (side, 34), WHITE)
        text = "H in pixels" if N == 1 else f"{name}\nH in pixels"
        ImageDraw.Draw(label).multiline_text((side / 2, 17), text, BLACK, small, "mm", align="center")
        canvas.paste(label.rotate(90, expand=True), (2, n * line + top))
    draw.text((left + step + side / 2, y + h + 28), "W in pixels", BLACK, small, "mm")
    return np.array(canvas)


def _cells(n: int, pixels: int) -> np.ndarray:
    """Which of n cells each pixel of an axis shows, on whose ends the first and the last are centred."""
    return ((np.arange(pixels) + 0.5) / pixels * (n - 1) + 0.5).astype(int)


def _ticks(length: int, other: int) -> list[float]:
    """Round numbers along an axis, fewer along a short one."""
    ticks = MaxNLocator(3 if 3 * length > 2 * other else 1, integer=True).tick_values(0, length)
    return [tick for tick in ticks if tick <= length]


def learning_curves(
    curves: Mapping[str, Curve | list[Curve]],
    path: str | Path,
    baseline: float | None = None,
    ylabel: str = "error in pixels",
) -> None:
    """Errors over epochs, one line per name of `curves` = {name: (epochs, errors_px)}, a PNG at `path`.

    A list of such pairs, of several seeds say, is as many lines of one colour.  baseline: the error of
    guessing the centre always, dashed, if given.  The legend has the best values.
    ValueError without curves, or if epochs and errors differ in number.
    """
    if not curves:
        raise ValueError("learning curves: expected at least one, got none")
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    if baseline is not None:
        axes.axhline(baseline, color="0.35", linestyle="--", label=f"always the centre: {baseline:.2f}")
    for i, (name, pairs) in enumerate(curves.items()):
        pairs = pairs if isinstance(pairs, list) else [pairs]
        look: dict[str, Any] = {"color": CYCLE[i % len(CYCLE)], "linestyle": ("-", ":")[i // len(CYCLE) % 2]}
        best = min(
            (error for _, errors in pairs for error in errors if math.isfinite(error)), default=math.nan
        )
        label: str | None = f"{name}: {best:.2f} at best"
        for epochs, errors_px in pairs:
            if len(epochs) != len(errors_px):
                raise ValueError(f"curve {name!r}: {len(epochs)} epochs but {len(errors_px)} errors")
            axes.plot(epochs, errors_px, marker="o", markersize=3.5, label=label, **look)
            label = None
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    figure.savefig(path, format="png")


def error_boxes(panels: Mapping[str, Sequence[Box]], path: str | Path) -> None:
    """Errors in pixels as the paper's box plot, a PNG at `path`, one panel per data set.

    panels: {title: [(network, initialisation, errors, published), ...]}.  errors: a dict of p5, q1, median,
    q3, p95 (whiskers reach p5 and p95) and points if any, or a list of numbers, its points, of which fewer
    than three get no box.  The axis is logarithmic and spans a factor of 4 or more.  published: the
    published median or None, drawn as a diamond.  An initialisation of None is a baseline: a dashed line.
    ValueError without panels.
    """
    if not panels:
        raise ValueError("box plot: expected at least one panel, got none")
    widths = [max(2, len({box[0] for box in boxes if box[1] is not None})) for boxes in panels.values()]
    figure = Figure(figsize=(1.6 + 1.5 * sum(widths), 4.6), dpi=150, layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    inits = list(dict.fromkeys(box[1] for boxes in panels.values() for box in boxes if box[1] is not None))
    inits.sort(key=lambda name: (name == "uniform", name != "rf", name != "published", name))
    for axes, (title, boxes) in zip(grid, panels.items(), strict=True):
        networks = list(dict.fromkeys(network for network, init, *_ in boxes if init is not None))
        for network, init, errors, published in boxes:
            if init is None:
                _baseline(axes, network, errors)
                continue
            i, width = inits.index(init), 0.72 / len(inits)
            x = networks.index(network) + (i - (len(inits) - 1) / 2) * width
            _box(axes, x, width * 0.8, errors, CYCLE[i % len(CYCLE)])
            if published is not None:
                axes.plot(x, published, "D", color="black", markersize=6, markerfacecolor="white", zorder=4)
        axes.set(title=title, yscale="log", xlim=(-0.6, max(len(networks), 1) - 0.4))
        axes.set_xticks(range(len(networks)), networks)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        low, high = axes.get_ylim()
        if high < LEAST_SPAN * low:  # shared by all panels
            middle = math.sqrt(low * high)
            axes.set_ylim(middle / LEAST_SPAN**0.5, middle * LEAST_SPAN**0.5)
        axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    grid[0].set_ylabel("error in pixels, logarithmic")
    handles = [Line2D([], [], color=CYCLE[i % len(CYCLE)], linewidth=6, label=n) for i, n in enumerate(inits)]
    if any(published is not None for boxes in panels.values() for *_, published in boxes):
        look: dict[str, Any] = {"marker": "D", "color": "black", "markerfacecolor": "white", "linestyle": ""}
        handles.append(Line2D([], [], **look, label="published median"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, format="png")


def _box(axes: Axes, x: float, width: float, errors: Errors, colour: str) -> None:
    points = errors.get("points", []) if isinstance(errors, Mapping) else []
    if not isinstance(errors, Mapping):
        points = [error for error in errors if math.isfinite(error)]
        if not points:
            return
        if len(points) < LEAST_OF_A_BOX:
            axes.plot([x] * len(points), points, "o", color=colour, markersize=5, zorder=3)
            return
        names = ("p5", "q1", "median", "q3", "p95")
        errors = dict(zip(names, np.quantile(points, (0, 0.25, 0.5, 0.75, 1)), strict=True))
    stats = {"med": errors["median"], "q1": errors["q1"], "q3": errors["q3"]}
    stats |= {"whislo": errors["p5"], "whishi": errors["p95"], "fliers": []}
    axes.bxp(
        [stats],
        positions=[x],
        widths=width,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": colour, "alpha": 0.55, "edgecolor": colour},
        medianprops={"color": "black", "linewidth": 1.6},
        whiskerprops={"color": colour},
        capprops={"color": colour},
    )
    axes.plot([x] * len(points), points, "o", color=colour, markersize=3.5, zorder=3)


def _baseline(axes: Axes, name: str, errors: Errors) -> None:
    height = errors["median"] if isinstance(errors, Mapping) else np.median(errors)
    axes.axhline(height, color="0.45", linestyle="--", linewidth=1)
    axes.text(
        0.99,
        height,
        name,
        color="0.35",
        fontsize=8,
        ha="right",
        va="bottom",
        transform=axes.get_yaxis_transform(),
    )


def _checked(kernels: ArrayLike) -> np.ndarray:
    kernels = np.asarray(kernels, np.float64)
    if kernels.ndim != 3 or not kernels.size:
        raise ValueError(f"kernels: expected (n, h, w), none of them 0, got {kernels.shape}")
    return kernels


def _limit(kernels: np.ndarray) -> float:
    """The greatest absolute value among the finite ones, 0.0 if there is none."""
    return float(np.abs(kernels[np.isfinite(kernels)]).max(initial=0.0))


def _blue_white_red(values: np.ndarray, limit: float) -> np.ndarray:
    """Colours (..., 3) uint8 of values (...): -limit blue, 0 white, limit red, not finite dark grey."""
    colours = matplotlib.colormaps["bwr"].with_extremes(bad="#404040")
    return colours(np.ma.masked_invalid(values) / (2 * limit or 1) + 0.5, bytes=True)[..., :3]


def _tiles(kernels: np.ndarray, zoom: int, limit: float) -> np.ndarray:
    """A picture per kernel (n, h, w, 3), `zoom` times larger, in a thin frame that sets it off from paper."""
    tiles = _blue_white_red(kernels, limit).repeat(zoom, 1).repeat(zoom, 2)
    if zoom > 2:
        tiles[:, (0, -1)] = tiles[:, :, (0, -1)] = FRAME
    return tiles


def _colour_bar(limit: float, length: int = 120, thickness: int = 12, height: int = 30) -> Image.Image:
    """A strip from -limit to limit with both written beside it."""
    small = font(13)
    low, high = f"{-limit:.2g}", f"{limit:.2g}"
    margin = math.ceil(small.getlength(low)) + MARGIN
    bar = Image.new("RGB", (length + 2 * margin, height), WHITE)
    strip = _blue_white_red(np.linspace(-1, 1, length)[None], 1.0).repeat(thickness, 0)
    bar.paste(Image.fromarray(strip), (margin, (height - thickness) // 2))
    draw = ImageDraw.Draw(bar)
    draw.text((margin - 5, height / 2), low, BLACK, small, "rm")
    draw.text((margin + length + 5, height / 2), high, BLACK, small, "lm")
    return bar


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
