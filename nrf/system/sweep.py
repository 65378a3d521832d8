"""Runs of commands, several at once, each in a locked folder, logged and stopped by signals."""

import contextlib
import fcntl
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from nrf.system import slurm
from nrf.system.files import write_whole
from nrf.system.processes import follow_parent

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
FINISHED = "finished.json"
POLL_S = 0.1
QUIET = "--enable_progress_bar=false"  # before a line's words, which may turn it on


class Run(NamedTuple):
    name: str  # of its folder: config file, line and seed
    folder: Path
    words: list[str]  # of the line and of the command line, as they go to learn_shapes.py
    problem: str | None  # of a line that cannot be read


class Job(NamedTuple):
    run: Run
    process: subprocess.Popen
    lock: int  # file descriptor; also the process holds it
    started: float


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, one each."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, line in enumerate(listing.splitlines()) if line.startswith("GPU")]


def environment(slot: int, jobs: int) -> dict[str, str] | None:
    """Of the run in a slot: with several at once each has its GPU, and its share of the processor's cores."""
    if jobs == 1:
        return None
    variables = {"OMP_NUM_THREADS": str(max(cores() // jobs, 1))} | dict(os.environ)
    found = gpus()
    if found:
        variables["CUDA_VISIBLE_DEVICES"] = found[slot % len(found)]
    return variables


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 4096, 0))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


class Sweep:
    """Runs at most `jobs` at once; `bad`: how many did not end well, `stopped`: how many a signal ended.

    on_signal() is called once, as soon as a signal has been passed on.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        data: str,
        jobs: int,
        command: Callable[[Run, str], list[str]],
        on_signal: Callable[[], object],
    ) -> None:
        self.waiting, self.data, self.jobs = list(runs), data, jobs
        self.command, self.on_signal = command, on_signal
        self.running: dict[int, Job] = {}  # by slot
        self.spent_s: list[float] = []  # of the runs that finished here
        self.received: int | None = None  # the signal, and what was passed on of it
        self.passed_on: int | None = None
        self.bad = self.stopped = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def go(self) -> None:
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
                self.pass_on(self.received)

    def pass_on(self, received: int) -> None:
        # srun would kill its tasks on SIGTERM, and wait for a second one on SIGINT
        self.passed_on = signal.SIGUSR1 if slurm.srun() else received
        for job in self.running.values():
            print(f"{job.run.name}: {signal.Signals(received).name} passed on", flush=True)
            job.process.send_signal(self.passed_on)
        self.on_signal()

    def start(self, slot: int, run: Run) -> None:
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
        if reason is not None or lock is None:
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
        words = self.command(run, self.data)
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

    def check(self, run: Run) -> str | None:
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

    def end(self, job: Job) -> None:
        code, spent = job.process.returncode, time.monotonic() - job.started
        try:
            said = last_line(job.run.folder / "run.log")
            if code == 0 and not has_trained(job.run.folder):
                code, said = 1, f"it ended without a trained network: {said}"
            if code == 0:
                write_marker(job.run, self.data, spent)
                self.spent_s.append(spent)
                print(f"{job.run.name}: finished in {spent:.0f} s; {said}{self.left()}", flush=True)
        except OSError as error:
            code, said = 1, f"{error.strerror}: {error.filename}"
        os.close(job.lock)
        if code == 0:
            return
        if code == 128 + signal.SIGTERM and slurm.srun():
            self.received = self.received or signal.SIGTERM  # preemption with a grace time signals tasks only
        ours = {number for number in (self.received, self.passed_on) if number}
        if code in {-n for n in ours} | {128 + n for n in ours}:
            self.stopped += 1
            print(f"{job.run.name}: stopped after {spent:.0f} s", flush=True)
            return
        self.bad += 1
        ended = (
            f"exit code {job.process.returncode}" if code > 0 else f"ended by {signal.Signals(-code).name}"
        )
        print(f"{job.run.name}: failed ({ended}): {said}", file=sys.stderr, flush=True)

    def left(self) -> str:
        """How many runs are left, and for about how long at the mean of those before; "" for none."""
        n = len(self.waiting) + len(self.running)
        minutes = n * sum(self.spent_s) / len(self.spent_s) / min(self.jobs, max(n, 1)) / 60
        return f"; {n} left, about {max(minutes, 1):.0f} min" if n else ""


def has_trained(folder: Path) -> bool:
    """Whether a run in this folder has finished, by its own record: `--help` in a line also exits with 0."""
    for path in folder.glob("*/version_*/run.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            record = json.loads(path.read_text())
            if isinstance(record, dict) and record.get("state") == "finished":
                return True
    return False


def write_marker(run: Run, data: str, seconds: float) -> None:
    """finished.json, written atomically: the words of the run, and how long its last part took."""
    content = {
        "data": data,
        "flags": run.words,
        "seconds": round(seconds, 1),
        "at": time.strftime("%F %T %z"),
    }
    write_whole(run.folder / FINISHED, (json.dumps(content, indent=1) + "\n").encode())
