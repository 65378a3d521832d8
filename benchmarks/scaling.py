"""How a training step grows: fitted exponents of its time over time steps, batch, pixels, fields, channels.

python3 -m benchmarks.scaling [--net li] [--runs 3] [--device cuda] [--save]

Each quantity doubles twice while the others stay; the exponent is the slope of a straight line through the
logarithms, 1 where time grows in proportion.  Printed as `exponent`, with the range over the runs.
"""

import argparse
import statistics

import numpy as np
import torch

from benchmarks.paired import machine_line, seconds, write_rows
from benchmarks.step import our_step
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
    rows = []
    for name, growth in GROWTH.items():
        found = exponents(*growth, arguments.net, arguments.runs, arguments.device)
        median = statistics.median(found)
        print(
            f"exponent {name}: {median:.3f} (n={len(found)}, {min(found):.3f}..{max(found):.3f})", flush=True
        )
        rows.append(f"| {name} | {median:.2f} | {len(found)} | {min(found):.2f}..{max(found):.2f} |")
    if arguments.save:
        head = ["| time over | exponent | n | range |", "| --- | --- | --- | --- |"]
        write_rows("scaling", [*head, *rows], machine, arguments.device)


if __name__ == "__main__":
    main()
