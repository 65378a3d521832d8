"""How every benchmark here measures: two ways of one result, timed in turn, the ratio of each pair."""

import itertools
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch.profiler import ProfilerActivity, profile

from nrf.fast.convolution import has_matrix_units

RESULTS = Path(__file__).resolve().parent / "results"
USUAL = ("cpu", "32-true")


def processor():
    """The processor's name: Linux's own words where there are any, else Python's."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def vectors():
    """What the processor multiplies with: torch's name for its vectors, and units for bfloat16."""
    narrow = "AVX512-BF16" if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() else ""
    units = "AMX" if has_matrix_units() else ""
    return " ".join(filter(None, [torch.backends.cpu.get_cpu_capability(), narrow, units]))


def machine_line(**sizes) -> str:
    """One line: processor, cores, versions, threads, and what else was measured with, `name value`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "cpu": processor(),
        "vectors": vectors(),
        **({"gpu": torch.cuda.get_device_name()} if sizes.get("device") == "cuda" else {}),
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


class Ratio(NamedTuple):
    """Median and range over `n` pairs of theirs / ours, and both sides' median."""

    name: str
    median: float
    n: int
    low: float
    high: float
    ours: float
    theirs: float
    unit: str = "ms"

    def lines(self):
        ratio = f"ratio {self.name}: {self.median:.4g} (n={self.n}, {self.low:.4g}..{self.high:.4g})"
        return f"{ratio}\n  medians: ours {self.ours:.4g} {self.unit}, theirs {self.theirs:.4g} {self.unit}"


def compare(name, pairs, unit="ms"):
    """The `Ratio` of (ours, theirs) pairs, printed."""
    ratios = [theirs / ours for ours, theirs in pairs]
    ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = Ratio(name, statistics.median(ratios), len(ratios), min(ratios), max(ratios), ours, theirs, unit)
    print(ratio.lines(), flush=True)
    return ratio


def alternate(name, ours, theirs, runs=5, first=True):
    """Times ours, theirs, ours, theirs ... after a `first` call of each that does not count; prints and
    returns the `Ratio`, so that above 1 ours is faster.  The caller has asserted that both give the same."""
    if first:
        ours()
        theirs()
    return compare(name, [(seconds(ours) * 1e3, seconds(theirs) * 1e3) for _ in range(runs)])


def paired(name, ours, theirs, runs=5) -> float:
    """The median of `alternate`."""
    return alternate(name, ours, theirs, runs).median


def peak_bytes(function) -> int:
    """The most bytes that torch held on the CPU at a time during a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held, default=0)


def table_of(ratios):
    """Lines of a Markdown table."""
    rows = [
        f"| {r.name} | {r.median:.3g} | {r.n} | {r.low:.3g}..{r.high:.3g} | {r.ours:.4g} {r.unit} "
        f"| {r.theirs:.4g} {r.unit} |"
        for r in ratios
    ]
    head = [
        "| theirs over ours | median ratio | n | range | ours | theirs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return [*head, *rows]


def write_table(name, ratios, machine, *ways):
    """`write_rows` of ratios."""
    write_rows(name, table_of(ratios), machine, *ways)


def write_rows(name, rows, machine, *ways):
    """A Markdown table in benchmarks/results/<name>.md below this command and machine.

    ways: device and precision; other ones than cpu and 32-true have a table of their own, <name>_cuda.md.
    """
    command = shlex.join(["python3", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    path = RESULTS / ("_".join([name, *(way for way in ways if way not in USUAL)]) + ".md")
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([f"`{command}`", "", machine, "", *rows]) + "\n")
    print(f"written: {path.relative_to(RESULTS.parents[1])}")
