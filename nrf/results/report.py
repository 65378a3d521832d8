"""All runs under a folder of logs: a table, learning curves and the paper's box plot, as one page.

    python3 report.py logs --out report

reads every TensorBoard folder under it. The table has the settings in which runs differ, the best error in
pixels on recordings not trained on, epochs and seconds.  A box is over the finished runs of one network and
initialisation, whatever else differs (seeds, say); diamonds are the paper's medians, where the name of the
folder of data has spatial or temporal in it.  report/index.html has it all in one file.

A run is running while its process lives, or on another machine while its files changed within half an hour;
then it has crashed.  Runs of other programs, without run.json, are running or over.
"""

import base64
import contextlib
import html
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nrf.config import result_affecting
from nrf.pictures.plots import Box, Curve, error_boxes, learning_curves
from nrf.results.logs import EVENT_FILES, read_logs
from nrf.results.tables import (
    NETWORKS,
    PUBLISHED_PX,
    initialisation_name,
    mean_and_deviation,
    network_name,
    published_set,
)
from nrf.system.files import whole_file
from nrf.system.markdown import cell, html_table
from nrf.system.plain import plain_yaml
from nrf.system.text import printable
from nrf.training.board import RECORD

SILENT_S = 1800.0  # a run elsewhere that wrote nothing for so long has crashed
ERROR = "val/error_px"
NAME_LENGTH = 100  # of the data's name, at most, which is part of a file's name
STATES = ("running", "finished", "stopped", "failed")  # in run.json
OVER = ("finished", "over")  # states of runs that the boxes are of
Table = tuple[list[str], list[list[Any]]]  # header and rows
GROUP = ("net", "init_scheme_spatial", "init_scheme_temporal", "stack_frames")  # shown by a run's group
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:13px}img{max-width:100%}h1,h2{font-weight:600}code{font-size:13px}
td,th{border-bottom:1px solid #ddd;padding:.25rem .6rem;text-align:left}"""


class LoggedRun(NamedTuple):
    name: str  # its folder under the logs
    settings: dict[str, Any]  # fields of Config; empty of another program's
    data: str  # name of the folder of recordings, "" if unknown
    state: str  # running, crashed, finished, stopped, failed, over
    epochs: list[int]  # of each validation, counted from 1
    errors_px: list[float]  # of each validation
    seconds: float  # of all its parts together

    @property
    def best_px(self) -> float | None:
        return min((error for error in self.errors_px if error == error), default=None)

    @property
    def group(self) -> tuple[str, str]:
        """(network, initialisation) as in the paper; of other programs' runs the name and nothing."""
        *names, frames = (self.settings.get(name) for name in GROUP)
        known = all(isinstance(name, str) for name in names) and isinstance(frames, int)
        return (network_name(self.settings), initialisation_name(self.settings)) if known else (self.name, "")


def find_runs(logs: str | Path) -> list[Path]:
    """Folders under `logs` that hold TensorBoard's files. FileNotFoundError where there is none."""
    folders = sorted({path.parent for path in Path(logs).rglob(EVENT_FILES)})
    if not folders:
        raise FileNotFoundError(f"{logs}: no TensorBoard files under it; expected a folder of logs")
    return folders


def read_run(folder: Path, logs: str | Path, now: float | None = None) -> LoggedRun:
    """The LoggedRun in a folder of TensorBoard files. Where a part was logged twice, the later one counts."""
    scalars, seconds, is_whole = read_logs(folder, ("epoch", ERROR))
    size = sum(path.stat().st_size for path in folder.glob(EVENT_FILES) if path.is_file())
    epochs, errors = scalars.values()
    steps = sorted(errors)
    settings, record = _settings(folder), _record(folder)
    data = Path(record["data"]).name if record else _data_of(folder)
    is_whole = is_whole and (not record or size >= record["logged_bytes"])
    state = state_of(folder, record, now)
    return LoggedRun(
        printable(folder.relative_to(logs) if folder != Path(logs) else folder.name),
        settings,
        printable(data)[:NAME_LENGTH],
        state if is_whole or state not in OVER else "damaged",
        [int(epochs[step]) + 1 if step in epochs else i for i, step in enumerate(steps, start=1)],
        [errors[step] for step in steps],
        seconds,
    )


def _dict_in(path: Path, load: Callable[[str], Any]) -> dict:
    """The dict that a file holds, {} without one: another program's."""
    try:
        content = load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, RecursionError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _settings(folder: Path) -> dict[str, Any]:
    """Names and values, of numbers, texts and lists of them; {} where there is anything else."""
    settings = _dict_in(folder / "hparams.yaml", plain_yaml)
    parts = [part for value in settings.values() for part in (value if isinstance(value, list) else [value])]
    plain = all(isinstance(part, int | float | str | None) for part in parts)
    if not plain or not all(isinstance(name, str) for name in settings):
        return {}
    return {
        printable(name): printable(value) if isinstance(value, str) else value
        for name, value in settings.items()
    }


def _record(folder: Path) -> dict[str, Any]:
    record = {"logged_bytes": 0} | _dict_in(folder / RECORD, json.loads)
    types = {"state": str, "host": str, "pid": int, "data": str, "logged_bytes": int}
    ours = all(isinstance(record.get(name), kind) for name, kind in types.items())
    ours = ours and record["state"] in STATES and 0 < record["pid"] < 2**31
    return record if ours else {}  # another program's


def _data_of(folder: Path) -> str:
    """The name of the data in a published run name, ...(NAME), that a parent folder has."""
    name = folder.parent.name
    return name[name.index("(") + 1 : -1] if "(" in name and name.endswith(")") else ""


def state_of(folder: Path, record: dict[str, Any], now: float | None = None) -> str:
    """How a run goes, from its record and the age of its files; see the module's docstring."""
    fresh = (time.time() if now is None else now) - newest_change(folder) < SILENT_S
    if not record:
        return "running" if fresh else "over"
    if record["state"] != "running":
        return record["state"]
    alive = process_lives(record["pid"]) if record["host"] == platform.node() else fresh
    return "running" if alive else "crashed"


def newest_change(folder: Path) -> float:
    """When a file under the folder was last written, 0 without one; files may vanish meanwhile."""
    newest = 0.0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                newest = max(newest, os.stat(os.path.join(parent, name)).st_mtime)
    return newest


def process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def differing(runs: Sequence[LoggedRun]) -> list[str]:
    """Names of the settings in which runs differ, other than those that their groups show."""
    settings = [result_affecting(run.settings) for run in runs]
    names = sorted({name for found in settings for name in found} - {*GROUP})
    return [name for name in names if len({repr(found.get(name)) for found in settings}) > 1]


def table(runs: Sequence[LoggedRun]) -> Table:
    """Header and rows of the table of runs, the best first within each folder of data."""
    names = differing(runs)
    header = ["run", "network", "initialisation", "data", "state", "best px", "epochs", "seconds", *names]
    last = float("inf")
    runs = sorted(runs, key=lambda run: (run.data, last if run.best_px is None else run.best_px))
    return header, [
        [
            run.name,
            *run.group,
            run.data,
            run.state,
            run.best_px,
            max(run.epochs, default=0),
            round(run.seconds),
            *(str(run.settings[name]) if name in run.settings else None for name in names),
        ]
        for run in runs
    ]


def groups_of(runs: Sequence[LoggedRun]) -> dict[str, dict[tuple[str, str], list[LoggedRun]]]:
    """{data: {(network, initialisation): [LoggedRun, ...]}} of runs with errors, in the paper's order."""
    groups: dict[str, dict[tuple[str, str], list[LoggedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: (run.data, (*NETWORKS, run.group[0]).index(run.group[0]))):
        if run.best_px is not None:
            groups[run.data][run.group].append(run)
    return groups


def finished_px(runs: Sequence[LoggedRun]) -> list[float]:
    """The best errors of those that are over."""
    return [run.best_px for run in runs if run.state in OVER and run.best_px is not None]


def group_table(runs: Sequence[LoggedRun]) -> Table:
    """Header and rows of the groups: finished runs, mean and deviation of their best errors, published."""
    header = [
        "data",
        "network",
        "initialisation",
        "finished",
        "of",
        "mean",
        "+-",
        "median",
        "published",
    ]
    rows = []
    for data, groups in groups_of(runs).items():
        for (network, initialisation), members in groups.items():
            best = finished_px(members)
            rows.append(
                [data, network, initialisation, len(best), len(members)]
                + (list(mean_and_deviation(best)) + [statistics.median(best)] if best else [None] * 3)
                + [published(data, network, initialisation)]
            )
    return header, rows


def published(data: str, network: str, initialisation: str) -> float | None:
    return PUBLISHED_PX.get(published_set(data) or "", {}).get(network, {}).get(initialisation)


def draw(runs: Sequence[LoggedRun], out: Path) -> list[tuple[str, Path]]:
    """errors.png and a curves-DATA.png for each folder of data; returns [(title, path), ...]."""
    pictures: list[tuple[str, Path]] = []
    panels: dict[str, list[Box]] = {}
    for data, groups in groups_of(runs).items():
        boxes: list[Box] = [
            (*group, finished_px(members), published(data, *group)) for group, members in groups.items()
        ]
        panels[data or "runs"] = [box for box in boxes if box[2]]
        path = out / f"curves-{data or 'runs'}.png"
        curves: dict[str, Curve | list[Curve]] = {
            " ".join(g): [(run.epochs, run.errors_px) for run in runs] for g, runs in groups.items()
        }
        with whole_file(path) as partial:
            learning_curves(curves, partial)
        pictures.append((f"Learning curves, {data or 'runs'}", path))
    panels = {data: boxes for data, boxes in panels.items() if boxes}
    if panels:
        with whole_file(out / "errors.png") as partial:
            error_boxes(panels, partial)
        pictures.insert(0, ("Best errors of finished runs", out / "errors.png"))
    return pictures


def page(runs: Sequence[LoggedRun], logs: str | Path, pictures: Sequence[tuple[str, Path]]) -> str:
    """The page, pictures inlined."""
    states: dict[str, int] = defaultdict(int)
    for run in runs:
        states[run.state] += 1
    counts = ", ".join(f"{n} {state}" for state, n in states.items())
    common = {
        name: value
        for name, value in sorted(runs[0].settings.items())
        if all(run.settings.get(name) == value for run in runs)
    }
    shared = ", ".join(f"{name} {cell(value)}" for name, value in common.items())
    parts = [f"<h1>{html.escape(str(logs))}</h1><p>{len(runs)} runs: {counts}.</p>"]
    parts += [picture_html(title, path) for title, path in pictures]
    parts += ["<h2>Networks and initialisations</h2>", html_table(*group_table(runs))]
    parts += ["<h2>Runs</h2>", html_table(*table(runs))]
    parts += [
        "<h2>What all runs have in common</h2>",
        f"<p><code>{html.escape(shared) or 'nothing'}</code></p>",
    ]
    parts.append(
        "<p>Errors are in pixels, on recordings not trained on; diamonds and the column published are the "
        "medians of the published figure, read off to 0.3 pixels.</p>"
    )
    parts.append(f"<p>{time.strftime('%Y-%m-%d %H:%M %Z')}</p>")
    return whole_page("Runs", parts)


def picture_html(title: str, path: Path) -> str:
    """A heading, and the PNG at `path` inlined."""
    encoded, alt = base64.b64encode(path.read_bytes()).decode(), html.escape(title)
    return f'<h2>{alt}</h2><img alt="{alt}" src="data:image/png;base64,{encoded}">'


def whole_page(title: str, parts: Sequence[str]) -> str:
    """An HTML page of these parts."""
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return head + "\n".join(parts)
