"""How a training step grows: fitted exponents of its time over time steps, batch, pixels, fields, channels.

python3 -m benchmarks.scaling [--net li] [--runs 3] [--device cuda] [--save]

Each quantity doubles twice while the others stay; the exponent is the slope of a straight line through the
logarithms, 1 where time grows in proportion.  Printed as `exponent`, with the range over the runs.  On a CPU
then: how many times as long steps of two processes at once take as those of one alone, 2 without loss where
one fills all cores.
"""

import argparse
import statistics

import numpy as np
import torch

from benchmarks.paired import machine_line, seconds, write_rows
from benchmarks.step import Side, config_of, our_step
from nrf.config import Config

FIELD = dict(resolution=(152, 152), n_spatial_scales=1, n_temporal_scales=4)
BASE = {"cpu": dict(timesteps=8, batch_size=2, **FIELD), "cuda": dict(timesteps=20, batch_size=4, **FIELD)}
GROWTH = {  # setting and factors; bar for the first three: 0.9 to 1.1
    "time steps": ("timesteps", (1, 2, 4)),
    "batch": ("batch_size", (1, 2, 4)),
    "pixels": ("resolution", ((1, 1), (1, 2), (2, 2))),
    "receptive fields": ("n_spatial_scales", (1, 2, 4)),
    "temporal channels": ("n_temporal_scales", (0.5, 1, 2)),
}
AT_ONCE = ("small", "small, 36 fields")
STEPS = 10  # timed together


def scaled(value, factor):
    return tuple(map(scaled, value, factor)) if isinstance(value, tuple) else round(value * factor)


def exponents(name, factors, net, runs, device):
    """One exponent per run."""
    base = BASE[device]
    grown = [{**base, name: scaled(base[name], factor)} for factor in factors]
    configs = [Config(net=net, dropout=0.0, **settings) for settings in grown]
    steps = [our_step(config, device) for config in configs]
    for step in steps:
        step()
    times = [[seconds(step) for step in steps] for _ in range(runs)]
    doublings = np.arange(len(steps))
    return [float(np.polyfit(doublings, np.log2(row), 1)[0]) for row in times]


def at_once(size, net, runs, threads):
    """Time of two processes at once over that of one alone, once per run."""
    sides = [Side(our_step, config_of(net, size), threads, "cpu", "32-true") for _ in range(2)]

    def steps(sides):
        for _ in range(STEPS):
            for side in sides:
                side.connection.send("step")
        for side in sides * STEPS:
            side.connection.recv()

    try:
        steps(sides)
        return [seconds(lambda: steps(sides)) / seconds(lambda: steps(sides[:1])) for _ in range(runs)]
    finally:
        for side in sides:
            side.close()


def row_of(kind, name, found):
    """Prints values of one per run, and returns their line of a table."""
    median, low, high = statistics.median(found), min(found), max(found)
    print(f"{kind} {name}: {median:.3f} (n={len(found)}, {low:.3f}..{high:.3f})", flush=True)
    return f"| {name} | {median:.2f} | {len(found)} | {low:.2f}..{high:.2f} |"


def main():
    parser = argparse.ArgumentParser("benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=("li", "lif", "ann"), default="li")
    parser.add_argument("--runs", type=int, default=3, help="fits (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--save", action="store_true", help="write a table into benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = machine_line(device=arguments.device, net=arguments.net, **BASE[arguments.device])
    print(machine)
    rows = ["| time over | exponent | n | range |", "| --- | --- | --- | --- |"]
    for name, growth in GROWTH.items():
        found = exponents(*growth, arguments.net, arguments.runs, arguments.device)
        rows.append(row_of("exponent", name, found))
    if arguments.device == "cpu":
        rows += ["", "| two at once over one alone | ratio | n | range |", "| --- | --- | --- | --- |"]
        for size in AT_ONCE:
            found = at_once(size, arguments.net, arguments.runs, arguments.threads)
            rows.append(row_of("two at once:", size, found))
    if arguments.save:
        write_rows("scaling", rows, machine, arguments.device)


if __name__ == "__main__":
    main()
