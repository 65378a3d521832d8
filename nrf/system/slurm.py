"""What sweep.sh asks of SLURM: which task of an array this is, and to requeue it.

What `scontrol show job` says of a job whose batch script gets a signal, as measured on SLURM 22.05:

    signal                                              JobState     Reason      Restarts
    SIGUSR1 before the time limit (sbatch --signal)     RUNNING      None        as started
    SIGTERM at the time limit, SIGKILL KillWait later   COMPLETING   TimeLimit   as started
    SIGTERM by scancel                                  COMPLETING   None        as started
    SIGTERM by preemption, PreemptMode=CANCEL           COMPLETING   None        as started; a PreemptTime
    SIGTERM by preemption, PreemptMode=REQUEUE          COMPLETING   None        one more
    SIGTERM by scontrol requeue                         COMPLETING   None        one more

A running job that is requeued gets SIGTERM and then SIGKILL, so that comes last; one that is completing may
be requeued at once, and starts again once it has ended, also by SIGKILL.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

Run = TypeVar("Run")
RESTARTS = 5  # of a job that never reached a checkpoint
PATIENCE_S = 60  # with scontrol


def within() -> bool:
    """Whether this process is one of a SLURM job."""
    return "SLURM_JOB_ID" in os.environ


def srun() -> list[str]:
    """The words that start a command in all tasks of the job; none where it has a single one."""
    several = int(os.environ.get("SLURM_NTASKS", 1)) > 1
    return ["srun", "--kill-on-bad-exit=1"] if several else []


def own_task(runs: list[Run]) -> list[Run]:
    """The runs of this process: the i-th in task i of a SLURM array, else all."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if task is None:
        return runs
    if not 1 <= int(task) <= len(runs):
        print(f"array task {task}: there are runs 1 to {len(runs)}, so nothing to do")
        return []
    last = os.environ.get("SLURM_ARRAY_TASK_MAX", task)
    if task == os.environ.get("SLURM_ARRAY_TASK_MIN") and int(last) < len(runs):
        print(f"array tasks end at {last} of {len(runs)} runs: the others need an array of their own")
    return runs[int(task) - 1 : int(task)]


def _scontrol(*words: str) -> tuple[str, str]:
    """Output and complaint of scontrol; the complaint is empty if all went well."""
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"scontrol: {error}"
    return done.stdout, (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""


def requeue(folders: Iterable[Path], saved: bool) -> str | None:
    """Asks SLURM to start this job again, once: the only place that does (training.py turns Lightning's off).

    saved: whether all runs have ended; until then only a job at its time limit is requeued.  Nor is one that
    was cancelled, that SLURM has requeued by itself, or that again and again reaches no checkpoint in
    `folders`.  Returns what was done, in words; None where it shall be asked again, saved.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    shown, complaint = _scontrol("show", "job", "-o", job)
    job_record = dict(re.findall(r"(?<!\S)(JobState|Reason|Restarts|PreemptTime)=(\S+)", shown))
    state, at_limit = job_record.get("JobState", "unknown"), job_record.get("Reason") == "TimeLimit"
    if int(job_record.get("Restarts", 0)) > restarts:
        return f"job {job} is requeued by SLURM"
    if not (state in ("RUNNING", "TIMEOUT") or (state == "COMPLETING" and at_limit)):
        if not saved and complaint:
            return None
        how = "preempted" if job_record.get("PreemptTime", "None") != "None" else state
        how = "cancelled" if how == "COMPLETING" else how
        return f"job {job} is {how}: not requeued; submitted again, it resumes" + (
            f" ({complaint})" if complaint else ""
        )
    if not saved and state == "RUNNING":
        return None
    checkpoint = any(path for folder in folders for path in folder.glob("*/version_*/checkpoints/*.ckpt"))
    if not checkpoint and restarts >= RESTARTS:
        return f"job {job} reached no checkpoint in {RESTARTS} restarts: not requeued; give it more --time"
    _, complaint = _scontrol("requeue", job)
    why = "at its time limit" if at_limit else state
    return f"job {job} is {why}: " + (f"not requeued: {complaint}" if complaint else "requeued")
