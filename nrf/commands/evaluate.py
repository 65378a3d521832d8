"""Errors of trained networks in pixels, as the paper measures them, over whole data sets.

    python3 -m nrf evaluate data/spatial logs/*/version_*/checkpoints/last.ckpt --out results

prints Markdown tables: each network and initialisation over its seeds, beside two baselines (always the
centre of the field; the centroid of the window's events so far); by size and velocity as the folders of the
recordings state them, by shape, and over the time since the warm-up.  An error is the distance of predicted
and true position, averaged over a window's time steps and shapes; quartiles are over windows.  Windows are
those that a network was trained with.  --operations counts what a network costs on hardware that computes
only where events and spikes are (`nrf/results/operations.py` defines it).
"""

import argparse
from collections.abc import Sequence

from nrf.commands.parser import CommandLine, finish
from nrf.results.evaluate import run
from nrf.results.tables import tables


def command_line() -> CommandLine:
    parser = CommandLine("nrf evaluate", usage="%(prog)s DATA CHECKPOINT... [flags]", description=__doc__)
    parser.add_argument("data", help="folder of folders of recordings, as generate_data makes them")
    parser.add_argument(
        "checkpoints", nargs="+", help=".ckpt files; of a folder, the best checkpoint of every run in it"
    )
    parser.add_argument("--out", type=str | None, help="folder for errors.csv, .json, .png and windows.csv")
    parser.add_argument("--split", choices=("val", "train", "all"), default="val", help="recordings to take")
    parser.add_argument("--batch_size", type=int | None, help="windows at a time (default: as in training)")
    parser.add_argument("--operations", action="store_true", help="count multiplications and additions, too")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read data")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: the GPU if there is one"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_line()
    return finish(parser.prog, show, parser.parse_args(argv))


def show(arguments: argparse.Namespace) -> None:
    """Print the tables of a command line; write what --out asks for."""
    results = run(
        arguments.data,
        arguments.checkpoints,
        arguments.out,
        arguments.split,
        arguments.batch_size,
        arguments.num_workers,
        arguments.device,
        arguments.operations,
    )
    windows = results[0].errors["all", "all"].n
    print(tables(results, f"{arguments.data}, {arguments.split}: {windows} windows, errors in pixels"))
    if arguments.out:
        print(f"\nsee {arguments.out}/errors.csv, errors.json, errors.png, windows.csv")
