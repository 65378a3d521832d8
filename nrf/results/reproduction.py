"""The paper's figure of errors: the runs that make it, and what came out of them.

    network x start x seed, on each of two data sets: several sizes at one velocity, several velocities

A start is how weights begin: as the published receptive fields, as exact ones, or as uniform noise.  `SIZES`
holds the
settings, `read` collects what finished runs left, `verdicts` and `table` say what it shows.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nrf.pictures.plots import Box, Curve
from nrf.results import evaluate, report
from nrf.results.logs import read_scalars
from nrf.results.tables import NETWORKS, PUBLISHED_PX, Result, initialisation_name, network_name, pooled

DATA_SETS = ("spatial", "temporal")
STARTS = {
    "published": "--receptive_fields=published --init_scheme_spatial=rf --init_scheme_temporal=rf",
    "exact": "--receptive_fields=exact --init_scheme_spatial=rf --init_scheme_temporal=rf",
    "uniform": "--receptive_fields=published --init_scheme_spatial=uniform --init_scheme_temporal=uniform",
}
FIELDS = ("published", "exact")  # the starts that are receptive fields
ORDER = ("LI", "LIF", "ReLU-MF", "ReLU-SF")  # from the smallest error to the largest, as in the paper
NEURONS = {  # flags that tell the networks apart, as in config_ann.txt and config_snn.txt
    "ReLU-SF": "--net=ann --coordinate=dsnt --stack_frames=1",
    "ReLU-MF": "--net=ann --coordinate=dsnt --stack_frames=8",
    "LI": "--net=li --coordinate=dsntli --stack_frames=1",
    "LIF": "--net=lif --coordinate=dsntli --stack_frames=1",
}
SMALL_FIELD = "--generator clean --shapes circle --resolution 32 32 --bg_density 0.006"


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    recordings: (number for each condition, flags of generate_data) by data set.  training: flags that all
    runs share.  batch_sizes: by network.  reduced: what is smaller than in the paper; "" for nothing.  seeds:
    of training, if none are given.  data_seed: of the recordings, whatever the seeds of training.
    """

    recordings: dict[str, tuple[int, str]]
    training: str
    batch_sizes: dict[str, int]
    reduced: str = ""
    seeds: str = "3-5"
    data_seed: int = 1

    def lines(self) -> dict[tuple[str, str], str]:
        """{(network, start): flags of learn_shapes}, in the order in which they run."""
        return {
            (network, start): f"{neuron} --batch_size={self.batch_sizes[network]} {words} {self.training}"
            for start, words in STARTS.items()
            for network, neuron in NEURONS.items()
        }


def _laptop(steps: int, training: str, seeds: str, data_seed: int) -> Size:
    """One circle in a small field."""
    return Size(
        recordings={
            "spatial": (60, f"{SMALL_FIELD} --scales 6 8 11 15 --velocities 0.03"),
            "temporal": (15, f"{SMALL_FIELD} --scales 6 8 11 15 --velocities 0.02 0.03 0.05 0.07"),
        },
        training="--n_spatial_scales=4 --n_temporal_scales=4 --n_angles=1 --n_ratios=1 --dropout=0 "
        f"--timesteps=32 --lr=0.01 --limit_train_batches=20 {training} --num_workers=0 "
        "--accelerator=cpu --num_sanity_val_steps=0 --enable_model_summary=false",
        batch_sizes=dict.fromkeys(NEURONS, 8),
        reduced="One circle instead of three shapes, in 32 x 32 pixels instead of 300 x 300; 240 recordings "
        "instead of 2,000 and 8,000, with four sizes where the paper draws any; 16 receptive fields instead "
        f"of 144; windows of 32 + 32 ms instead of 40 + 40; {steps} training steps of 8 recordings.",
        seeds=seeds,
        data_seed=data_seed,
    )


SIZES = {
    "small": _laptop(200, "--lr_decay=0.93 --max_epochs=10", "3-5", 1),
    "long": _laptop(800, "--max_epochs=40 --check_val_every_n_epoch=2", "6-8", 2),
    "tiny": Size(  # for tests
        recordings={
            "spatial": (2, "--shapes circle --resolution 16 16 --scales 5 6 --velocities 0.2 --frames 32"),
            "temporal": (2, "--shapes circle --resolution 16 16 --scales 5 --velocities 0.1 0.2 --frames 32"),
        },
        training="--n_spatial_scales=1 --n_temporal_scales=1 --n_angles=1 --n_ratios=1 --timesteps=4 "
        "--max_epochs=2 --limit_train_batches=1 --num_workers=0 --accelerator=cpu --num_sanity_val_steps=0",
        batch_sizes=dict.fromkeys(NEURONS, 2),
        reduced="Everything: a test.",
    ),
    "paper": Size(
        recordings={
            "spatial": (500, "--generator published --scales 10 20 40 80 --velocities 0.2"),
            "temporal": (2000, "--generator published --scales random --velocities 0.16 0.32 0.64 1.28"),
        },
        training="--weight_sharing=1 --batch_normalization=0 --n_spatial_scales=4 --n_temporal_scales=4 "
        "--n_angles=4 --n_ratios=3 --dropout=0.05 --max_epochs=50 --devices=1 --strategy=dp",
        batch_sizes={"ReLU-SF": 12, "ReLU-MF": 10, "LI": 8, "LIF": 4},
    ),
}


class Outcome(NamedTuple):
    """What the finished runs on one data set left; keys of both dicts are (network, start)."""

    results: dict[tuple[str, str], list[Result]]  # one per seed
    curves: dict[tuple[str, str], list[Curve]]  # over steps, one per seed
    baselines: list[Result]

    def median(self, network: str, start: str) -> float | None:
        """The median over seeds of a run's median error over windows, in pixels; None without runs."""
        each = self.medians(network, start)
        return statistics.median(each) if each else None

    def medians(self, network: str, start: str) -> list[float]:
        return [
            result.errors["all", "all"].quantile(0.5) for result in self.results.get((network, start), [])
        ]

    def idle(self, network: str, start: str) -> int:
        """How many runs never learned: their error on recordings not trained on stayed within 1 %."""
        curves = [errors for _, errors in self.curves.get((network, start), [])]
        return sum(max(errors) - min(errors) < 0.01 * max(errors) for errors in curves)


def start_name(settings: Mapping[str, Any]) -> str:
    """published, exact or uniform."""
    name = initialisation_name(settings)
    return "published" if name == "rf" else name


def read(data_root: str | Path, folders: Sequence[Path], out: str | Path, device: str = "cpu") -> Outcome:
    """The Outcome of the runs in `folders`, their best checkpoints evaluated on `data_root`; tables go to
    `out`."""
    results: dict[tuple[str, str], list[Result]] = {}
    baselines: list[Result] = []
    for result in evaluate.run(data_root, folders, out, device=device):
        if result.checkpoint is None:
            baselines.append(result)
        else:
            key = result.network, start_name(result.settings)
            results.setdefault(key, []).append(result)
    curves: dict[tuple[str, str], list[Curve]] = {}
    for folder in folders:
        for logged in report.find_runs(folder):
            errors = read_scalars(logged, (report.ERROR,))[report.ERROR]
            settings = report.read_run(logged, folder).settings
            steps = sorted(errors)
            curve = [step + 1 for step in steps], [errors[step] for step in steps]
            curves.setdefault((network_name(settings), start_name(settings)), []).append(curve)
    return Outcome(results, curves, baselines)


def better_fields(outcomes: Mapping[str, Outcome]) -> str | None:
    """The receptive fields, published or exact, whose median errors have the smaller geometric mean over all
    networks and data sets; None if either was not run."""
    means: dict[str, float] = {}
    for start in FIELDS:
        medians = [outcome.median(network, start) for outcome in outcomes.values() for network in ORDER]
        found = [median for median in medians if median is not None]
        if len(found) < len(medians):
            return None
        means[start] = statistics.geometric_mean(found)
    return min(means, key=means.__getitem__)


def verdicts(outcomes: Mapping[str, Outcome]) -> list[tuple[str, str, bool, str]]:
    """What the paper claims, and whether it came out: [(data set, claim, held, figures)]."""
    fields, found = better_fields(outcomes), []
    if fields is None:
        return []
    for data_set, outcome in outcomes.items():
        errors = [statistics.median(outcome.medians(network, fields)) for network in ORDER]
        held = all(a < b for a, b in zip(errors, errors[1:], strict=False))
        figures = (
            " < ".join(f"{error:.2f}" for error in errors) if held else ", ".join(f"{e:.2f}" for e in errors)
        )
        found.append((data_set, " < ".join(ORDER), held, figures))
        for network, ours in zip(ORDER, errors, strict=True):
            uniform = outcome.median(network, "uniform")
            if uniform is not None:
                claim = f"{network}: {fields} fields < uniform"
                found.append((data_set, claim, ours < uniform, f"{ours:.2f}, {uniform:.2f}"))
    return found


def table(outcomes: Mapping[str, Outcome], marks: bool) -> tuple[list[str], list[list[Any]]]:
    """Header and rows: the median over seeds of each run's median error, followed by the seeds' range; with
    `marks`, the
    paper's medians."""
    header = ["data", "network", *STARTS, *(("paper: fields", "paper: uniform") if marks else ())]
    rows: list[list[Any]] = []
    for data_set, outcome in outcomes.items():
        for network in NETWORKS:
            cells = [
                spread_cell(outcome.medians(network, start), outcome.idle(network, start)) for start in STARTS
            ]
            rows.append([data_set, network, *cells])
            if marks:
                rows[-1] += PUBLISHED_PX[data_set][network].values()
    return header, rows


def spread_cell(values: Sequence[float], idle: int = 0) -> str | None:
    """Median and range of some numbers, as a table's cell, and how many runs never learned; None for none."""
    if not values:
        return None
    low, high = min(values), max(values)
    spread = f" ({low:.2f} to {high:.2f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}{spread}" + (f", {idle} idle" if idle else "")


def baselines(outcomes: Mapping[str, Outcome]) -> list[str]:
    """What no network is needed for, in a sentence for each data set."""
    return [
        f"{data_set}: "
        + ", ".join(
            f"{b.network.split(',')[0]} {b.errors['all', 'all'].quantile(0.5):.2f}"
            for b in outcome.baselines[:2]
        )
        for data_set, outcome in outcomes.items()
    ]


def boxes(outcome: Outcome, data_set: str, marks: bool) -> list[Box]:
    """What `plots.error_boxes` draws of one data set: windows of all seeds pooled, and each seed's median as
    a point."""
    drawn = []
    for network in NETWORKS:
        for start in STARTS:
            if group := outcome.results.get((network, start)):
                errors = pooled(group, ("all", "all")).summary() | {"points": outcome.medians(network, start)}
                paper = PUBLISHED_PX[data_set][network].get({"published": "rf"}.get(start, start))
                drawn.append((network, start, errors, paper if marks else None))
    centre = outcome.baselines[:1]
    return drawn + [(b.network.split(",")[0], None, b.errors["all", "all"].summary(), None) for b in centre]
