"""Pictures of the theory: the commuting diagram, and errors over scales.  Files, written whole or not at
all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nrf.pictures.plots import CYCLE

COLUMNS = ("f", "Σ * f", "A f", "AΣAᵀ * A f", "A (Σ * f)", "difference")
UNDER = (
    "image",
    "filtered",
    "transformed",
    "transformed, then filtered",
    "filtered, then transformed",
    "of the two before",
)
Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # x and y by name
Panels = Mapping[str, tuple[str, Lines]]  # label of the x axis and lines, by title
FLOOR = 1e-7  # of errors in `error_curves`: rounding is below


def commuting_diagram(
    rows: Mapping[str, tuple[Sequence[np.ndarray], float]], path: str | Path, title: str
) -> None:
    """Both ways from an image to the response to its transform, a PNG at `path`.

    rows: {name: (panels, error)}, panels six arrays (H, W) as `COLUMNS` says; responses and difference of a
    row share one scale.  ValueError for other numbers of panels."""
    figure = Figure(figsize=(12.4, 0.8 + 2.3 * len(rows)), dpi=110, layout="constrained")
    grid = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
    for line, (name, (panels, error)) in zip(grid, rows.items(), strict=True):
        if len(panels) != len(COLUMNS):
            raise ValueError(f"{name}: {len(panels)} panels, expected {len(COLUMNS)}")
        limit = max(np.abs(panel).max() for panel in (panels[1], *panels[3:5])) or 1.0
        for i, (axes, panel) in enumerate(zip(line, panels, strict=True)):
            if i in (0, 2):
                axes.imshow(panel, cmap="gray_r", vmin=0, vmax=np.max(panel) or 1.0)
            else:
                axes.imshow(panel, cmap="bwr", vmin=-limit, vmax=limit)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=11)
        line[-1].set_xlabel(f"relative error {100 * error:.3g} %")
    for axes, symbol, words in zip(grid[0], COLUMNS, UNDER, strict=True):
        axes.set_title(f"{symbol}\n{words}", fontsize=9.5)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, format="png")


def error_curves(
    panels: Panels,
    path: str | Path,
    ylabel: str = "relative error",
    bars: Mapping[float, str] | tuple[()] = (),
) -> None:
    """Lines on logarithmic axes, panels side by side, a PNG at `path`.

    panels: {title: (xlabel, {name: (x, y)})}; equal names have equal colours; values below `FLOOR` are drawn
    there.  bars: {height: words}, dashed lines across all panels."""
    names = list(dict.fromkeys(name for _, lines in panels.values() for name in lines))
    figure = Figure(figsize=(0.6 + 4.1 * len(panels), 4.0), dpi=120, layout="constrained")
    for i, (axes, (title, (xlabel, lines))) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True)
    ):
        for name, (x, y) in lines.items():
            colour = CYCLE[names.index(name) % len(CYCLE)]
            width = 5.0 / (1 + names.index(name)) ** 0.7  # what lies under another line shows on both sides
            style = {"color": colour, "linewidth": width, "marker": "o", "markersize": 2 + 1.5 * width}
            style["linestyle"] = "-" if names.index(name) < 2 else (0, (4, 3))  # and between dashes
            axes.plot(x, np.maximum(y, FLOOR), label=name, **style)
        for height, words in dict(bars).items():
            axes.axhline(height, color="0.45", linestyle="--", linewidth=0.9)
            if not i:
                axes.text(0.02, height, words, transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(title=title, xlabel=f"{xlabel}, logarithmic")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    figure.axes[0].set_ylabel(f"{ylabel}, logarithmic")
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False
    )
    figure.savefig(path, format="png")
