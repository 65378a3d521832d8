"""sweep.sh on a real SLURM: tasks at their limit, cancelled, killed, preempted; every line finishes once.

Two to three minutes, and it needs root, slurm-wlm and munge, so it runs only where SLURM_TEST is set:
`make slurm-test`.  Tasks that shall be disturbed are held (SIGSTOP) behind their first epoch, so that no
speed of the machine matters.
"""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_learn_shapes import TINY, render

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "tests" / "slurm.sh"
EPOCHS = 12
LONG = f"--batch_size=2 --max_epochs={EPOCHS} --lr=0.02"
SMOOTH = f"--max_epochs={EPOCHS} --lr=0.001 --dropout=0"
LINES = f"""# seven runs, six of them disturbed
--batch_size=2 --max_epochs=1 --lr=0.01

{LONG}
{LONG}
{LONG}
{LONG}
{SMOOTH} --batch_size=1 --devices=1 --num_nodes=2 --strategy=ddp
{SMOOTH} --batch_size=2
"""
FLAGS = [flag for flag in TINY if not flag.startswith(("--max_epochs", "--batch_size"))]
pytestmark = pytest.mark.skipif(
    not os.environ.get("SLURM_TEST") or not shutil.which("slurmctld") or os.geteuid() != 0,
    reason="needs SLURM_TEST=1 (see make slurm-test), root, and Debian's packages slurm-wlm and munge",
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A SLURM of our own; its environment."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SLURM, "start", folder], check=True)
    yield os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",  # both nodes are this machine, under names that nobody resolves
    }
    subprocess.run([SLURM, "stop", folder], check=True)


@pytest.fixture
def cluster(slurm, tmp_path):
    """`submit(*sbatch_flags)` of the small array, and what else the test asks of SLURM and of the logs."""
    (tmp_path / "runs.txt").write_text(LINES)
    render(tmp_path / "shapes")
    return Cluster(tmp_path, slurm)


class Cluster:
    def __init__(self, folder, environment):
        self.folder, self.environment, self.logs = folder, environment, folder / "logs"
        self.began = time.monotonic()

    def say(self, text):
        print(f"[{time.monotonic() - self.began:5.1f} s] {text}", flush=True)

    def run(self, *words):
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment, cwd=ROOT)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()

    def submit(self, *flags):
        """The number of the job."""
        words = ["sbatch", "--parsable", f"--output={self.folder}/slurm-%A_%a.out", *flags, "sweep.sh"]
        words += [self.folder / "runs.txt", self.folder / "shapes", self.logs, "--seed", "1", *FLAGS]
        self.say(f"$ sbatch {' '.join(flags)} sweep.sh runs.txt shapes logs --seed 1 ...")
        return self.run(*map(str, words))

    def limit(self, job, minutes):
        self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        self.say(f"$ scontrol update JobId={job} TimeLimit={minutes}")

    def state(self, job, line):
        shown = self.run("scontrol", "show", "job", "-o", f"{job}_{line}")
        return re.search(r"JobState=(\w+)", shown)[1], int(re.search(r"Restarts=(\d+)", shown)[1])

    def line(self, number):
        return self.logs / f"runs-{number:02d}-seed1"

    def rows(self, number):
        """The lines of its CSV, [] before there is one."""
        paths = list(self.line(number).glob("*.csv"))
        return list(csv.reader(paths[0].open())) if paths else []

    def process(self, number):
        """The learn_shapes.py of a line."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode().split("\0")
            except OSError:
                continue
            if str(self.line(number)) in words and "learn_shapes" in words:  # not srun's
                return int(path.parent.name)
        return None

    def until(self, condition, what, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                outputs = "\n".join(f"{p}:\n{p.read_text()}" for p in sorted(self.folder.glob("*.out")))
                pytest.fail(f"waited {seconds} s for: {what}\n{self.run('squeue')}\n{outputs}")
            time.sleep(0.05)
        self.say(what)

    def hold(self, number):
        """Stops the process of a line behind its first epoch."""
        saved = "*/version_*/checkpoints/last.ckpt"
        self.until(lambda: list(self.line(number).glob(saved)), f"line {number} has trained an epoch")
        held = self.process(number)
        os.kill(held, signal.SIGSTOP)
        return held


def test_every_line_finishes_once_and_only_once(cluster):
    job = cluster.submit("--array=1-4", "--time=10", "--signal=B:USR1@20")
    late = cluster.submit("--array=5", "--time=10", "--signal=B:CONT@1")
    several = cluster.submit("--array=6", "--time=10", "--nodes=2", "--ntasks-per-node=1")
    held = {number: cluster.hold(number) for number in (2, 5, 3, 4, 6)}
    cluster.limit(f"{late}_5", 1)
    cluster.limit(f"{job}_2", 1)
    # one killed with everything that belongs to it
    for pid in (int(cluster.run("ps", "-o", "ppid=", "-p", str(held[4]))), held[4]):
        os.kill(pid, signal.SIGKILL)
    cluster.until(lambda: cluster.state(job, 4)[0] == "FAILED", "line 4, killed by SIGKILL, has failed")
    # one cancelled: it saves behind its batch, and is not requeued
    cluster.run("scancel", f"{job}_3")
    cluster.say(f"$ scancel {job}_3")
    os.kill(held[3], signal.SIGCONT)
    cluster.until(lambda: cluster.state(job, 3)[0] == "CANCELLED", "line 3 is cancelled")
    # two nodes of one job: srun passes on the signal
    cluster.run("scancel", "--batch", "--signal=USR1", f"{several}_6")
    cluster.say(f"$ scancel --batch --signal=USR1 {several}_6")
    output = cluster.folder / f"slurm-{several}_6.out"
    cluster.until(lambda: "SIGUSR1 passed on" in output.read_text(), "line 6, on two nodes, got SIGUSR1")
    os.kill(held[6], signal.SIGCONT)
    cluster.until(lambda: cluster.state(several, 6)[1] == 1, "line 6 is requeued")
    # one shortly before its time limit
    output = cluster.folder / f"slurm-{job}_2.out"
    cluster.until(
        lambda: "SIGUSR1 passed on" in output.read_text(), "line 2 got SIGUSR1 before its time limit"
    )
    os.kill(held[2], signal.SIGCONT)
    cluster.until(lambda: cluster.state(job, 2)[1] == 1, "line 2 is requeued")
    cluster.limit(f"{job}_2", 10)
    assert "requeued" in output.read_text() and not (cluster.line(2) / "finished.json").exists()
    # one at its time limit, told by SIGTERM only
    output = cluster.folder / f"slurm-{late}_5.out"
    cluster.until(lambda: "SIGTERM passed on" in output.read_text(), "line 5 got SIGTERM at its time limit")
    cluster.until(lambda: cluster.state(late, 5)[1] == 1, "line 5 is requeued")
    cluster.limit(f"{late}_5", 10)
    os.kill(held[5], signal.SIGCONT)
    spare = cluster.submit("--array=7", "--time=10", "--partition=spare")
    held[7] = cluster.hold(7)
    cluster.until(lambda: cluster.state(job, 2)[0] == "COMPLETED", "line 2 went on by itself and is finished")
    cluster.until(lambda: cluster.state(job, 1)[0] == "COMPLETED", "line 1 is finished")
    for number, of in ((5, late), (6, several)):
        told = f"line {number} went on by itself and is finished"
        cluster.until(lambda: cluster.state(of, number)[0] == "COMPLETED", told)  # noqa: B023
    finished = [(cluster.line(n) / "finished.json").exists() for n in range(1, 7)]
    assert finished == [True, True, False, False, True, True]
    # one that makes room for a job of higher priority: SLURM itself requeues it
    cluster.run("sbatch", "--time=1", "--ntasks=8", "--output=/dev/null", "--wrap", "true")
    cluster.say("$ sbatch --ntasks=8 --wrap true")
    output = cluster.folder / f"slurm-{spare}_7.out"
    cluster.until(lambda: "SIGTERM passed on" in output.read_text(), "line 7 is preempted")
    os.kill(held[7], signal.SIGCONT)
    # the same array again
    again = cluster.submit("--array=1-4", "--time=5")
    cluster.until(lambda: cluster.state(spare, 7)[0] == "COMPLETED", "line 7 went on and is finished")
    assert cluster.state(spare, 7)[1] == 1 and "is requeued by SLURM" in output.read_text()
    for number in (1, 2, 3, 4):
        done = (cluster.line(number) / "finished.json").exists
        cluster.until(
            lambda n=number: cluster.state(again, n)[0] == "COMPLETED", f"line {number} is finished"
        )
        assert done()
        told = (cluster.folder / f"slurm-{again}_{number}.out").read_text()
        assert ("finished before" in told) == (number <= 2), told
        cluster.say(told.strip().splitlines()[-1].split("; checkpoint")[0])
    for number in range(1, 8):
        log = (cluster.line(number) / "run.log").read_text()
        assert log.count("best error") == 1, log
        assert ("resumes from" in log) == (number > 1), log
        assert [path.name for path in cluster.line(number).glob("*/version_*")] == ["version_0"]
    # equal lines give equal numbers, however they were disturbed
    steps = [str(6 * epoch) for epoch in range(1, EPOCHS + 1)]
    assert [row[0] for row in cluster.rows(2)] == steps
    assert cluster.rows(2) == cluster.rows(3) == cluster.rows(4) == cluster.rows(5)
    together, alone = (np.array(cluster.rows(n), float) for n in (6, 7))
    assert together == pytest.approx(alone, rel=1e-4)  # two nodes are one with twice the batch
    weights = [
        torch.load(next(cluster.line(n).glob("*/version_0/checkpoints/last.ckpt")), weights_only=True)[
            "state_dict"
        ]
        for n in (2, 3, 4, 5)
    ]
    assert all(torch.equal(weights[0][key], other[key]) for other in weights[1:] for key in weights[0])
