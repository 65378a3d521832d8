"""Train the paper's network to track shapes:  python3 learn_shapes.py DATA LOGS [flags].

Every setting is a field of `config.Config`; every flag of Lightning's Trainer is accepted as it is.
"""

import signal
import sys
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from nrf.commands.parser import CommandLine, add_settings
from nrf.data.recordings import DataError
from nrf.system.text import one_line
from nrf.training.callbacks import explain
from nrf.training.run import train
from nrf.training.stopping import Stopped
from nrf.training.trainer import writes


def command_line() -> CommandLine:
    usage, description = "%(prog)s DATA LOGS [flags]", __doc__.split(":")[0]
    parser = CommandLine("learn_shapes.py", usage=usage, description=description)
    parser.add_argument("data_root", help="folder of folders of recordings, as nrf generate_data makes them")
    parser.add_argument("log_root", help="folder for TensorBoard logs, checkpoints and CSV files")
    parser.add_argument("--config", action="config", help="YAML file of flags")
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        help="resume from this checkpoint; last: where the newest run of these settings stopped, if any",
    )
    add_settings(parser)
    parser.add_class_arguments(pl.Trainer, instantiate=False)
    parser.set_defaults(max_epochs=50)
    return parser


def parse(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line as a dict of flags. SystemExit 2 after one line for a bad one."""
    parser = command_line()
    arguments = parser.parse_args(argv)
    try:
        return vars(parser.instantiate_classes(arguments))
    except Exception as error:  # noqa: BLE001  a class path runs foreign code
        parser.error(f"a class path among the flags: {type(error).__name__}: {error}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    try:
        train(arguments)
    except (SIGTERMException, Stopped) as stop:  # the first before training starts
        number = stop.args[0] if isinstance(stop, Stopped) else signal.SIGTERM
        if rank_zero_only.rank:  # the first process speaks for all, and Lightning would kill it for our code
            return 0
        kept = arguments["enable_checkpointing"] is not False and writes(arguments)
        rest = "to resume: the same command with --ckpt_path last" if kept else "no checkpoint was asked for"
        print(f"stopped by {signal.Signals(number).name}; {rest}")
        return 128 + number
    except SystemExit as end:  # Lightning's answer to a second Ctrl-C
        if end.code != 1:
            raise
        print("learn_shapes.py: stopped at once; what followed the last checkpoint is lost", file=sys.stderr)
        return 128 + signal.SIGINT
    except KeyboardInterrupt:
        if rank_zero_only.rank == 0:
            print("learn_shapes.py: stopped before training", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ImportError, OSError, RuntimeError, ValueError, MisconfigurationException) as error:
        message = explain(error, arguments)
        if message is None:
            raise
        print(f"learn_shapes.py: {one_line(message)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) and not isinstance(error, DataError) else 1
    return 0
