"""A trained network for other programs: ONNX, PyTorch's exported programs, or NIR for neuromorphic hardware.

    python3 -m nrf export CHECKPOINT --to onnx --stream

writes a window, --frames frames at once from rest, or with --stream one frame with the state as further
inputs and outputs, zeros at rest.  Outputs are positions in pixels and rectified heat maps.  Before it is
written it is run on random events by onnxruntime, by torch.export.load or by nirtorch, and compared with
the network; the largest difference is printed.  NIR holds the spiking layers of net lif; the rest is named.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nrf.commands.parser import CommandLine, finish
from nrf.results.export import FORMATS, export
from nrf.training.checkpoints import load_trained


def command_line() -> CommandLine:
    parser = CommandLine("nrf export", usage="%(prog)s CHECKPOINT --to FORMAT [flags]", description=__doc__)
    parser.add_argument("checkpoint", help="a .ckpt file of learn_shapes.py")
    parser.add_argument("--to", choices=tuple(FORMATS), required=True, help="format")
    parser.add_argument("--out", type=str | None, help="file to write (default: network.onnx, .pt2, .nir)")
    parser.add_argument("--stream", action="store_true", help="one frame at a time, the state in and out")
    parser.add_argument("--frames", type=int | None, help="frames of a window (default: as in training)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_line()
    return finish(parser.prog, run, parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> None:
    """Export, and say what was written."""
    if arguments.frames is not None and arguments.frames < 1:
        raise ValueError(f"--frames {arguments.frames}: expected 1 or more")
    if arguments.frames and arguments.stream:
        raise ValueError("--frames: a stream takes one frame at a time; expected --frames or --stream")
    path = Path(arguments.out or f"network.{arguments.to}")
    done = export(load_trained(arguments.checkpoint), arguments.to, path, arguments.stream, arguments.frames)
    print(f"{path}: {done.difference}")
    for title, shapes in (("in", done.inputs), ("out", done.outputs)):
        print(f"{title:>4}: " + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()))
    if done.left_out:
        print("left to whoever runs it, not in the file: " + "; ".join(done.left_out))
