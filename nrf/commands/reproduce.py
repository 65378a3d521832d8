"""From nothing to the paper's figure of errors: render, train, evaluate, draw.

    python3 -m nrf reproduce                                    # small: for a laptop
    python3 -m nrf reproduce --size long                        # the same, trained four times as long
    python3 -m nrf reproduce spatial --seeds 0-4 --jobs 2
    python3 -m nrf reproduce --size paper --dry-run             # the full size: its cost, and its commands
    for SLURM

trains four networks (ReLU on single frames and on eight, leaky integrators, leaky integrate-and-fire), each
from the published receptive fields, from exact ones and from uniform noise, with several seeds on two data
sets. OUT holds the data, a folder for each run, and in the end index.html with box plot, learning curves
and tables, and weights/ with a trained network of each kind. The same command resumes an interrupted one;
finished runs are not repeated.

On a SLURM cluster --dry-run prints the sbatch commands; when their jobs are done, the command without it
evaluates and draws what they left.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from nrf.commands import generate_data, learn_shapes, sweep
from nrf.commands.parser import CommandLine, finish
from nrf.config import Config
from nrf.results import cost, reproduction, reproduction_page
from nrf.results.reproduction import DATA_SETS, NEURONS, SIZES, Size
from nrf.system.files import write_whole
from nrf.system.markdown import markdown_table
from nrf.system.sweep import FINISHED, cores, gpus
from nrf.training.checkpoints import pick_device
from nrf.training.persistence import TrainingError

NRF = ("python3", "-m", "nrf")
SECONDS = ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


class Stopped(Exception):
    """A part ended with this exit code, after saying why."""


def command_line() -> CommandLine:
    parser = CommandLine("nrf reproduce", usage="%(prog)s [DATA SET] [flags]", description=__doc__)
    parser.add_argument(
        "data_set", nargs="?", choices=(*DATA_SETS, "both"), default="both", metavar="DATA SET",
        help="spatial: several sizes at one velocity; temporal: several velocities; both",
    )  # fmt: skip
    parser.add_argument(
        "--size", choices=tuple(SIZES), default="small", help="how large, see above; tiny: for tests"
    )
    parser.add_argument(
        "--seeds", type=str | None, help="seeds of training: 3, 0-4 or 0-2,7 (default: 3-5; of long 6-8)"
    )
    parser.add_argument("--jobs", type=int | None, help="runs at once (default: one per GPU, else per core)")
    parser.add_argument("--out", type=str | None, help="folder to write to (default: reproduction-SIZE)")
    parser.add_argument(
        "--device", default="auto", help="to evaluate on: cpu, cuda, ...; auto: the GPU if there is one"
    )
    parser.add_argument("--dry-run", action="store_true", help="print cost and commands, run nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command_line()
    arguments = parser.parse_args(argv)
    try:
        return finish(parser.prog, reproduce, arguments)
    except Stopped as stop:
        return stop.args[0]


def reproduce(arguments: argparse.Namespace) -> None:
    """Everything that the command line asks for."""
    size, out = SIZES[arguments.size], Path(arguments.out or f"reproduction-{arguments.size}")
    data_sets = DATA_SETS if arguments.data_set == "both" else (arguments.data_set,)
    jobs = (len(gpus()) or cores()) if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: expected 1 or more")
    try:
        wanted = arguments.seeds or size.seeds
        seeds = sweep.seeds(wanted)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--seeds {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    config = out / f"{arguments.size}.txt"
    write_whole(config, "".join(f"{line}\n" for line in size.lines().values()).encode())
    sweeps = {
        name: [str(config), str(out / "data" / name), str(out / "logs" / name), "--seeds", wanted]
        for name in data_sets
    }
    print(estimate(size, data_sets, seeds, jobs, pick_device(arguments.device)), flush=True)
    if arguments.dry_run:
        print("\n".join(commands(size, sweeps, len(seeds))))
        return
    for name, words in sweeps.items():
        number, flags = size.recordings[name]
        check(generate_data.main([str(number), words[1], *flags.split(), "--seed", str(size.data_seed)]))
        check(sweep.main([*words, "--jobs", str(jobs)]))
    outcomes = {
        name: reproduction.read(words[1], finished(words[2]), out / "errors" / name, arguments.device)
        for name, words in sweeps.items()
    }
    command = f"nrf reproduce {arguments.data_set} --size {arguments.size} --seeds {wanted}"
    reproduction_page.write(out, size, outcomes, command)
    print("\n" + markdown_table(*reproduction.table(outcomes, not size.reduced)) + "\n")
    print(markdown_table(reproduction_page.VERDICTS, reproduction_page.verdict_rows(outcomes)))
    print(f"\nsee {out}/index.html; trained networks: {out}/weights")


def check(code: int) -> None:
    if code:
        raise Stopped(code)


def finished(logs: str | Path) -> list[Path]:
    """Folders of the runs that ended well. TrainingError if there are none."""
    folders = sorted(path.parent for path in Path(logs).glob(f"*/{FINISHED}"))
    if not folders:
        raise TrainingError(f"{logs}: no finished run; expected folders with {FINISHED}")
    return folders


def commands(size: Size, sweeps: Mapping[str, Sequence[str]], n_seeds: int) -> list[str]:
    """What to call on a SLURM cluster, line by line."""
    lines = []
    for name, words in sweeps.items():
        number, flags = size.recordings[name]
        n = len(size.lines()) * n_seeds
        lines += [
            shlex.join(
                [*NRF, "generate_data", str(number), words[1], *flags.split(), "--seed", str(size.data_seed)]
            ),
            shlex.join(["sbatch", f"--array=1-{n}", "--gres=gpu:1", "--time=24:00:00", "sweep.sh", *words]),
        ]
    return lines


def estimate(
    size: Size, data_sets: Sequence[str], seeds: Sequence[int], jobs: int, device: torch.device
) -> str:
    """What the runs will cost, in words, from a step of each network measured on `device`."""
    rows, total = [], 0.0
    frames, resolution, n_classes, conditions = {}, (300, 300), 3, {}
    for name in data_sets:
        number, flags = size.recordings[name]
        parsed = generate_data.parse([str(number), "OUT", *flags.split()])
        frames[name], resolution, n_classes = parsed.frames, tuple(parsed.resolution), len(parsed.shapes)
        conditions[name] = len(parsed.scales) * len(parsed.velocities) * len(parsed.event_densities)
    lines = size.lines()
    for network in NEURONS:
        words = next(flags for (other, _), flags in lines.items() if other == network)
        settings = learn_shapes.parse(["DATA", "LOGS", *words.split()])
        fields = {f.name: settings[f.name] for f in dataclasses.fields(Config)}
        config = Config(**fields | {"resolution": resolution, "n_classes": n_classes})
        step_s = cost.step_seconds(config, device)
        run_s = sum(
            cost.run_seconds(
                config, size.recordings[name][0] * conditions[name], frames[name], settings["max_epochs"],
                settings["limit_train_batches"], step_s,
            )
            for name in data_sets
        )  # fmt: skip
        runs = len(seeds) * sum(other == network for other, _ in lines)
        total += runs * run_s
        rows.append([network, f"{step_s:.2g}", runs * len(data_sets), in_words(run_s / len(data_sets))])
    table = markdown_table(["network", "s a step", "runs", "each about"], rows)
    return f"{table}\nabout {in_words(total / jobs)} in all with {jobs} at a time, as measured on {device}"


def in_words(seconds: float) -> str:
    """A duration with its unit."""
    least, unit = next((pair for pair in SECONDS if seconds >= 1.5 * pair[0]), SECONDS[-1])
    return f"{seconds / least:.0f} {unit}"
