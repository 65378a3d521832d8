"""What `nrf reproduce` leaves: box plot, learning curves, tables, a page, and networks to start from."""

import html
from collections.abc import Mapping
from pathlib import Path

from nrf.pictures.curves import curve_grid
from nrf.pictures.plots import Curve, error_boxes
from nrf.results import reproduction, shipped
from nrf.results.report import picture_html, whole_page
from nrf.results.reproduction import NEURONS, STARTS, Outcome, Size
from nrf.results.tables import NETWORKS
from nrf.system.files import whole_file
from nrf.system.markdown import html_table, markdown_table

CAPTION = (
    "Boxes: windows of the recordings not trained on, all seeds together, quartiles, whiskers 5 to 95 %; "
    "points: each seed's median; dashed: the median error of always guessing the centre."
)
TABLE = (
    "Error in pixels: the median over seeds of each run's median over windows, and in brackets the range "
    "over seeds; idle: runs that never left the error of guessing the centre, their outputs all zero."
)
VERDICTS = ("data", "claim of the paper", "held", "pixels")


def write(out: str | Path, size: Size, outcomes: Mapping[str, Outcome], command: str) -> None:
    """errors.png, curves.png, reproduction.md, index.html and weights/ in the folder `out`.

    outcomes: by data set.  command: that the user gave, for page and model card.
    """
    out, marks = Path(out), not size.reduced
    pictures = {"Errors": out / "errors.png", "Learning curves": out / "curves.png"}
    with whole_file(pictures["Errors"]) as partial:
        error_boxes({name: reproduction.boxes(o, name, marks) for name, o in outcomes.items()}, partial)
    with whole_file(pictures["Learning curves"]) as partial:
        curve_grid({name: curve_panels(o) for name, o in outcomes.items()}, partial)
    notes = [size.reduced or "The paper's full size.", TABLE, *reproduction.baselines(outcomes), CAPTION]
    table, verdicts = reproduction.table(outcomes, marks), verdict_rows(outcomes)
    parts = [f"`{command}`", *notes, markdown_table(*table), markdown_table(VERDICTS, verdicts)]
    with whole_file(out / "reproduction.md") as partial:
        partial.write_text("\n\n".join(parts) + "\n")
    page = [f"<h1>The paper's figure of errors</h1><p><code>{html.escape(command)}</code></p>"]
    page += [f"<p>{html.escape(note)}</p>" for note in notes]
    page += [picture_html(title, path) for title, path in pictures.items()]
    page += ["<h2>Errors in pixels</h2>", html_table(*table)]
    page += ["<h2>Claims</h2>", html_table(VERDICTS, verdicts)]
    with whole_file(out / "index.html") as partial:
        partial.write_text(whole_page("Reproduction", page))
    ship_best(out / "weights", size, outcomes, command)


def curve_panels(outcome: Outcome) -> dict[str, dict[str, list[Curve]]]:
    """{network: {start: curves}} in the order of the figure."""
    keys = [(network, start) for network in NETWORKS for start in STARTS]
    panels: dict[str, dict[str, list[Curve]]] = {network: {} for network in NETWORKS}
    for network, start in keys:
        if curves := outcome.curves.get((network, start)):
            panels[network][start] = curves
    return panels


def verdict_rows(outcomes: Mapping[str, Outcome]) -> list[list[str]]:
    """The verdicts as rows of a table."""
    return [
        [data_set, claim, "yes" if held else "no", figures]
        for data_set, claim, held, figures in reproduction.verdicts(outcomes)
    ]


def ship_best(folder: Path, size: Size, outcomes: Mapping[str, Outcome], command: str) -> None:
    """Of each network the run with the smallest error among those from receptive fields, and the card."""
    data_set, outcome = next(iter(outcomes.items()))
    fields, lines, rows, training = reproduction.better_fields(outcomes), size.lines(), [], []
    if fields is None:
        return
    for network in NEURONS:
        group = outcome.results.get((network, fields), [])
        if not group:
            continue
        best = min(group, key=lambda result: result.errors["all", "all"].mean)
        assert best.checkpoint is not None  # only baselines have none
        name = shipped.file_name(network)
        shipped.ship(best.checkpoint, Path(folder) / name)
        rows.append([name, network, f"{fields} fields", data_set, best.seed, best.errors["all", "all"].mean])
        training.append(f"{lines[network, fields]} --seed={best.seed}")
    if rows:
        number, flags = size.recordings[data_set]
        rendering = f"{number} DATA {flags} --seed {size.data_seed}"
        text = shipped.card(rows, rendering, training, command, size.reduced)
        with whole_file(Path(folder) / "README.md") as partial:
            partial.write_text(text)
