"""Recordings of event cameras as recordings to train on.

    python3 -m nrf convert recording.raw more.aedat4 data/mine --labels recording.csv more.csv

writes OUT/NAME/0000.dat, ... for every IN, each of --frames frames of --bin_us microseconds in a field of
--resolution pixels, which learn_shapes.py trains on.  IN is a file that nrf track reads (.raw, .dat, .aedat4,
.es, .h5, .hdf5, .npz, .npy, .csv, .txt), or tonic:DATASET or tonic:DATASET=FOLDER where tonic is installed.
Labels are tables of t, x, y and, of several objects, object: positions in pixels of the sensor on the clock
of the recording, straight lines between them.  What is not labelled throughout is left out.  Without
labels, the label of a frame is the centroid of its events: of one object in front of a camera at rest.
"""

import argparse
from collections.abc import Sequence

from nrf.commands.parser import CommandLine, add_view, finish
from nrf.data.cameras import View
from nrf.data.conversion import TONIC, convert, convert_tonic, folders_of
from nrf.data.labels import Labels, read_labels


def command_line() -> CommandLine:
    parser = CommandLine("nrf convert", usage="%(prog)s IN... OUT [flags]", description=__doc__)
    parser.add_argument("recordings", nargs="+", metavar="IN", help="event cameras' files")
    parser.add_argument("out", metavar="OUT", help="folder for a folder of each recording")
    parser.add_argument("--labels", nargs="+", help=".csv or .npz files, one for each IN, in the same order")
    parser.add_argument(
        "--resolution", type=int, nargs=2, default=[300, 300], metavar=("H", "W"), help="field in pixels"
    )
    add_view(parser, frames=128, frames_help="frames of a recording")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_line()
    return finish(parser.prog, run, parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> None:
    """Convert every IN and say what became of it."""
    view = View.of(arguments, tuple(arguments.resolution))
    if min(view.resolution) < 1:
        raise ValueError("--resolution: expected height and width, 1 or more")
    paths = arguments.recordings
    if arguments.labels and (len(arguments.labels) != len(paths) or any(p.startswith(TONIC) for p in paths)):
        raise ValueError(
            f"--labels: {len(arguments.labels)} for {len(paths)} recordings; expected one for each"
        )
    folders = folders_of(paths, arguments.out)
    labels: list[Labels | None] = [read_labels(path, view.time_unit) for path in arguments.labels or ()]
    labels = labels or [None] * len(paths)
    for path, folder, own in zip(paths, folders, labels, strict=True):
        if path.startswith(TONIC):
            print(convert_tonic(path, folder, view))
        else:
            print(convert(path, folder, view, own))
    if not any(labels):
        print("no --labels: the label of each frame is the centroid of its events")
    print(f"train on them: python3 learn_shapes.py {arguments.out} logs")
