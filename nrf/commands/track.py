"""Follow shapes through one recording, frame by frame, as a camera would deliver it.

    python3 -m nrf track logs/*/version_0/checkpoints/last.ckpt data/spatial/v0.20-p1.00-s20.0_1000/0.dat

The network's state is carried from frame to frame and nothing later is looked at.  A film shows the events,
the heat maps, the true positions and the predicted ones, each with a trail.  Recordings are GERD's .dat
files; those of event cameras (.raw, .dat, .aedat4, .es, .h5, .hdf5, .npz, .npy, .csv, .txt) are cut into
frames of --bin_us microseconds and laid into the network's field.
"""

from collections.abc import Sequence

from nrf.commands.parser import CommandLine, add_view, finish
from nrf.results.track import run


def command_line() -> CommandLine:
    parser = CommandLine("nrf track", usage="%(prog)s CHECKPOINT RECORDING [flags]", description=__doc__)
    parser.add_argument("checkpoint", help=".ckpt file of learn_shapes.py")
    parser.add_argument("recording", help=".dat file of nrf generate_data, or an event camera's file")
    parser.add_argument(
        "--out", type=str | None, help="film to write, .gif or .mp4 (default: track.gif, none with --live)"
    )
    parser.add_argument("--live", action="store_true", help="draw in the terminal while tracking")
    add_view(parser, frames=1000, frames_help="frames to track, at most")
    parser.add_argument("--fps", type=int, default=20, help="frames of the film per second, 1 to 50")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: the GPU if there is one"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_line()
    return finish(parser.prog, run, parser.parse_args(argv))
