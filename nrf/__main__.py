"""Every command:  python3 -m nrf COMMAND [arguments];  installed,  nrf COMMAND [arguments];  from anywhere,
python3 path/to/nrf COMMAND [arguments]."""

import difflib
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
if Path(sys.path[0]) == HERE:  # started as a folder: its parent is what holds the package
    sys.path[0] = str(HERE.parent)

from nrf import __version__  # noqa: E402
from nrf.system.text import open_output  # noqa: E402
from nrf.system.threads import wait_briefly  # noqa: E402

wait_briefly()

COMMANDS = {
    "generate_data": "render recordings of moving shapes",
    "convert": "make recordings to train on of event cameras' files",
    "learn_shapes": "train a network to track shapes",
    "sweep": "train every line of a config file, here or on a SLURM cluster",
    "evaluate": "errors of trained networks in pixels",
    "track": "follow shapes through one recording, frame by frame",
    "export": "a trained network as ONNX, PyTorch program or NIR graph",
    "report": "all runs under a folder of logs on one page",
    "reproduce": "the paper's figure of errors, from nothing",
    "covariance": "measure how covariant the receptive fields are on the grid",
    "demo": "render, train, evaluate and film, in minutes",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns its exit code."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        lines = (f"  {command:<15}{what}" for command, what in COMMANDS.items())
        print("usage: nrf COMMAND [arguments]\n\n" + "\n".join(lines) + "\n\nnrf COMMAND --help says more.")
        return 0
    if name == "--version":
        print(f"nrf {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
        print(f"nrf: unknown command {name!r}; {hint}", file=sys.stderr)
        return 2
    return importlib.import_module(f"nrf.commands.{name}").main(arguments)


def leave(command: Callable[[], int] = main) -> None:
    """Run a command as a program and exit with its code: all is done and saved then, and no signal shall end
    it otherwise."""
    open_output()
    code = command()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    leave()
