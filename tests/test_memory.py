"""Memory that a step frees is kept for the next one."""

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


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc, of Linux")
def test_a_later_step_touches_no_fresh_page():
    faults = [
        int(subprocess.check_output([sys.executable, "-c", STEP.replace("KEEP", keep)], text=True))
        for keep in ("False", "True")
    ]
    assert faults[1] < faults[0] / 4
