"""How a training step grows: fitted exponents of its time over time steps, batch, pixels, fields, channels.

python3 -m benchmarks.scaling [--net li] [--runs 3] [--device cuda] [--save]

Each quantity doubles twice while the others stay; the exponent is the slope of a straight line through the
logarithms, 1 where time grows in proportion.  Printed as `exponent`, with the range over the runs.
"""

import argparse
import statistics
import sys

import numpy as np
import torch

from benchmarks.paired import machine_line, seconds, table_path
from benchmarks.step import our_step
from config import Config

FIELD = dict(resolution=(152, 152), n_spatial_scales=1, n_temporal_scales=4)
BASE = {"cpu": dict(timesteps=8, batch_size=2, **FIELD), "cuda": dict(timesteps=20, batch_size=4, **FIELD)}
GROWTH = {
    "time steps": lambda base: [{"timesteps": n * base["timesteps"]} for n in (1, 2, 4)],
    "batch": lambda base: [{"batch_size": n * base["batch_size"]} for n in (1, 2, 4)],
    "pixels": lambda _: [{"resolution": (h, w)} for h, w in ((152, 152), (152, 304), (304, 304))],
    "receptive fields": lambda _: [{"n_spatial_scales": n} for n in (1, 2, 4)],
    "temporal channels": lambda _: [{"n_temporal_scales": n} for n in (2, 4, 8)],
}  # bar for the first three: 0.9 to 1.1


def exponents(settings, net, runs, device):
    """One exponent per run."""
    configs = [Config(net=net, dropout=0.0, **{**BASE[device], **more}) for more in settings]
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
    for name, settings in GROWTH.items():
        settings = settings(BASE[arguments.device])
        found = exponents(settings, arguments.net, arguments.runs, arguments.device)
        median = statistics.median(found)
        print(
            f"exponent {name}: {median:.3f} (n={len(found)}, {min(found):.3f}..{max(found):.3f})", flush=True
        )
        rows.append(f"| {name} | {median:.2f} | {len(found)} | {min(found):.2f}..{max(found):.2f} |")
    if arguments.save:
        command = f"`python3 -m benchmarks.scaling {' '.join(sys.argv[1:])}`"
        head = ["| time over | exponent | n | range |", "| --- | --- | --- | --- |"]
        table = "\n".join([command, "", machine, "", *head, *rows]) + "\n"
        table_path("scaling", arguments.device).write_text(table)


if __name__ == "__main__":
    main()
