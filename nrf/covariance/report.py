"""The paper's claim as numbers: how covariant kernels and recursions are on the grid of pixels and
milliseconds.

    python3 covariance.py [CHECKPOINT] [--out covariance]

compares "transform, then filter" with "filter, then transform" over scalings, rotations, shears and random
affine maps of space, scalings of time, both at once, and motion; for the exact, the published and Norse
1.1.0's receptive fields.  With a checkpoint also how far training has left the theory.  Writes covariance.md,
covariance.csv and pictures to the folder, and prints the tables.  A minute on one core.
"""

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nrf.covariance.families import kernel_rows, time_rows
from nrf.covariance.space import (
    DEVIATIONS,
    MEASURED_DISCRETISATIONS,
    MEASURED_FAMILIES,
    MEASURED_ORDERS,
    SHAPES,
    Row,
    Shape,
    blobs,
    discretisation_rows,
    errors,
    field_of,
    filtered,
    kernels_of,
    network_rows,
    rotation,
    space_rows,
    support_of,
)
from nrf.covariance.time import firing_rows, galilean_rows, joint_rows, linear_rows, speed_rows
from nrf.pictures.plots import kernel_bank
from nrf.pictures.theory import Lines, Panels, commuting_diagram, error_curves
from nrf.system.files import whole_file
from nrf.system.markdown import markdown_table
from nrf.theory.affine_gaussian import mapped
from nrf.theory.receptive_fields import KERNEL_SIZES, spatial_kernels, spatial_parameters
from nrf.training.checkpoints import Trained
from nrf.training.module import ShapesModel

Parts = Mapping[str, Sequence[Row]]  # what was measured, by name
NAMES = ["{}{}".format(*order) for order in MEASURED_ORDERS]


# --- tables ---


def percent(values: Iterable[float]) -> list[str]:
    """The median and the largest, in percent, to three digits."""
    values = [value for value in values if not math.isnan(value)]
    return (
        [f"{100 * value:.3g}" for value in (statistics.median(values), max(values))] if values else ["", ""]
    )


def picked(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def column(rows: Sequence[Row], key: str = "error") -> list:
    return [row[key] for row in rows]


def space_table(rows: Sequence[Row], families: Sequence[str]) -> str:
    header = ["size", "order", "held"]
    for family in families:
        header += [family, "largest", "up to gain"]
    lines = []
    for size in dict.fromkeys(column(rows, "size")):
        for order in NAMES:
            here = picked(rows, size=size, order=order)
            held = statistics.mean(row["holds"] for row in here)
            line = [size, order, f"{100 * held:.0f} %"]
            for family in families:
                own = picked(here, family=family)
                line += [*percent(column(own)), percent(column(own, "shape_error"))[0]]
            lines.append(line)
    return markdown_table(header, lines)


def pivot(
    rows: Sequence[Row],
    line_keys: Sequence[str],
    column_key: str,
    value: str = "error",
    columns: Sequence | None = None,
    largest: int = 0,
) -> str:
    """A table of medians, or largest values, in percent: a line per values of `line_keys`, a column per value
    of `column_key`."""
    columns = columns or list(dict.fromkeys(column(rows, column_key)))
    lines = []
    for line in dict.fromkeys(tuple(row[key] for key in line_keys) for row in rows):
        own = picked(rows, **dict(zip(line_keys, line, strict=True)))
        cells = [percent(column(picked(own, **{column_key: c}), value))[largest] for c in columns]
        lines.append([*(f"{v:.3g}" if isinstance(v, float) else v for v in line), *cells])
    return markdown_table([*line_keys, *(f"{c:.3g}" if isinstance(c, float) else c for c in columns)], lines)


def promises(space: Sequence[Row], time: Sequence[Row]) -> list[tuple]:
    """What the exact family promises, lines (what, wanted, exact, published, published up to the best gain,
    reached); errors in %."""
    held = [row for row in space if row["holds"]]
    parts = (
        ("largest from 1 pixel on, support held", "below 1", max, [r for r in held if r["sigma_px"] > 0.999]),
        ("largest at 0.5 pixels, support held", "below 5", max, [r for r in held if r["sigma_px"] < 0.501]),
        ("median of the whole table", "a tenth of published", statistics.median, space),
    )
    lines = []
    for what, wanted, reduce, rows in parts:
        exact, published = (picked(rows, family=family) for family in ("exact", "published"))
        found = [reduce(column(exact)), reduce(column(published)), reduce(column(published, "shape_error"))]
        bound = float(wanted[6:]) / 100 if wanted.startswith("below") else found[1] / 10
        lines.append((what, wanted, *(f"{100 * v:.3g}" for v in found), "yes" if found[0] < bound else "no"))
    exact, euler = (
        max(row["true_error"] for row in picked(time, step=step, input="pieces"))
        for step in ("exact", "euler")
    )
    reached = f"{100 * exact:.2g}", f"{100 * euler:.3g}", None
    return [*lines, ("largest over time", "below 0.1", *reached, "yes" if exact < 1e-3 else "no")]


def space_sections(parts: Parts) -> list[tuple[str, str]]:
    """(title, Markdown) of what was measured over space."""
    space = parts["space"]
    needed = [row | {"value": float(row["value"])} for row in space if row["size"] == "needed"]
    scalings = [row for row in needed if row["map"] == "scaling"]
    return [
        (
            "Space, analytic images: transform, then filter against filter, then transform",
            "Medians and largest relative l2 errors in % over fields and maps; size needed: what holds all "
            "but 1e-4 of both kernels; held: how often the size does; up to gain: the median up to the "
            "best common gain.\n\n" + space_table(space, MEASURED_FAMILIES),
        ),
        (
            "Scalings by order, size as needed (medians in %)",
            pivot(scalings, ("value", "family"), "order", columns=NAMES),
        ),
        (
            "Kinds of maps, size as needed (medians in %)",
            pivot(needed, ("map", "family"), "order", columns=NAMES),
        ),
        (
            "Ways to put a kernel on the grid: errors against the true response to a blob of 1.5 pixels (%)",
            pivot(parts["discretisations"], ("order", "family"), "sigma_px", "true_error"),
        ),
        (
            "The same of the paper's bank in the network's kernels, by size, on blobs of 1.5 or 4 pixels (%)",
            "\n\n".join(
                f"{name}\n\n{pivot(parts['network'], ('blob_px', 'family'), 'size', 'true_error', largest=i)}"
                for i, name in enumerate(("medians", "largest"))
            ),
        ),
        (
            "Space, GERD shapes of 16 pixels, size as needed: medians in %; edges are one pixel wide before "
            "and after every map, which no kernel can make up for",
            pivot(parts["shapes"], ("image", "family"), "order", columns=NAMES),
        ),
    ]


def time_sections(parts: Parts) -> list[tuple[str, str]]:
    """(title, Markdown) of what was measured over time, and over space and time at once."""
    time = parts["time"]
    firing = [
        (row["step"], f"{row['scale']:g}")
        + tuple(f"{100 * row[key]:.3g}" for key in ("rate_error", "true_rate_error"))
        + (f"{row['late_ms']:.2f}",)
        for row in parts["firing"]
    ]
    return [
        (
            "Time: errors in % between scales S of the time axis, and against continuous truth",
            "Pieces are constant within each ms, as frames of events are; bumps are smooth, and sampled.\n\n"
            "covariance\n\n"
            + pivot(time, ("neuron", "input", "step"), "scale")
            + "\n\ntruth\n\n"
            + pivot(time, ("neuron", "input", "step"), "scale", "true_error"),
        ),
        (
            "Time: leaky integrate-and-fire; errors of rates in %, and how late the first spike comes",
            markdown_table(["step", "S", "rate against S = 1", "rate against truth", "late in ms"], firing),
        ),
        ("Space and time at once (%)", pivot(parts["joint"], ("map", "family"), "order")),
        (
            "Galilean motion: an image in motion, seen by fields that move along or stand still (%)",
            pivot(parts["motion"], ("velocity", "fields"), "order"),
        ),
        (
            "Events of a GERD shape at velocity v and 2 v (%)",
            pivot(parts["speed"], ("shape", "velocity", "step"), "order"),
        ),
    ]


def checkpoint_sections(parts: Parts) -> list[tuple[str, str]]:
    """(title, Markdown) of how far training has left the theory."""
    kernels = [
        (row["layer"], row["kernels"], row["measured"])
        + tuple(f"{100 * row[key]:.3g}" for key in ("at_start", "median", "low", "high"))
        for row in parts["kernels"]
    ]
    keys = ("layer", "tau_ms", "ratio", "distance")
    return [
        (
            "The checkpoint: distances of kernels from the nearest affine Gaussian derivative (%)",
            markdown_table(
                ["layer", "kernels", "measured", "at the start", "median", "10 %", "90 %"], kernels
            ),
        ),
        (
            "The checkpoint: time constants, the nearest logarithmic distribution's ratio, and the root "
            "mean square of ln tau around it",
            markdown_table(
                ["layer", "tau in ms", "ratio", "distance"],
                [[row.get(key) for key in keys] for row in parts["time constants"]],
            ),
        ),
    ]


def report(parts: Parts) -> str:
    """The Markdown of all parts {name: rows}."""
    header = ["", "promised", "exact", "published", "up to gain", "reached"]
    promised = markdown_table(header, promises(parts["space"], parts["time"]))
    sections = [("What the exact family promises: relative errors in %", promised)]
    sections += space_sections(parts) + time_sections(parts)
    sections += checkpoint_sections(parts) if "kernels" in parts else []
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)


def write_csv(parts: Parts, path: Path) -> None:
    """All rows of all parts, one line each; a column is empty where a part has none of it."""
    keys = list(dict.fromkeys(key for rows in parts.values() for row in rows for key in row))
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["part", *keys])
        writer.writeheader()
        for part, rows in parts.items():
            writer.writerows({"part": part, **row} for row in rows)


# --- pictures ---


def diagram(path: Path) -> None:
    """The commuting diagram of a triangle turned by 40 degrees and made 1.5 times larger, order (1, 1)."""
    shape, matrix = (
        Shape("triangle", 18.0, torch.eye(2, dtype=torch.float64)),
        1.5 * rotation(math.radians(40)),
    )
    line = torch.arange(-24, 25, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)
    field, rows = field_of(2.0, 1.2, 0.4), {}
    there, image = mapped(field, matrix), shape.mapped(matrix)
    back = points @ torch.linalg.inv(matrix).T
    for family, size in (("exact", support_of(there)), ("published", support_of(there)), ("published", 9)):
        here_kernel, there_kernel = (kernels_of(family, one, [(1, 1)], size) for one in (field, there))
        panels = [
            shape(points),
            filtered(shape, points, here_kernel)[:, 0],
            image(points),
            filtered(image, points, there_kernel)[:, 0],
            filtered(shape, back, here_kernel)[:, 0],
        ]
        panels.append(panels[3] - panels[4])
        error = errors(panels[3][:, None], panels[4][:, None])[0].item()
        images = [panel.reshape(len(line), -1).numpy() for panel in panels]
        rows[f"{family}, {size} x {size}"] = images, error
    title = "Does the diagram commute? Turned by 40°, 1.5 times larger; derivative of order (1, 1)"
    with whole_file(path) as partial:
        commuting_diagram(rows, partial, title)


def pictures(parts: Parts, out: Path) -> None:
    diagram(out / "diagram.png")
    for family in ("exact", "published"):
        fields = spatial_parameters(family=family)
        kernels = spatial_kernels(fields, KERNEL_SIZES[0], family)
        with whole_file(out / f"bank-{family}.png") as partial:
            kernel_bank(kernels.numpy(), fields.numpy(), partial)
    panels: dict[str, tuple[str, Lines]] = {}
    lines: Lines
    for order in ("00", "10", "11"):
        rows = picked(parts["discretisations"], order=order)
        lines = {
            name: (DEVIATIONS, column(picked(rows, family=name), "true_error"))
            for name in MEASURED_DISCRETISATIONS
        }
        panels[f"order ({order[0]}, {order[1]})"] = "deviation in pixels", lines
    _curves(panels, out / "discretisations.png", "error of the response", {0.01: "1 %", 0.05: "5 %"})
    scalings = [row for row in parts["space"] if row["map"] == "scaling" and row["size"] == "needed"]
    values, panels = sorted({row["value"] for row in scalings}), {}
    for order in ("00", "10", "11"):
        lines = {}
        for family in MEASURED_FAMILIES:
            own = picked(scalings, order=order, family=family)
            lines[family] = values, [statistics.median(column(picked(own, value=v))) for v in values]
        panels[f"order ({order[0]}, {order[1]})"] = "scaling of space", lines
    _curves(panels, out / "space.png", "covariance error", {0.01: "1 %"})
    panels = {}
    for neuron, kind in (("leaky integrator", "pieces"), ("cascade of 3", "pieces")):
        rows = picked(parts["time"], neuron=neuron, input=kind)
        lines = {
            step: (column(picked(rows, step=step), "scale"), column(picked(rows, step=step), "true_error"))
            for step in dict.fromkeys(column(rows, "step"))
        }
        panels[neuron] = "scaling of time", lines
    _curves(panels, out / "time.png", "error against continuous truth", {0.001: "0.1 %"})


def _curves(panels: Panels, path: Path, *look: Any) -> None:
    with whole_file(path) as partial:
        error_curves(panels, partial, *look)


def measure(trained: Trained | None = None) -> dict[str, list[Row]]:
    """All rows, {part: rows}."""
    eye = torch.eye(2, dtype=torch.float64)
    parts = {
        "space": space_rows({"blobs": blobs()}),
        "shapes": space_rows({kind: Shape(kind, 16.0, eye) for kind in SHAPES}, sizes=(0,)),
        "discretisations": discretisation_rows(),
        "network": network_rows(),
        "time": linear_rows(),
        "firing": firing_rows(),
        "joint": joint_rows(),
        "motion": galilean_rows(),
        "speed": speed_rows(0.125) + speed_rows(0.5),
    }
    if trained:
        torch.manual_seed(trained.settings["seed"])
        start = ShapesModel(**trained.settings)
        parts["kernels"] = kernel_rows(trained.model.net, start.net)
        parts["time constants"] = time_rows(trained.model.net)
    return parts
