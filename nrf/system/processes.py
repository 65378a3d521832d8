"""Processes end with their parent, where the system can (Linux); the standard library only."""

import ctypes
import signal
import sys

PRCTL = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None
PR_SET_PDEATHSIG = 1  # prctl: the signal that a process gets when its parent dies


def follow_parent(number: int = signal.SIGKILL) -> None:
    """Send the calling process this signal when its parent dies.  Imports nothing: safe after a fork."""
    if PRCTL:
        PRCTL(PR_SET_PDEATHSIG, int(number))
