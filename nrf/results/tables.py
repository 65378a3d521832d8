"""Errors in pixels, as results: collected, named as in the paper, laid out as tables.

Source of the names and medians: the paper's figure of errors (spatial scaling, temporal scaling).
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from nrf.network.neurons import LI, NEURONS
from nrf.results.operations import Operations, operations_table
from nrf.system.markdown import markdown_table

INITIALISATIONS = ("rf", "uniform")
TABLES = {"size": "pixels", "velocity": "as rendered", "folder": "", "shape": "", "time": "ms since warm-up"}
TIMES = 5  # columns of the table over time
NETWORKS = ("ReLU-SF", "ReLU-MF", "LI", "LIF")  # in the paper's order; single frame, multiple frames
PAPER_NAMES = {"ann": "ReLU"}
# medians in pixels by data set, network, initialisation: read off the published figure, +-0.3
PUBLISHED_PX = {
    data: {
        network: dict(zip(INITIALISATIONS, pair, strict=True))
        for network, pair in zip(NETWORKS, pairs, strict=True)
    }
    for data, pairs in {
        "spatial": ((26.1, 27.3), (7.5, 8.3), (1.1, 1.8), (4.0, 5.0)),
        "temporal": ((31.6, 34.3), (14.1, 20.3), (3.7, 4.9), (13.2, 15.2)),
    }.items()
}


def network_name(settings: Mapping[str, Any]) -> str:
    """The paper's name for the network of these settings (a mapping that has net and stack_frames)."""
    net = settings["net"]
    if NEURONS.get(net, LI).state is None:  # frames stand in for memory
        return f"{PAPER_NAMES.get(net, net.upper())}-{'SF' if settings['stack_frames'] == 1 else 'MF'}"
    return net.upper()


def initialisation_name(settings: Mapping[str, Any]) -> str:
    """rf (published fields), exact (fields), uniform, or space-time where the two differ."""
    space, time = settings["init_scheme_spatial"], settings["init_scheme_temporal"]
    name = "exact" if space == "rf" and settings.get("receptive_fields") == "exact" else space
    has_tau = NEURONS.get(settings["net"], LI).has_tau
    return f"{name}-{time}" if has_tau and space != time else name


def published_set(name: str) -> str | None:
    """Which of the paper's data sets a folder of this name holds: spatial, temporal, or None."""
    found = [data for data in PUBLISHED_PX if data in name.lower()]
    return found[0] if len(found) == 1 else None


class Spread:
    """Mean and quantiles of errors, one per window, as they come."""

    def __init__(self, parts: Iterable[np.ndarray] = ()) -> None:
        self.parts = list(parts)

    @property
    def values(self) -> np.ndarray:
        return np.concatenate([np.empty(0), *self.parts])

    @property
    def n(self) -> int:
        return sum(map(len, self.parts))

    def add(self, errors: ArrayLike) -> None:
        """Take in an array of errors of any shape, all of them 0 or more. ValueError for others."""
        errors = np.asarray(errors, np.float64).ravel()
        if not (np.isfinite(errors) & (errors >= 0)).all():
            raise ValueError("errors: expected finite values of 0 or more")
        self.parts.append(errors)

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(self.parts + other.parts)

    @property
    def mean(self) -> float:
        return float(self.values.mean()) if self.n else math.nan

    def quantile(self, q: float) -> float:
        """The q-quantile, q in [0, 1]; NaN of nothing."""
        return float(np.quantile(self.values, q)) if self.n else math.nan

    def summary(self) -> dict[str, Any]:
        """n, mean and the quantiles that a box plot shows, as a dict."""
        quantiles = {"p5": 0.05, "q1": 0.25, "median": 0.5, "q3": 0.75, "p95": 0.95}
        return {"n": self.n, "mean": self.mean} | {k: self.quantile(q) for k, q in quantiles.items()}


@dataclasses.dataclass
class Result:
    """Errors of one checkpoint, or of one baseline (initialisation, seed and checkpoint are None)."""

    network: str
    initialisation: str | None = None
    seed: int | None = None
    checkpoint: Path | None = None
    trained_px: float | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    operations: Operations = Operations()
    errors: dict[tuple[str, Any], Spread] = dataclasses.field(
        default_factory=lambda: defaultdict(Spread)
    )  # by (table, column)

    def add(
        self, errors_px: Tensor, conditions: Sequence[Mapping[str, Any]], shapes: Iterable[str | int]
    ) -> None:
        """Take in errors (T, B, N) of B windows, recorded under `conditions`, of N `shapes`."""
        per_window = errors_px.mean((0, 2))
        self.errors["all", "all"].add(per_window)
        for table in conditions[0]:
            columns = [condition[table] for condition in conditions]
            for column in set(columns):
                rows = [b for b, other in enumerate(columns) if other == column]
                self.errors[table, column].add(per_window[rows])
        for shape, errors in zip(shapes, errors_px.mean(0).T, strict=True):
            self.errors["shape", shape].add(errors)
        for step, errors in enumerate(errors_px.mean(2), start=1):
            self.errors["time", step].add(errors)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of some numbers; the deviation of a single one is NaN."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def grouped(results: Sequence[Result]) -> dict[tuple[str, str | None], list[Result]]:
    """Results by network and initialisation: {(network, initialisation): [Result, ...]}, sorted as given."""
    groups = defaultdict(list)
    for result in results:
        groups[result.network, result.initialisation].append(result)
    return dict(groups)


def differences(group: Sequence[Result]) -> list[str]:
    """Names of the settings in which a group's checkpoints differ, other than the seed; and whether two have
    the same seed."""
    names = {name for result in group for name in result.settings} - {"seed"}
    differ = sorted(n for n in names if len({repr(result.settings.get(n)) for result in group}) > 1)
    seeds = [result.seed for result in group]
    return differ + (["seed, which two have in common"] if len(set(seeds)) < len(seeds) else [])


def tables(results: Sequence[Result], title: str) -> str:
    """The Markdown that the command prints."""
    groups = grouped(results)
    header = ["network", "initialisation", "checkpoints", "mean", "+-", "quarter", "median", "three quarters"]
    rows, notes = [], []
    for (network, initialisation), group in groups.items():
        mean, deviation = mean_and_deviation([result.errors["all", "all"].mean for result in group])
        spread = pooled(group, ("all", "all"))
        count = len(group) if initialisation else None
        quartiles = [spread.quantile(q) for q in (0.25, 0.5, 0.75)]
        rows.append([network, initialisation, count, mean, deviation, *quartiles])
        if len(group) > 1 and (differ := differences(group)):
            notes.append(
                f"\n{network}, {initialisation}: not only seeds differ, but also {', '.join(differ)}"
            )
    parts = [f"## {title}", markdown_table(header, rows), *notes]
    for table, unit in TABLES.items():
        columns = sorted(
            {c for r in results for t, c in r.errors if t == table}, key=lambda c: (str(type(c)), c)
        )
        if table == "time" and len(columns) > TIMES:
            columns = [columns[round(k * (len(columns) - 1) / (TIMES - 1))] for k in range(TIMES)]
        if len(columns) > 1:
            lines = [
                [*names, *(pooled(group, (table, column)).mean for column in columns)]
                for names, group in groups.items()
            ]
            header = [
                "network",
                "initialisation",
                *(f"{c:g}" if isinstance(c, float) else c for c in columns),
            ]
            parts += [f"\n### By {table}{f', {unit}' if unit else ''}", markdown_table(header, lines)]
    counted = [
        (*names, sum((result.operations for result in group), Operations()))
        for names, group in groups.items()
    ]
    if any(sums.frames for *_, sums in counted):
        parts.append("\n### Operations per frame, in thousands")
        parts.append(operations_table([row for row in counted if row[2].frames]))
    checkpoints = [
        [r.checkpoint, r.seed, r.errors["all", "all"].mean, r.trained_px] for r in results if r.checkpoint
    ]
    parts += [
        "\n### By checkpoint",
        markdown_table(["checkpoint", "seed", "mean", "when saved"], checkpoints),
    ]
    return "\n".join(parts)


def pooled(group: Sequence[Result], key: tuple[str, Any]) -> Spread:
    return sum((result.errors[key] for result in group if key in result.errors), Spread())
