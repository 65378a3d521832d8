"""Every line of a config file as one run, here or as a SLURM array:  ./sweep.sh CONFIG DATA LOGS [flags].

    ./sweep.sh config_snn.txt DATA LOGS --seeds 0-4 --jobs 4
    sbatch --array=1-16 --time=24:00:00 sweep.sh config_snn.txt DATA LOGS --seed 1

One line = one run = one folder LOGS/CONFIG-LINE-seedSEED: what learn_shapes.py leaves, its output in
run.log, and finished.json once it has ended well.  A finished line is passed over, an interrupted one
continues.  Further flags go to learn_shapes.py, behind the line's own.  Lines are counted without blank
ones and comments; array task i takes the i-th run, all lines of the first seed first.  SIGUSR1, SIGTERM and
Ctrl-C let each running batch end and save; within SLURM the job is then requeued, unless it was cancelled
or the signal was Ctrl-C.
Exit code: 0 every run finished, 1 not every one, 2 wrong usage, 128 + n stopped by signal n.
"""

import argparse
import fcntl
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import slurm
from config import config_lines, version
from files import write_whole
from processes import follow_parent

HERE = Path(__file__).resolve().parent
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
FINISHED = "finished.json"
POLL_S = 0.1
QUIET = "--enable_progress_bar=false"  # before a line's words, which may turn it on


class Run(NamedTuple):
    name: str  # of its folder: config file, line and seed
    folder: Path
    words: list  # of the line and of the command line, as they go to learn_shapes.py
    problem: str | None  # of a line that cannot be read


class Job(NamedTuple):
    run: Run
    process: Any  # subprocess.Popen
    lock: int  # file descriptor; also the process holds it
    started: float


def seeds(text):
    """The seeds of "3", "0-4" or "0-2,7"."""
    found = []
    for part in text.split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(bounds[1]), int(bounds[2] or bounds[1])) if bounds else (1, 0)
        if first > last or last - first > 10_000:
            raise argparse.ArgumentTypeError(f"{text!r}: want seeds such as 3, 0-4 or 0-2,7")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def natural(text):
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: want a whole number >= 1")
    return int(text)


def parse(argv):
    parser = argparse.ArgumentParser(
        "sweep.sh",
        usage="%(prog)s CONFIG DATA LOGS [flags] [flags for learn_shapes.py]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a run a line: flags of learn_shapes.py")
    parser.add_argument("data", metavar="DATA", help="data set, see generate_data.py")
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
        parser.error(f"--jobs {args.jobs}: want 1 where a SLURM job has several tasks, which share a run")
    return args, extra


def seed_of(words):
    """The seed that a line sets itself, 0 if it sets none."""
    text = " ".join(words)
    return (re.findall(r"(?:^| )--seed[= ](\d+)(?= |$)", text) or ["0"])[-1]


def plan(args, extra):
    """All runs, those of the first seed first."""
    lines = list(config_lines(args.config))
    if not lines:
        raise ValueError(f"{args.config}: no run in it; want flags of learn_shapes.py, one run a line")
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


def command(run, data):
    """The words of a run's command: a line's words are data, no shell ever sees them."""
    program = [*slurm.srun(), sys.executable, str(HERE / "learn_shapes.py"), data, str(run.folder)]
    return [*program, QUIET, *run.words, "--ckpt_path=last"]


def gpus():
    """What CUDA_VISIBLE_DEVICES may name, one each."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, line in enumerate(listing.splitlines()) if line.startswith("GPU")]


def environment(slot, jobs):
    """Of the run in a slot: with several at once each has its GPU, and its share of the processor's cores."""
    if jobs == 1:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    variables = {"OMP_NUM_THREADS": str(max(cores // jobs, 1))} | dict(os.environ)
    found = gpus()
    if found:
        variables["CUDA_VISIBLE_DEVICES"] = found[slot % len(found)]
    return variables


def last_line(path):
    """The last line of a log that says something."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 4096, 0))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


class Sweep:
    """Runs at most `jobs` at once; `bad`: how many did not end well, `stopped`: how many a signal ended.

    on_signal() is called once, as soon as a signal has been passed on.
    """

    def __init__(self, runs, data, jobs, on_signal):
        self.waiting, self.data, self.jobs, self.on_signal = list(runs), data, jobs, on_signal
        self.running = {}  # slot: Job
        self.received, self.passed_on, self.bad, self.stopped = None, None, 0, 0

    def receive(self, number, frame):
        self.received = self.received or number

    def go(self):
        for number in SIGNALS:
            signal.signal(number, self.receive)
        while self.running or (self.waiting and not self.received):
            free = [slot for slot in range(self.jobs) if slot not in self.running]
            if free and self.waiting and not self.received:
                self.start(free[0], self.waiting.pop(0))
            else:
                time.sleep(POLL_S)
            for slot, job in list(self.running.items()):
                if job.process.poll() is not None:
                    self.end(self.running.pop(slot))
            if self.received and not self.passed_on:
                self.pass_on()

    def pass_on(self):
        # srun would kill its tasks on SIGTERM, and wait for a second one on SIGINT
        self.passed_on = signal.SIGUSR1 if slurm.srun() else self.received
        for job in self.running.values():
            print(f"{job.run.name}: {signal.Signals(self.received).name} passed on", flush=True)
            job.process.send_signal(self.passed_on)
        self.on_signal()

    def start(self, slot, run):
        reason, lock = run.problem, None
        try:
            reason = reason or self.check(run)
            if reason is None:
                run.folder.mkdir(parents=True, exist_ok=True)
                lock = os.open(run.folder / ".lock", os.O_CREAT | os.O_RDWR)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                reason = self.check(run)  # it may have finished meanwhile
        except BlockingIOError:
            reason = "another process runs it"
        except OSError as error:
            reason = f"{error.strerror}: {error.filename or run.folder}"
        if reason is not None:
            if lock is not None:
                os.close(lock)
            self.bad += reason != "finished before"
            print(
                f"{run.name}: {reason}",
                file=sys.stderr if reason != "finished before" else sys.stdout,
                flush=True,
            )
            return
        print(f"{run.name}: running; its output is in {run.folder / 'run.log'}", flush=True)
        words = command(run, self.data)
        with (run.folder / "run.log").open("a") as log:
            print(f"$ {shlex.join(words)}", file=log, flush=True)
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(slot, self.jobs),
                pass_fds=[lock],  # held for as long as the run lives, even if this process is killed
                start_new_session=True,  # Ctrl-C comes from here, once
                preexec_fn=functools.partial(follow_parent, signal.SIGTERM),
            )
        self.running[slot] = Job(run, process, lock, time.monotonic())

    def check(self, run):
        """Why a run need not, or must not, start; None if it shall."""
        marker = run.folder / FINISHED
        if not marker.exists():
            return None
        try:
            kept = json.loads(marker.read_text())
            before, data = kept["flags"], kept["data"]
        except (ValueError, KeyError, TypeError):
            return f"{marker} is damaged: delete it, and the run is looked at again"
        if before != run.words or data != self.data:
            other = shlex.join([data, *before])
            return f"finished before with other words ({other}): take another LOGS, or delete {run.folder}"
        return "finished before"

    def end(self, job):
        code, spent = job.process.returncode, time.monotonic() - job.started
        try:
            said = last_line(job.run.folder / "run.log")
            if code == 0:
                write_marker(job.run, self.data, spent)
                print(f"{job.run.name}: finished in {spent:.0f} s; {said}", flush=True)
        except OSError as error:
            code, said = 1, f"{error.strerror}: {error.filename}"
        os.close(job.lock)
        if code == 0:
            return
        if code == 128 + signal.SIGTERM and slurm.srun():
            self.received = self.received or signal.SIGTERM  # preemption with a grace time tells tasks only
        ours = {self.received, self.passed_on} - {None}
        if code in {-n for n in ours} | {128 + n for n in ours}:
            self.stopped += 1
            print(f"{job.run.name}: stopped after {spent:.0f} s", flush=True)
            return
        self.bad += 1
        ended = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
        print(f"{job.run.name}: failed ({ended}): {said}", file=sys.stderr, flush=True)


def write_marker(run, data, seconds):
    """finished.json, whole or not at all: the words of the run, and how long its last part took."""
    content = {
        "data": data,
        "flags": run.words,
        "seconds": round(seconds, 1),
        "at": time.strftime("%F %T %z"),
    }
    write_whole(run.folder / FINISHED, (json.dumps(content, indent=1) + "\n").encode())


def main(argv=None):
    """The command; returns its exit code."""
    args, extra = parse(argv)
    try:
        runs = slurm.own_task(plan(args, extra))
    except OSError as error:
        print(
            f"sweep.sh: {args.config}: {error.strerror}; want a file such as config_snn.txt", file=sys.stderr
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
    folders, told = [run.folder for run in runs], []

    def ask(saved=False):
        """For another start of this job within SLURM, told once."""
        answer = None if told else slurm.requeue(folders, saved)
        if answer:
            told.append(answer)
            print(answer, flush=True)

    in_slurm = slurm.within()
    sweep = Sweep(runs, args.data, args.jobs, ask if in_slurm else lambda: None)
    sweep.go()
    if sweep.received and (sweep.stopped or sweep.waiting):
        if in_slurm and sweep.received != signal.SIGINT:  # Ctrl-C in an interactive job is for good
            ask(saved=True)
        else:
            print("stopped; the same command goes on", flush=True)
        return 128 + sweep.received
    return int(bool(sweep.bad))


if __name__ == "__main__":
    sys.exit(main())
