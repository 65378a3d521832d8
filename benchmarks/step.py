"""A training step against the published way: one time step after the other, on Norse's cells.

    python3 -m benchmarks.step [--nets li lif ann] [--sizes demo paper] [--runs 2] [--device cuda] [--save]
    python3 -m benchmarks.step --precision bf16-mixed [--theirs 32-true]

Ours is `ShapesModel`: warm-up, window, loss and gradients from a batch of sparse events.  Theirs is the model
of nrf/network/reference.py with the same weights on the same frames.  Loss and every gradient are equal
first, with convolutions in full float32; a GPU is then timed as torch sets it, with TF32, and both sides in
--precision, theirs in another if --theirs says so.  Each side lives in a process of its own, which reports
its peak memory beyond what it held before its first step.  On a CPU a second table says what the products and
the traffic of a step would take at the processor's best (limits.py).  Events are even noise at the rate of
the paper's recordings; dropout is off, whose draws differ.  A step of theirs at the paper's size takes about
a minute on two cores.
"""

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import unittest.mock
import warnings

import torch

from benchmarks import limits
from benchmarks.paired import alternate, compare, machine_line, table_of, write_rows
from nrf.config import Config
from nrf.data.dataset import EventBatch, dense_frames
from nrf.network.neurons import NEURONS
from nrf.system.memory import keep_memory
from nrf.system.threads import wait_briefly

RATE = 0.003 / 2  # events per cell and frame, as in the paper's recordings
SIZES = {
    "demo": {
        "resolution": (48, 48), "timesteps": 20, "batch_size": 8, "n_classes": 1, "skip_connections": 1,
        "n_spatial_scales": 3, "n_angles": 1, "n_ratios": 1,
    },
    "small": {"resolution": (64, 64), "n_classes": 1, "n_spatial_scales": 3, "n_angles": 1, "n_ratios": 1},
    "small, 36 fields": {
        "resolution": (64, 64), "n_classes": 1, "n_spatial_scales": 3, "n_angles": 2, "n_ratios": 2,
    },
    "middle": {"resolution": (150, 150), "timesteps": 10, "batch_size": 1, "n_spatial_scales": 2},
    "paper": {"batch_size": 1},
}  # fmt: skip
PAPER_BATCH = {"li": 8, "lif": 4, "ann": 12}  # on a GPU, as in the lines of config_*.txt
TOLERANCE = {"loss": 1e-5, "gradient": 1e-3}  # float32: relative to the loss, to a gradient's largest value
ZERO = 1e-5  # or to this, of gradients that rounding alone keeps from zero


def config_of(net, size, batch_size=None, device="cpu", **more):
    coordinate = "dsnt" if net == "ann" else "dsntli"  # as in config_ann.txt and config_snn.txt
    config = Config(net=net, dropout=0.0, coordinate=coordinate, **SIZES[size], **more)
    by_size = PAPER_BATCH[net] if (size, device) == ("paper", "cuda") else config.batch_size
    return dataclasses.replace(config, batch_size=batch_size or by_size)


def batch_of(config, device):
    """Sparse events and labels of one batch."""
    B, T, N = config.batch_size, config.timesteps, config.n_classes
    generator = torch.Generator().manual_seed(0)
    cells = 2 * T * 2 * config.resolution[0] * config.resolution[1]
    events = [(torch.rand(cells, generator=generator) < RATE).nonzero().flatten().int() for _ in range(B)]
    labels = torch.rand(B, T, N, 2, generator=generator) * torch.tensor(config.resolution)
    batch = EventBatch(torch.cat(events), torch.tensor([len(e) for e in events]), labels)
    return EventBatch(*(tensor.to(device) for tensor in batch))


def our_step(config, device):
    """A function of the precision that gives the loss, and the gradients by name."""
    from nrf.training.module import ShapesModel

    keep_memory()  # as learn_shapes.py does
    torch.manual_seed(0)
    model = ShapesModel(**dataclasses.asdict(config)).to(device)
    batch = batch_of(config, device)

    def loss_of(precision):  # as in a training step, nothing else is left for the backward pass
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            tracking, _, labels_px = model.track(batch)
            terms, *_ = model.terms(tracking, labels_px)
            return terms["loss"] + terms.get("spike_reg", 0)

    def step(precision="32-true"):
        model.zero_grad()
        loss = loss_of(precision)
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.named_parameters()}

    return step


def their_step(config, device):
    """The same, one time step after the other, all frames dense as published."""
    from nrf.network.reference import reference_run
    from nrf.training.module import ShapesModel

    torch.manual_seed(0)
    model = ShapesModel(**dataclasses.asdict(config)).to(device)
    batch = batch_of(config, device)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def step(precision="32-true"):
        model.zero_grad()
        warmup, frames = (part.float() for part in dense_frames(batch, config.resolution, config.timesteps))
        labels_px = batch.labels.transpose(0, 1)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            run = reference_run(config, parameters, buffers, warmup, frames, labels_px)
        loss = run.terms["loss"]
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in parameters.items()}

    return step


def memory_gb(what):
    """VmHWM (the peak) or VmRSS (now) of this process."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e9


def serve(step_of, config, threads, device, precision, connection):
    """In a process of its own, of `step_of(config, device)`: a step for "step"; one in full float32 and its
    outcome for "outcome"; what a step needs for "needs"; peak memory for "end"."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    step = step_of(config, device)
    cuda = device != "cpu"
    before = torch.cuda.memory_allocated() / 1e9 if cuda else memory_gb("VmRSS")
    while (order := connection.recv()) != "end":
        if order == "step":
            step(precision)
            if cuda:
                torch.cuda.synchronize()
            connection.send(None)
        elif order == "needs":
            connection.send(limits.needs(lambda: step(precision)))
        else:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                loss, gradients = step()
            arrays = {name: None if g is None else g.cpu().numpy() for name, g in gradients.items()}
            connection.send((loss.item(), arrays))
            if cuda:
                torch.cuda.reset_peak_memory_stats()
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else memory_gb("VmHWM")
    connection.send(peak - before)


class Side:
    """One side's process."""

    def __init__(self, step_of, *arguments):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(step_of, *arguments, theirs), daemon=True)
        with unittest.mock.patch.dict(os.environ):
            if step_of is our_step:  # waits as learn_shapes.py does
                wait_briefly()
            self.process.start()
        theirs.close()

    def ask(self, order):
        """What the process answers to "step" (None), "outcome", "needs" or "end"."""
        self.connection.send(order)
        return self.connection.recv()

    def step(self):
        self.ask("step")

    def close(self):
        self.process.kill()
        self.process.join()


def assert_equal(ours, theirs):
    (loss, gradients), (wanted, wanted_gradients) = ours, theirs
    assert abs(loss - wanted) <= TOLERANCE["loss"] * abs(wanted), (loss, wanted)
    assert gradients.keys() == wanted_gradients.keys()
    worst = 0.0
    for name, gradient in wanted_gradients.items():
        if gradient is None:
            assert gradients[name] is None, name
            continue
        error = abs(gradients[name] - gradient).max() / max(abs(gradient).max(), ZERO)
        assert error <= TOLERANCE["gradient"], (name, error)
        worst = max(worst, error)
    print(f"equal: loss {loss:.6g} and {wanted:.6g}, gradients within {worst:.1e} of their largest value")


def measure(net, size, arguments):
    """Ratios of time and memory, and what our step needs (None on a GPU)."""
    config = config_of(net, size, arguments.batch_size, arguments.device)
    T, B, device, precision = config.timesteps, config.batch_size, arguments.device, arguments.precision
    other = arguments.theirs or precision
    narrow = f", {precision}" if precision == other else f", ours {precision}, theirs {other}"
    narrow = "" if precision == other == "32-true" else narrow
    ours = Side(our_step, config, arguments.threads, device, precision)
    theirs = Side(their_step, config, arguments.threads, device, other)
    try:
        assert_equal(ours.ask("outcome"), theirs.ask("outcome"))
        name = f"training step, {net}, {size} ({T} + {T} time steps, batch {B}{narrow})"
        time = alternate(name, ours.step, theirs.step, arguments.runs, first=device != "cpu" or bool(narrow))
        needed = None if device != "cpu" else ours.ask("needs")
        memory = compare(f"peak memory, {net}, {size}{narrow}", [(ours.ask("end"), theirs.ask("end"))], "GB")
    finally:
        for side in (ours, theirs):
            side.close()
    return [time, memory], needed


def main():
    parser = argparse.ArgumentParser("benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NEURONS, default=["li", "lif", "ann"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["demo", "paper"])
    parser.add_argument("--batch_size", type=int, help="recordings per batch (default: by size)")
    parser.add_argument("--runs", type=int, default=2, help="pairs of steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--theirs", choices=("32-true", "bf16-mixed"), help="their precision (default: ours)")
    parser.add_argument("--save", action="store_true", help="write a table into benchmarks/results")
    arguments = parser.parse_args()
    machine = machine_line(threads=arguments.threads, dtype="float32", device=arguments.device)
    print(machine)
    torch.set_num_threads(arguments.threads)
    ratios, limited, failed = [], [], []
    if arguments.device == "cpu":
        speeds = limits.speeds()
        peak = (
            f"{speeds[0] / 1e9:.3g} GFLOP/s of a large float32 product, {speeds[1] / 1e9:.3g} GB/s of a copy"
        )
    for size, net in itertools.product(arguments.sizes, arguments.nets):
        try:
            found, needed = measure(net, size, arguments)
            ratios += found
            if needed:
                limited.append(limits.row(f"{net}, {size}", needed, speeds, found[0].ours))
                print(f"at {peak}: {limited[-1]}", flush=True)
        except (AssertionError, EOFError, OSError) as error:  # the others are still to be had
            failed.append(f"not measured: {net}, {size}: {error or 'a side ended, of too little memory?'}")
            print(failed[-1], flush=True)
        if arguments.save and ratios:
            rows = [*table_of(ratios), *(["", f"{peak}:", "", *limits.TABLE, *limited] if limited else [])]
            write_rows("step", rows, machine, arguments.device, arguments.precision)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
