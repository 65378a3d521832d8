"""Memory that a step frees is kept for the next one."""

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
for step in range(12):
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
