"""How every benchmark here measures: two ways of one result, timed in turn, the ratio of each pair."""

import os
import platform
import statistics
import time

import numpy
import torch


def processor():
    """The processor's name: Linux's own words where there are any, else Python's."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine_line(**sizes) -> str:
    """One line: processor, cores, versions, threads, and what else was measured with, `name value`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "cpu": processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    } | sizes
    return "machine: " + ", ".join(f"{name} {value}" for name, value in facts.items())


def seconds(function) -> float:
    """Wall time of one call; on a GPU from idle to idle."""
    cuda = torch.cuda.is_initialized()
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(name, ours, theirs, runs=5) -> float:
    """Times ours, theirs, ours, theirs ... after a first call of each that does not count; prints and returns
    the median of theirs / ours, so that above 1 ours is faster.  The caller has asserted that both give the
    same."""
    ours()
    theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    ratios = [slow / fast for fast, slow in pairs]
    median = statistics.median(ratios)
    print(f"ratio {name}: {median:.4g} (n={runs}, {min(ratios):.4g}..{max(ratios):.4g})")
    fast, slow = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
    print(f"  medians: ours {fast:.4g} ms, theirs {slow:.4g} ms", flush=True)
    return median
