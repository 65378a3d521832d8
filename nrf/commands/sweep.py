"""Every line of a config file as one run, here or as a SLURM array:  ./sweep.sh CONFIG DATA LOGS [flags].

    ./sweep.sh config_snn.txt DATA LOGS --seeds 0-4 --jobs 4
    sbatch --array=1-16 --time=24:00:00 sweep.sh config_snn.txt DATA LOGS --seed 1

One line = one run = one folder LOGS/CONFIG-LINE-seedSEED: what learn_shapes.py leaves, its output in
run.log, and finished.json once it has ended well.  A finished line is skipped, an interrupted one
resumed.  Further flags go to learn_shapes.py, after the line's own.  Lines are counted without blank
ones and comments; array task i takes the i-th run, all lines of the first seed first.  SIGUSR1, SIGTERM and
Ctrl-C let each running batch end and save; within SLURM the job is then requeued, unless it was cancelled
or the signal was Ctrl-C.
Exit code: 0 every run finished, 1 not every one, 2 wrong usage, 128 + n stopped by signal n.
"""

import argparse
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from nrf import __version__
from nrf.commands.config_files import config_lines
from nrf.system import slurm
from nrf.system.sweep import (
    QUIET,
    Run,
    Sweep,
)

PACKAGE = Path(__file__).resolve().parents[1]


def seeds(text: str) -> list[int]:
    """The seeds of "3", "0-4" or "0-2,7"."""
    found: list[int] = []
    for part in text.split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(bounds[1]), int(bounds[2] or bounds[1])) if bounds else (1, 0)
        if first > last or last - first > 10_000:
            raise argparse.ArgumentTypeError(f"{text!r}: expected seeds such as 3, 0-4 or 0-2,7")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def natural(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number >= 1")
    return int(text)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        "sweep.sh",
        usage="%(prog)s CONFIG DATA LOGS [flags] [flags for learn_shapes.py]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a run a line: flags of learn_shapes.py")
    parser.add_argument("data", metavar="DATA", help="data set, see nrf generate_data")
    parser.add_argument("logs", type=Path, metavar="LOGS", help="folder for the folders of the runs")
    parser.add_argument(
        "--seeds", "--seed", type=seeds, metavar="S", help="3, 0-4 or 0-2,7; default: the line's, or 0"
    )
    parser.add_argument(
        "--jobs", type=natural, default=1, metavar="N", help="runs at once, each on a GPU of its own"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    args, extra = parser.parse_known_args(argv)
    if args.jobs > 1 and slurm.srun():
        parser.error(f"--jobs {args.jobs}: expected 1 where a SLURM job has several tasks, which share a run")
    return args, extra


def seed_of(words: Sequence[str]) -> str:
    """The seed that a line sets itself, 0 if it sets none."""
    text = " ".join(words)
    return (re.findall(r"(?:^| )--seed[= ](\d+)(?= |$)", text) or ["0"])[-1]


def plan(args: argparse.Namespace, extra: Sequence[str]) -> list[Run]:
    """All runs, those of the first seed first."""
    lines = list(config_lines(args.config))
    if not lines:
        raise ValueError(f"{args.config}: no run in it; expected flags of learn_shapes.py, one run a line")
    runs = []
    for seed in args.seeds or [None]:
        for number, (at, words, problem) in enumerate(lines, start=1):
            name = (
                f"{args.config.stem}-{number:02d}-seed{seed_of([*words, *extra]) if seed is None else seed}"
            )
            flags = [*words, *extra] + ([] if seed is None else [f"--seed={seed}"])
            runs.append(
                Run(name, args.logs / name, flags, problem and f"{args.config}, line {at}: {problem}")
            )
    return runs


def command(run: Run, data: str) -> list[str]:
    """The words of a run's command: a line's words are data, no shell ever sees them."""
    program = [*slurm.srun(), sys.executable, str(PACKAGE), "learn_shapes", data, str(run.folder)]
    return [*program, QUIET, *run.words, "--ckpt_path=last"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args, extra = parse(argv)
    try:
        runs = slurm.own_task(plan(args, extra))
    except OSError as error:
        print(
            f"sweep.sh: {args.config}: {error.strerror}; expected a file such as config_snn.txt",
            file=sys.stderr,
        )
        return 2
    except ValueError as error:
        print(f"sweep.sh: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        for run in runs:
            if run.problem:
                print(f"{run.name}: {run.problem}", file=sys.stderr)
            else:
                print(shlex.join(command(run, args.data)))
        return int(any(run.problem for run in runs))
    folders = [run.folder for run in runs]
    answers: list[str] = []

    def ask(saved: bool = False) -> None:
        """Request a requeue of this job within SLURM, reported once."""
        answer = None if answers else slurm.requeue(folders, saved)
        if answer:
            answers.append(answer)
            print(answer, flush=True)

    in_slurm = slurm.within()
    sweep = Sweep(runs, args.data, args.jobs, command, ask if in_slurm else lambda: None)
    sweep.go()
    if sweep.received and (sweep.stopped or sweep.waiting):
        if in_slurm and sweep.received != signal.SIGINT:  # Ctrl-C in an interactive job is for good
            ask(saved=True)
        else:
            print("stopped; the same command resumes", flush=True)
        return 128 + sweep.received
    return int(bool(sweep.bad))
