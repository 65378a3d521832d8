"""The command lines of all commands: one style of help, one version, errors in one line."""

import argparse
import dataclasses
import difflib
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

import jsonargparse
import shtab
import yaml

from nrf import __version__
from nrf.config import TABLES, Config
from nrf.data.cameras import FITS
from nrf.data.event_files import UNITS_US
from nrf.data.recordings import DataError
from nrf.system.plain import plain_yaml
from nrf.system.text import one_line, printable
from nrf.training.errors import TrainingError

LONGEST = 800  # characters of an error, which may repeat what somebody wrote
LOAD_YAML = jsonargparse.get_loader("yaml")
jsonargparse.set_loader("yaml", lambda text: plain_yaml(text, LOAD_YAML), exceptions=(yaml.YAMLError,))


def zero_or_one(text: object) -> int:
    """0 or 1, also written False or True; ValueError for anything else."""
    values = {"0": 0, "1": 1, "false": 0, "true": 1}
    if str(text).lower() not in values:
        raise ValueError
    return values[str(text).lower()]


class Help(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Short names of values, the default after each flag, indented lines of a description as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip().split("\n\n")
        return "\n\n".join(part if part[0] == " " else textwrap.fill(part, width) for part in parts)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.dest.rsplit("_", 1)[-1].upper()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`|``", r"\1", action.help or "")  # Lightning's marks
        default, unsaid = action.default, (None, argparse.SUPPRESS, "==SUPPRESS==")
        if not action.option_strings or "default:" in text.lower() or default is False or default in unsaid:
            return text
        default = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
        return f"{text} (default: {default})"


class CommandLine(jsonargparse.ArgumentParser):
    """What all commands have in common: --help in one style, --version, --print-completion, and errors in one
    line (what, and what was expected) with exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        named = bool(args)  # else one for a class's arguments, which may have a version of their own
        version = {"version": __version__} if named else {}
        super().__init__(*args, **{"formatter_class": Help} | version | kwargs)
        shtab.add_argument_to(self, help="print what completes this command's flags in a shell")
        self._option_string_actions["--print-completion"].default = argparse.SUPPRESS  # no flag of a run

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            self.error(f"--config: not a text ({error}); expected a YAML file of flags")

    def error(self, message: object, ex: BaseException | None = None) -> NoReturn:
        text = " ".join(str(message).split())
        text = re.sub(r'Parser key "(\S+)":', r"--\1:", text).replace("argument --", "--")
        text = text.replace("Problems parsing config:", "--config:")
        text = text.replace("invalid zero_or_one value:", "expected 0 or 1, not")
        built = re.search(r"class_path='([^']+)'", text)
        lines = re.sub(r"Problem with given class_path '.+':\s*", "", str(message))
        reasons = [why for why in re.findall(r"^ *- (.+)$", lines, re.M) if "Expected" not in why]
        if built and reasons:
            text = f"{built[1]}: {reasons[0]}"
        elif wanted := re.findall(r"Expected an? <class '(\w+)'>", text):
            value = re.search(r"(?:Got|Given) value: (.*)$", text)
            flag = text.split(":")[0]
            text = (
                f"{flag}: expected {' or '.join(dict.fromkeys(wanted))}, not {value[1] if value else 'this'}"
            )
        if unknown := re.match(r"[Uu]nrecognized arguments: (\S+)", text):
            near = difflib.get_close_matches(unknown[1].split("=")[0], self._option_string_actions, 1)
            what = "unknown flag" if unknown[1].startswith("-") else "one argument too many:"
            text = f"{what} {unknown[1]}; " + (f"did you mean {near[0]}?" if near else "see --help")
        text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
        print(f"{self.prog}: {printable(text)}", file=sys.stderr)
        raise SystemExit(2)


def add_settings(parser: CommandLine) -> None:
    """A flag for every field of `Config`."""
    import nrf.training.module  # noqa: F401, its tables are the choices; it takes seconds to load

    for setting in dataclasses.fields(Config):
        meta = setting.metadata
        kwargs = {"type": setting.type, "default": setting.default, "help": meta["help"]}
        if setting.type == tuple[int, int]:
            kwargs.update(type=int, nargs=2, metavar=("H", "W"))
        if meta["from_data"]:
            kwargs.update(default=None, help=f"{meta['help']} (default: as in the recordings)")
        if "choices" in meta:
            kwargs.update(type=zero_or_one, metavar="{0,1}")
        elif setting.name in TABLES:
            kwargs.update(choices=tuple(TABLES[setting.name]))
        parser.add_argument(f"--{setting.name}", **kwargs)


def add_view(parser: CommandLine, frames: int, frames_help: str) -> None:
    """The flags of a `View` of an event camera's file."""
    parser.add_argument("--frames", type=int, default=frames, help=frames_help)
    parser.add_argument("--start", type=int, default=0, help="frames to skip, from the first event on")
    parser.add_argument("--bin_us", type=int, default=1000, help="microseconds of a frame")
    parser.add_argument(
        "--sensor", type=int, nargs=2, metavar=("H", "W"), help="the camera's pixels, if its file lacks them"
    )
    parser.add_argument(
        "--fit", choices=FITS, default=FITS[0], help="how a sensor of another shape is laid into the field"
    )
    parser.add_argument("--columns", nargs="+", help="columns of a table without names, e.g. x y t p")
    parser.add_argument("--time_unit", choices=tuple(UNITS_US), help="unit of a table's times (default: us)")


def finish(prog: str, command: Callable[..., object], *arguments: Any) -> int:
    """The exit code of a command: 0 if command(*arguments) returns, else what one line on stderr explains:
    1 for a failure, 2 for wrong usage (ValueError), 130 for Ctrl-C."""
    try:
        command(*arguments)
    except (DataError, OSError, TrainingError, ValueError) as error:
        print(f"{prog}: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) and not isinstance(error, DataError) else 1
    except KeyboardInterrupt:
        print(f"{prog}: stopped", file=sys.stderr)
        return 130
    return 0
