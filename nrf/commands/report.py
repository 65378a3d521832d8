"""All runs under a folder of logs: a table, learning curves and the paper's box plot, as one page.

    python3 -m nrf report logs --out report

reads every TensorBoard folder under it. The table has the settings in which runs differ, the best error in
pixels on recordings not trained on, epochs and seconds.  A box is over the finished runs of one network and
initialisation, whatever else differs (seeds, say); diamonds are the paper's medians, where the name of the
folder of data has spatial or temporal in it.  report/index.html has it all in one file.

A run is running while its process lives, or on another machine while its files changed within half an hour;
then it has crashed.  Runs of other programs, without run.json, are running or over.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from nrf.commands.parser import CommandLine, finish
from nrf.results.report import draw, find_runs, group_table, page, read_run, table
from nrf.system.files import whole_file
from nrf.system.markdown import markdown_table


def command_line() -> CommandLine:
    parser = CommandLine("nrf report", usage="%(prog)s LOGS [flags]", description=__doc__)
    parser.add_argument("logs", help="folder of logs, as learn_shapes.py writes them")
    parser.add_argument("--out", default="report", help="folder for index.html and its pictures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_line()
    return finish(parser.prog, show, parser.parse_args(argv))


def show(arguments: argparse.Namespace) -> None:
    """Print the tables of a folder of logs and write its page."""
    logs, out = Path(arguments.logs), Path(arguments.out)
    runs = [read_run(folder, logs) for folder in tqdm(find_runs(logs), unit="run", disable=None)]
    pictures = draw(runs, out)
    with whole_file(out / "index.html") as partial:
        partial.write_text(page(runs, logs, pictures))
    print(markdown_table(*table(runs)) + "\n\n" + markdown_table(*group_table(runs)))
    print(f"\nsee {out}/index.html")
