"""Render data sets of moving shapes as event recordings (GERD `.dat` files).

    python3 -m nrf generate_data 500 data/spatial --scales 10 20 40 80 --velocities 0.2 --generator published

writes N recordings for every velocity, event density and size, each condition into a folder of its own:

    OUT/v0.20-p1.00-s10.0_1000/0.dat ... 499.dat

named by velocity, event density, size, and whether shapes translate, change size, rotate, shear.
Random size is s0.0 (and s1.0_.1.. when it changes), as GERD names it. An interrupted command resumes where
it stopped; a folder keeps what it was rendered with in parameters.json and refuses anything else.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from nrf.commands.parser import CommandLine
from nrf.data.generation import (
    RenderError,
    _missing,
    _write_description,
    plan,
    render_all,
)
from nrf.gerd.render import GENERATORS, SHAPES, RenderParameters

DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(RenderParameters)}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandLine("nrf generate_data", usage="%(prog)s N OUT [flags]", description=__doc__)
    add = parser.add_argument
    add("n", type=_natural, metavar="N", help="recordings per condition")
    add("out", type=Path, metavar="OUT", help="folder for the data set; made if missing")
    add(
        "--generator",
        choices=GENERATORS,
        default=DEFAULTS["generator"],
        help="clean: true sizes, speeds in pixels a frame, noise once, labels on the centroid; "
        "gerd-0.5.1: as that release; published: as the paper's version, eighths of a pixel, drifting shear",
    )
    size, velocity, density = ([DEFAULTS[name]] for name in ("scale", "velocity", "event_density"))
    text = "sizes in pixels; random: drawn per recording; changing: drawn, then growing and shrinking"
    add("--scales", type=_size, nargs="+", default=size, metavar="SIZE", help=text)
    text = "along each axis, pixels a frame"
    add("--velocities", type=float, nargs="+", default=velocity, metavar="V", help=text)
    text = "part of a shape's events that survives, (0, 1]"
    add("--event_densities", type=float, nargs="+", default=density, metavar="P", help=text)
    text = "noise events per pixel and frame; once for clean, once per shape otherwise"
    add("--bg_density", type=float, default=DEFAULTS["bg_density"], metavar="P", help=text)
    text = "folder with recordings (.dat, same resolution, at least as long) of which one, at random, lies "
    text += "under every recording"
    add("--bg_files", type=Path, default=None, metavar="DIR", help=text)
    field = list(DEFAULTS["resolution"])
    add("--resolution", type=_natural, nargs=2, default=field, metavar=("H", "W"), help="pixels")
    add("--frames", type=_natural, default=DEFAULTS["length"], metavar="T", help="frames per recording")
    text = "one label each, in this order"
    add("--shapes", nargs="+", choices=SHAPES, default=list(DEFAULTS["shapes"]), help=text)
    add("--translation", type=int, choices=(0, 1), default=1, help="shapes move")
    add("--rotation", type=int, choices=(0, 1), default=0, help="shapes rotate")
    add("--shearing", type=int, choices=(0, 1), default=0, help="shapes shear")
    text = "only every N-th recording, from the I-th on; all N shards are the data set (default: 1/1)"
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help=text)
    add("--seed", type=_whole, default=0, help="same seed, same data, whatever the number of workers")
    add("--workers", type=_natural, default=_cores(), help="processes; default: all cores, here %(default)s")
    return parser.parse_args(arguments)


def _natural(text: object) -> int:  # jsonargparse calls these with what they returned, too
    text = str(text)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number >= 1")
    return int(text)


def _whole(text: object) -> int:
    text = str(text)
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number >= 0")
    return int(text)


def _shard(text: str | tuple[int, int]) -> tuple[int, int]:
    if isinstance(text, tuple):
        return text
    first, _, last = text.partition("/")
    i, n = _natural(first), _natural(last)
    if i > n:
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N, I from 1 to N")
    return i, n


def _size(text: str | float) -> str | float:
    if text in ("random", "changing"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size in pixels, random or changing") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a recording failed, 2 wrong usage, 130 stopped by Ctrl-C."""
    args = parse(arguments)
    try:
        folders, backgrounds = plan(args)
    except ValueError as error:
        print(f"nrf generate_data: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"nrf generate_data: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    start = time.monotonic()
    try:
        for folder in folders:
            folder.path.mkdir(parents=True, exist_ok=True)
            _write_description(folder)
        first, step = args.shard
        mine = list(itertools.product(folders, range(args.n)))[first - 1 :: step]
        jobs = _missing(mine)
        if jobs:
            render_all(jobs, backgrounds, min(args.workers, len(jobs)))
    except (OSError, RenderError) as error:
        print(f"nrf generate_data: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nrf generate_data: stopped; the same command resumes from here", file=sys.stderr)
        return 130
    there = len(mine) - len(jobs)
    print(
        f"{args.out}: {len(jobs)} recordings rendered in {time.monotonic() - start:.1f} s"
        + (f", {there} were there" if there else "")
    )
    return 0
