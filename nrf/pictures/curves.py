"""Learning curves of many runs in a grid of small panels: a PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nrf.pictures.plots import CYCLE

Pairs = Sequence[tuple[Sequence[float], Sequence[float]]]  # (steps, errors in pixels), one per seed


def curve_grid(
    panels: Mapping[str, Mapping[str, Mapping[str, Pairs]]],
    path: str | Path,
    xlabel: str = "training steps",
    ylabel: str = "error in pixels",
) -> None:
    """Errors over training steps, a PNG at `path`: a row per data set, a column per network, a colour per
    start.

    panels: {row: {column: {name: [(steps, errors_px), ...]}}}, a thin line for each pair (a seed) and a thick
    one through their medians, where all pairs have the same steps.  ValueError without panels.
    """
    if not panels:
        raise ValueError("learning curves: expected at least one panel, got none")
    columns = list(dict.fromkeys(column for row in panels.values() for column in row))
    names = list(dict.fromkeys(name for row in panels.values() for cell in row.values() for name in cell))
    figure = Figure(
        figsize=(2.9 * len(columns) + 0.6, 2.5 * len(panels) + 0.9), dpi=150, layout="constrained"
    )
    grid = figure.subplots(len(panels), len(columns), sharex=True, sharey="row", squeeze=False)
    for line, (row, cells) in zip(grid, panels.items(), strict=True):
        line[0].set_ylabel(f"{row}\n{ylabel}")
        for axes, column in zip(line, columns, strict=True):
            for name, pairs in cells.get(column, {}).items():
                _curves(axes, pairs, CYCLE[names.index(name) % len(CYCLE)])
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.grid(color="0.92")
            axes.spines[["top", "right"]].set_visible(False)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column)
    for axes in grid[-1]:
        axes.set_xlabel(xlabel)
    handles = [Line2D([], [], color=CYCLE[i % len(CYCLE)], linewidth=2, label=n) for i, n in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, format="png")


def _curves(axes: Axes, pairs: Pairs, colour: str) -> None:
    for steps, errors_px in pairs:
        axes.plot(steps, errors_px, color=colour, linewidth=0.8, alpha=0.5)
    if len({tuple(steps) for steps, _ in pairs}) == 1:
        axes.plot(
            pairs[0][0], np.median([errors for _, errors in pairs], axis=0), color=colour, linewidth=2.2
        )
