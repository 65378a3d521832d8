"""How a training step grows: fitted exponents of its time over time steps, batch, pixels, fields, channels.

python3 -m benchmarks.scaling [--net li] [--runs 3] [--save]

Each quantity doubles twice while the others stay; the exponent is the slope of a straight line through the
logarithms, 1 where time grows in proportion.  Printed as `exponent`, with the range over the runs.
"""

import argparse
import statistics
import sys

import numpy as np
import torch

from benchmarks.paired import RESULTS, machine_line, seconds
from benchmarks.step import our_step
from config import Config

BASE = dict(timesteps=8, batch_size=2, resolution=(152, 152), n_spatial_scales=1, n_temporal_scales=4)
GROWTH = {
    "time steps": ({"timesteps": n} for n in (8, 16, 32)),
    "batch": ({"batch_size": n} for n in (2, 4, 8)),
    "pixels": ({"resolution": (h, w)} for h, w in ((152, 152), (152, 304), (304, 304))),
    "receptive fields": ({"n_spatial_scales": n} for n in (1, 2, 4)),
    "temporal channels": ({"n_temporal_scales": n} for n in (2, 4, 8)),
}
LINEAR = ("time steps", "batch", "pixels")  # bar: 0.9 to 1.1


def exponents(settings, net, runs):
    """One exponent per run."""
    steps = [our_step(Config(net=net, dropout=0.0, **{**BASE, **more}), "cpu") for more in settings]
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
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/scaling.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = machine_line(net=arguments.net, **BASE)
    print(machine)
    rows = []
    for name, settings in GROWTH.items():
        found = exponents(settings, arguments.net, arguments.runs)
        median = statistics.median(found)
        print(
            f"exponent {name}: {median:.3f} (n={len(found)}, {min(found):.3f}..{max(found):.3f})", flush=True
        )
        rows.append(f"| {name} | {median:.2f} | {len(found)} | {min(found):.2f}..{max(found):.2f} |")
    if arguments.save:
        command = f"`python3 -m benchmarks.scaling {' '.join(sys.argv[1:])}`"
        head = ["| time over | exponent | n | range |", "| --- | --- | --- | --- |"]
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "scaling.md").write_text("\n".join([command, "", machine, "", *head, *rows]) + "\n")


if __name__ == "__main__":
    main()
