"""sweep.sh: every line once and only once, whatever happens in between; its lines are data.

Most cases take a small program in place of learn_shapes.py, which tells what it was called with.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nrf.commands import sweep
from nrf.system import slurm

ROOT = Path(__file__).resolve().parents[2]
STUB = """
import json, os, signal, sys, time
data, logs, *words = sys.argv[2:]
with open(os.path.join(logs, "calls"), "a") as file:
    print(json.dumps(words), os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
flags = dict(word.partition("=")[::2] for word in words)
def stop(number, frame):
    print("stopped by", signal.Signals(number).name, flush=True)
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, stop)
open(os.path.join(logs, "ready"), "w").close()
time.sleep(float(flags.get("--sleep", 0)))
if "--fail" in flags:
    print("learn_shapes.py: unknown flag --fail", file=sys.stderr)
    sys.exit(2)
if "--help" in flags:
    print("usage: learn_shapes.py")
    sys.exit(0)
os.makedirs(os.path.join(logs, "run/version_0"), exist_ok=True)
with open(os.path.join(logs, "run/version_0/run.json"), "w") as file:
    json.dump({"state": "finished"}, file)
print("best error 1.00 px")
sys.exit(int(flags.get("--exit", 0)))
"""
QUICK = "--sleep=0"


@pytest.fixture
def house(tmp_path):
    """A folder with sweep.sh and a stub; `call(config, *words, **environment)` runs it there to its end."""
    shutil.copy(ROOT / "sweep.sh", tmp_path)
    shutil.copytree(ROOT / "nrf", tmp_path / "nrf", ignore=lambda folder, names: {"__pycache__"})
    (tmp_path / "nrf" / "commands" / "learn_shapes.py").write_text(STUB)
    return tmp_path


def words_of(house, config, *words):
    (house / "runs.txt").write_text(config)
    return [str(house / "sweep.sh"), str(house / "runs.txt"), "DATA", str(house / "logs"), *words]


def environment(**variables):
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith("SLURM_") and k != "CUDA_VISIBLE_DEVICES"
    }
    return clean | {"PYTHON": sys.executable} | variables


def call(house, config, *words, **variables):
    return subprocess.run(
        words_of(house, config, *words),
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=60,
    )


def start(house, config, *words, **variables):
    process = subprocess.Popen(
        words_of(house, config, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**variables),
    )
    return process


def program(folder, name, script):
    """A program of this name in a folder, and the PATH that finds it first."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def wait_for(path, seconds=20):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


def calls(house):
    """The words of every call of the stub, by folder of logs."""
    found = {}
    for path in (house / "logs").glob("*/calls"):
        found[path.parent.name] = [json.loads(line[: line.rindex("]") + 1]) for line in path.open()]
    return found


def test_every_line_runs_once_and_a_bad_one_does_not_stop_the_others(house):
    config = f"# the paper's\n\n{QUICK} --lr=1\n{QUICK} --name 'no end\n--fail\n{QUICK} --lr=2  # the last\n"
    run = call(house, config, "--seeds", "1,3-4", "--max_epochs", "2")
    assert run.returncode == 1, run.stderr
    assert "runs-02-seed1: " in run.stderr and "runs.txt, line 4: No closing quotation" in run.stderr
    assert "runs-03-seed4: failed (exit code 2): learn_shapes.py: unknown flag --fail" in run.stderr
    made = calls(house)
    assert sorted(made) == sorted(f"runs-{line:02d}-seed{seed}" for line in (1, 3, 4) for seed in (1, 3, 4))
    tail = ["--max_epochs", "2", "--seed=3", "--ckpt_path=last"]
    assert made["runs-04-seed3"] == [["--enable_progress_bar=false", QUICK, "--lr=2", *tail]]
    again = call(house, config, "--seeds", "1,3-4", "--max_epochs", "2")
    assert again.stdout.count("finished before") == 6
    assert [len(c) for name, c in sorted(calls(house).items())] == [1, 1, 1, 2, 2, 2, 1, 1, 1]


def test_finished_means_finished_with_these_words(house):
    assert call(house, QUICK).returncode == 0
    other = call(house, QUICK, "--lr=3")
    assert other.returncode == 1 and "finished before with other words (DATA --sleep=0)" in other.stderr
    marker = house / "logs/runs-01-seed0/finished.json"
    marker.write_text(marker.read_text()[:10])
    assert "is damaged" in call(house, QUICK).stderr
    assert len(calls(house)["runs-01-seed0"]) == 1


def test_a_line_that_trains_nothing_is_not_finished(house):
    """Whatever flag makes a program end well at once; a byte-order mark is none of the first line."""
    run = call(house, f"\ufeff{QUICK}\n{QUICK} --help\n{QUICK} --name=a\u2028b\fc\n")
    assert run.returncode == 1
    assert "runs-02-seed0: failed (exit code 0): it ended without a trained network: usage:" in run.stderr
    assert not (house / "logs/runs-02-seed0/finished.json").exists()
    made = calls(house)
    assert made["runs-01-seed0"][0][1] == QUICK and made["runs-03-seed0"][0][2] == "--name=a\u2028b\fc"


def test_metacharacters_of_a_line_are_data(house):
    evil = "$(touch HACKED) `touch HACKED` ; touch HACKED | * ~ \\$HOME '&&' '\n'"
    line = evil.replace("\n", "")
    (house / "here").mkdir()
    run = call(house, f"{QUICK} {line}\n{QUICK} a\0b\n")
    assert not list(house.rglob("HACKED")) and "NUL" in run.stderr
    assert calls(house)["runs-01-seed0"][0][2:-1] == shlex.split(line)


def test_dry_run_prints_commands_that_a_shell_reads_back(house):
    run = call(house, "--name 'a b' --lr=1\n--net=lif --seed 7\n", "--dry-run", "--devices=1")
    first, second = (shlex.split(line) for line in run.stdout.splitlines())
    assert run.returncode == 0 and not (house / "logs").exists()
    assert first[1:5] == [str(house / "nrf"), "learn_shapes", "DATA", str(house / "logs/runs-01-seed0")]
    assert first[6:] == ["--name", "a b", "--lr=1", "--devices=1", "--ckpt_path=last"]
    assert second[4].endswith("runs-02-seed7")


def test_array_tasks_take_their_run(house):
    config, seeds = f"{QUICK} --a=1\n{QUICK} --a=2\n", ("--seeds", "5-6")
    for task in (2, 3):
        run = call(
            house,
            config,
            *seeds,
            SLURM_ARRAY_TASK_ID=str(task),
            SLURM_ARRAY_TASK_MIN="2",
            SLURM_ARRAY_TASK_MAX="3",
        )
        assert run.returncode == 0 and ("end at 3 of 4 runs" in run.stdout) == (task == 2), run.stdout
    assert set(calls(house)) == {"runs-02-seed5", "runs-01-seed6"}
    beyond = call(house, config, *seeds, SLURM_ARRAY_TASK_ID="5")
    assert beyond.returncode == 0 and "there are runs 1 to 4" in beyond.stdout and len(calls(house)) == 2


def test_several_at_once_share_the_gpus(house):
    began = time.monotonic()
    run = call(house, "--sleep=1.5\n" * 3, "--jobs", "3", CUDA_VISIBLE_DEVICES="4,7")
    assert run.returncode == 0 and time.monotonic() - began < 4
    lines = [(house / f"logs/runs-0{k}-seed0/calls").read_text() for k in (1, 2, 3)]
    assert [line.split()[-1] for line in lines] == ["4", "7", "4"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_reaches_the_run_and_the_next_call_resumes(house, number):
    process = start(house, "--sleep=30\n--sleep=30\n")
    wait_for(house / "logs/runs-01-seed0/ready")
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number and "the same command resumes" in output
    assert list(calls(house)) == ["runs-01-seed0"]
    assert f"stopped by {number.name}" in (house / "logs/runs-01-seed0/run.log").read_text()


def test_ctrl_c_within_slurm_is_for_good(house):
    path = program(house, "scontrol", f"[ $1 = requeue ] && touch {house}/requeued; echo '{RUNNING}'")
    process = start(house, "--sleep=30", PATH=path, SLURM_JOB_ID="9", SLURM_RESTART_COUNT="1")
    wait_for(house / "logs/runs-01-seed0/ready")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "the same command resumes" in output
    assert not (house / "requeued").exists()


def test_two_sweeps_at_once_run_each_line_once(house):
    processes = [start(house, "--sleep=1\n" * 3) for _ in range(2)]
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert {name: len(c) for name, c in calls(house).items()} == {f"runs-0{k}-seed0": 1 for k in (1, 2, 3)}, (
        outputs
    )
    assert call(house, "--sleep=1\n" * 3).returncode == 0


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's death"
)
def test_a_run_ends_with_its_sweep(house):
    process = start(house, "--sleep=30\n")
    wait_for(house / "logs/runs-01-seed0/ready")
    process.kill()
    process.communicate()
    log = house / "logs/runs-01-seed0/run.log"
    end = time.monotonic() + 10
    while "stopped by SIGTERM" not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    assert call(house, QUICK).returncode == 0  # the lock has gone with it


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.txt", "D", "L"], "none.txt: No such file or directory"),
        (["empty.txt", "D", "L"], "empty.txt: no run in it"),
        (["binary.txt", "D", "L"], "binary.txt: not a text"),
        (["empty.txt", "D", "L", "--seeds", "4-2"], "expected seeds such as"),
        (["empty.txt", "D", "L", "--jobs", "0"], "expected a whole number"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    try:
        code = sweep.main(words)
    except SystemExit as end:
        code = end.code
    assert code == 2 and message in capsys.readouterr().err


RUNNING = "JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=1 PreemptTime=None"
ENDING = RUNNING.replace("RUNNING", "COMPLETING")
AT_LIMIT = ENDING.replace("Reason=None", "Reason=TimeLimit")


@pytest.mark.parametrize(
    ("shown", "answers", "requeued"),
    [
        (RUNNING, [None, "is RUNNING: requeued"], 1),
        (AT_LIMIT, ["is at its time limit: requeued"], 1),
        (ENDING, ["is cancelled: not requeued"], 0),
        (ENDING.replace("Time=None", "Time=2026-01-01"), ["is preempted: not requeued"], 0),
        (ENDING.replace("Restarts=1", "Restarts=2"), ["is requeued by SLURM"], 0),
        ("", [None, "is unknown: not requeued; submitted again, it resumes (slurm_load_jobs error"], 0),
    ],
)
def test_what_slurm_shows_of_a_job_decides_whether_it_is_requeued(
    tmp_path, monkeypatch, shown, answers, requeued
):
    """Asked as soon as a signal arrives, and once all has been saved."""
    (tmp_path / "shown").write_text(shown)
    stub = f"""cd {tmp_path} && echo "$@" >>calls && if [ "$1" = show ]; then
    [ -s shown ] && cat shown || {{ echo "slurm_load_jobs error" >&2; exit 1; }}
fi"""
    monkeypatch.setenv("PATH", program(tmp_path, "scontrol", stub))
    for name, value in (("JOB_ID", 12), ("ARRAY_JOB_ID", 7), ("ARRAY_TASK_ID", 3), ("RESTART_COUNT", 1)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for saved, wanted in zip((False, True), answers, strict=False):
        answer = slurm.requeue([tmp_path], saved)
        assert answer is None if wanted is None else answer.startswith(f"job 7_3 {wanted}"), answer
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls.count("requeue 7_3") == requeued and set(calls) <= {"requeue 7_3", "show job -o 7_3"}
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")
    (tmp_path / "shown").write_text(AT_LIMIT)
    assert "no checkpoint in 5 restarts" in slurm.requeue([tmp_path], True)
    (tmp_path / "run" / "version_0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt").touch()
    assert slurm.requeue([tmp_path], True).endswith("requeued")


@pytest.mark.parametrize("line", ["--sleep=30", "--exit=143"])
def test_srun_is_told_by_sigusr1_and_what_slurm_told_its_tasks_counts(house, line):
    """SIGTERM would make srun kill its tasks; preemption with a grace time tells them, and nobody else."""
    program(house, "srun", 'shift; exec "$@"')
    path = program(house, "scontrol", f"[ $1 = requeue ] && echo $2 >>{house}/requeued; echo '{RUNNING}'")
    job = {"PATH": path, "SLURM_NTASKS": "2", "SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": "1"}
    process = start(house, line, **job)
    wait_for(house / "logs/runs-01-seed0/ready")
    if "sleep" in line:
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 143 and "job 9 is RUNNING: requeued" in output, output
    assert (house / "requeued").read_text() == "9\n"
    told = "stopped by SIGUSR1" if "sleep" in line else "best error"
    assert told in (house / "logs/runs-01-seed0/run.log").read_text()
    again = call(house, line, "--jobs", "2", **job)
    assert (
        again.returncode == 2 and "--jobs 2: expected 1 where a SLURM job has several tasks" in again.stderr
    )


def test_log_that_cannot_be_written_is_told(house):
    (house / "logs").write_text("a file")
    run = call(house, QUICK)
    assert run.returncode == 1 and "Not a directory" in run.stderr
