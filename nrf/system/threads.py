"""How threads wait for work."""

import os


def wait_briefly() -> None:
    """Let OpenMP's threads spin for microseconds while they wait, unless the environment says how they wait.
    By default GNU's spin for milliseconds, and another program gets no core.  Call it before torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
