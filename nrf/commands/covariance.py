"""The paper's claim as numbers: how covariant kernels and recursions are on the grid of pixels and
milliseconds.

    python3 -m nrf covariance [CHECKPOINT] [--out covariance]

compares "transform, then filter" with "filter, then transform" over scalings, rotations, shears and random
affine maps of space, scalings of time, both at once, and motion; for the exact, the published and Norse
1.1.0's receptive fields.  With a checkpoint also how far training has left the theory.  Writes covariance.md,
covariance.csv and pictures to the folder, and prints the tables.  A minute on one core.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from nrf.commands.parser import CommandLine, finish
from nrf.covariance.report import measure, pictures, report, write_csv
from nrf.system.files import whole_file
from nrf.training.checkpoints import load_trained


def command_line() -> CommandLine:
    parser = CommandLine("nrf covariance", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", help="a .ckpt file of learn_shapes.py (default: none)")
    parser.add_argument("--out", default="covariance", help="folder to write to")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_line()
    return finish(parser.prog, show, parser.parse_args(argv))


@torch.no_grad()
def show(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, and write them with the pictures."""
    out = Path(arguments.out)
    trained = load_trained(arguments.checkpoint) if arguments.checkpoint else None
    out.mkdir(parents=True, exist_ok=True)
    parts = measure(trained)
    text = report(parts)
    with whole_file(out / "covariance.md") as partial:
        partial.write_text(f"# Covariance on the grid\n\n{text}\n")
    write_csv(parts, out / "covariance.csv")
    pictures(parts, out)
    print(f"{text}\n\nsee {out}/covariance.md, covariance.csv, diagram.png, bank-exact.png, ...")
