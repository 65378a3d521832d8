"""What the process takes of the machine: memory that a step frees is kept for the next one, threads wait."""

import os
import platform
import subprocess
import sys

import pytest

STEP = """
import resource
import torch
from nrf.system.memory import keep_memory

if KEEP:
    keep_memory()
torch.set_num_threads(1)
for step in range(40):  # malloc takes up to some 12 to settle
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_later_step_touches_no_fresh_page():
    def faults(keep, **more):
        command = [sys.executable, "-c", STEP.replace("KEEP", str(keep))]
        return int(subprocess.check_output(command, text=True, env=os.environ | more))

    without = faults(keep=False)
    assert faults(keep=True) < without / 4
    assert faults(keep=True, MALLOC_TRIM_THRESHOLD_="131072") > without / 2  # the user's word


@pytest.mark.parametrize(
    "own, expected",
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_leave_the_core_unless_the_user_says_how_they_wait(own, expected):
    code = "import os, sys, nrf.__main__; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=clean | own)
    assert said.split() == [expected, "False"]
