"""What each trick gains alone: a training step with all of them against one that lacks it.

python3 -m benchmarks.tricks [--nets li] [--sizes demo paper] [--runs 3] [--only bands ...] [--save]

Loss and gradients of both are equal first (`benchmarks.step`).  Each side is a process of its own.  A trick
stays where it takes 10 % of time or memory (the process's peak) away, at one size at least.
"""

import argparse
import functools
import itertools
import math

import torch
from torch.nn import functional as F

from benchmarks import step
from benchmarks.paired import alternate, compare, machine_line, write_table
from nrf.fast import convolution, scan, scan_torch
from nrf.network import layers
from nrf.network.neurons import NEURONS


def no(*_):
    return False


TRICKS = {  # what stands in for each: (where, name, instead)
    "convolution over frequencies": [(module, "spectral_is_faster", no) for module in (convolution, layers)],
    "convolution of events": [(convolution, "convolve_events", lambda x, w, n: F.conv2d(x, w, padding=n))],
    "neurons and pooling in one pass": [(layers, "is_one_pass", no)],
    "bands of the first layer": [(layers, "band_rows", lambda *_: math.inf)],
    "one channel after the other": [(layers, "APART", math.inf)],
    "compiled scans": [(scan, "_kernels", lambda _: scan_torch)],
    "memory kept for the next step": [(step, "keep_memory", no)],
}


def step_without(trick, config, device):
    for where, name, instead in TRICKS[trick]:
        assert hasattr(where, name)
        setattr(where, name, instead)
    return step.our_step(config, device)


def measure(trick, net, size, arguments):
    """The `Ratio` of time and of memory without over with."""
    config = step.config_of(net, size)
    ways = step.our_step, functools.partial(step_without, trick)
    sides = [step.Side(way, config, arguments.threads, "cpu", "32-true") for way in ways]
    ours, without = sides
    try:
        step.assert_equal(ours.ask("outcome"), without.ask("outcome"))
        time = alternate(
            f"{trick}: time, {net}, {size}", ours.step, without.step, arguments.runs, first=False
        )
        peaks = [(ours.ask("end"), without.ask("end"))]
        return [time, compare(f"{trick}: memory, {net}, {size}", peaks, "GB")]
    finally:
        for side in sides:
            side.process.kill()


def main():
    parser = argparse.ArgumentParser("benchmarks.tricks", description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NEURONS, default=["li"])
    parser.add_argument("--sizes", nargs="+", choices=step.SIZES, default=["demo", "paper"])
    parser.add_argument("--only", nargs="+", choices=TRICKS, default=list(TRICKS), metavar="TRICK")
    parser.add_argument("--runs", type=int, default=3, help="pairs of steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write a table into benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = machine_line(dtype="float32", device="cpu")
    print(machine)
    ratios = []
    for size, net, trick in itertools.product(arguments.sizes, arguments.nets, arguments.only):
        ratios += measure(trick, net, size, arguments)
        if arguments.save:
            write_table("tricks", ratios, machine)


if __name__ == "__main__":
    main()
