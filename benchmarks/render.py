"""Rendering against GERD: the same events first, bit by bit, then the time of both, and the memory of ours.

python3 -m benchmarks.render [--runs 3]     needs the gerd package; release 0.5.1 takes 2 to 10 s a recording
"""

import argparse
import statistics
import tracemalloc
from dataclasses import replace

import gerd.__main__ as gerd_main
import numpy as np
import torch

from benchmarks.paired import machine_line, paired, seconds
from nrf.gerd.render import RenderParameters, render, replay

SIZE = 40.0
FIELD = RenderParameters("gerd-0.5.1", scale=SIZE, velocity=0.2)


def release(parameters, seed):
    """The release's own rendering of a recording of constant size: events (T, 2, H, W) and labels."""
    torch.manual_seed(seed)
    return gerd_main.render_shapes(
        gerd_main.DatasetParameters(
            resolution=torch.Size(parameters.resolution),
            event_density=parameters.event_density,
            bg_density=parameters.bg_density,
            length=parameters.length,
            max_velocity=parameters.velocity,
            translate_velocity="uniform",
            scale_start=parameters.scale,
            device="cpu",
        )
    )


def assert_equal(parameters, seed):
    events, labels = release(parameters, seed)
    state = torch.get_rng_state().numpy()
    recording, our_state = replay(parameters, seed)
    assert np.array_equal(recording.events, events.nonzero().numpy())
    assert np.array_equal(recording.labels, labels.numpy())
    assert np.array_equal(our_state, state)
    print(f"equal: {len(recording.events)} events, labels and generator state at size {parameters.scale:g}")


def our_times(parameters, runs):
    render(parameters, 0)
    return [seconds(lambda seed=seed: render(parameters, seed)) for seed in range(runs)]


def main():
    parser = argparse.ArgumentParser("benchmarks.render", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="pairs of renderings (default: %(default)s)")
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    print(machine_line(resolution="300x300", frames=128, shapes=3))
    assert_equal(FIELD, 0)

    def theirs():
        return release(FIELD, 1)

    for generator in ("gerd-0.5.1", "published", "clean"):
        own = replace(FIELD, generator=generator)
        name = f"release 0.5.1 over native {generator} at size {SIZE:g}"
        paired(name, lambda own=own: render(own, 1), theirs, runs)
    paired(f"release 0.5.1 over its replay at size {SIZE:g}", lambda: replay(FIELD, 1), theirs, runs)
    for generator in ("gerd-0.5.1", "published", "clean"):
        base = our_times(replace(FIELD, generator=generator), 9)
        for velocity in (0.16, 1.28):
            times = our_times(replace(FIELD, generator=generator, scale="random", velocity=velocity), 9)
            ratios = [t / statistics.median(base) for t in times]
            spread = f"n=9, {min(ratios):.3g}..{max(ratios):.3g}"
            name = f"native {generator} at random size, velocity {velocity}, over size {SIZE:g}"
            print(f"ratio {name}: {statistics.median(ratios):.3g} ({spread})")
    for generator in ("gerd-0.5.1", "published", "clean"):
        peak = 0
        for seed in range(9):
            tracemalloc.start()
            render(replace(FIELD, generator=generator, scale="random", velocity=1.28), seed)
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        print(f"memory native {generator} at random size, velocity 1.28: {peak / 1e6:.0f} MB at most (n=9)")


if __name__ == "__main__":
    main()
