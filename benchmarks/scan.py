"""The scans over time against Norse's cells in a loop, that loop compiled, and SpikingJelly.

python3 -m benchmarks.scan [--batch 8] [--runs 3] [--compile] [--device cuda] [--save]

Forward and backward of 40 steps of B x 144 x 75 x 75 cells, the paper's second layer, one time constant.
Outputs and gradients are asserted equal first, on a small part in float64, and near in float32 as they are
timed.  The surrogate's alpha is 1, which is what Norse 1.1.0 takes in any case, and where SpikingJelly's
SuperSpike agrees; its LIF has a fixed time constant, and fires at the threshold, too, which these currents do
not meet.  It is left out where it is not installed: `pip install --no-deps spikingjelly==2.0.0 loguru` (its
dependencies would exchange torch); on a GPU it takes its own kernels.  Last, the time that a copy of as many
bytes takes as any scan must move.  At 8 recordings a side takes up to 9 GB.
"""

import argparse
import functools
import importlib
import warnings

import torch

from benchmarks.paired import alternate, machine_line, write_table
from nrf.network.neurons import LIBoxParameters, LIFBoxParameters, leaky_integrate, leaky_integrate_and_fire
from nrf.network.reference import norse_li, norse_lif
from nrf.system.memory import keep_memory

T, CELLS = 40, (144, 75, 75)
V_TH, ALPHA = 0.125, 1.0


def ours(neuron, current, rate_hz):
    if neuron == "li":
        return leaky_integrate(current, LIBoxParameters(tau_mem_inv=rate_hz))[0]
    p = LIFBoxParameters(tau_mem_inv=rate_hz, v_th=torch.tensor(V_TH), alpha=torch.tensor(ALPHA))
    return leaky_integrate_and_fire(current, p)[0]


def norse(neuron, current, rate_hz):
    rest = torch.zeros_like(current[0])
    if neuron == "li":
        return norse_li(current, rate_hz, rest)[0]
    return norse_lif(current, rate_hz, rest, v_th=torch.tensor(V_TH))[0]


def spikingjelly(neuron, current, rate_hz):
    from spikingjelly.activation_based.neuron import LIFNode
    from spikingjelly.activation_based.surrogate import SuperSpike

    assert neuron == "lif"
    tau = 1 / (1e-3 * rate_hz.item())
    node = LIFNode(
        tau=tau, v_threshold=V_TH, v_reset=0.0, surrogate_function=SuperSpike(ALPHA), step_mode="m"
    )
    return node(current)


def step(way, neuron, current, rate_hz, probe):
    """Output and gradients at the current and, where it has one, the rate."""
    out = way(neuron, current, rate_hz)
    return out, *torch.autograd.grad(out, (current, rate_hz), probe, allow_unused=True)


def assert_equal(way, neuron, current, rate_hz, probe):
    small = current.detach()[:, :1, :2].double().requires_grad_()
    arguments = neuron, small, rate_hz.detach().double().requires_grad_(), probe[:, :1, :2].double()
    for actual, wanted in zip(step(ours, *arguments), step(way, *arguments), strict=True):
        if wanted is not None:
            torch.testing.assert_close(actual, wanted.double(), rtol=1e-9, atol=1e-9)
            assert wanted.abs().max() > 0


def assert_near(actual, wanted):
    """Of what is timed, in float32, where rounding may flip a spike in ten thousand."""
    for value, reference in zip(actual, wanted, strict=True):
        if reference is not None:
            assert (value - reference).norm() < 1e-2 * reference.norm()


def copy_compulsory(current, buffer):
    """Moves what any scan must, five tensors of all steps: forward it reads currents and writes outputs,
    backward it reads outputs' gradients and what was kept, and writes the currents'.  Theirs over ours is the
    part of a copy's bandwidth that the scan reaches."""
    half = len(current) // 2
    for _ in range(5):  # each reads half a tensor and writes half a one
        buffer[:half].copy_(current[:half])


def main():
    parser = argparse.ArgumentParser("benchmarks.scan", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3, help="pairs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="against Norse's loop compiled, too")
    parser.add_argument("--save", action="store_true", help="write a table into benchmarks/results")
    arguments = parser.parse_args()
    keep_memory()  # as learn_shapes.py does; here for both sides
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    shape = (T, arguments.batch, *CELLS)
    machine = machine_line(shape="x".join(map(str, shape)), dtype="float32", device=arguments.device)
    print(machine)
    torch.manual_seed(0)
    current = torch.randn(shape, device=arguments.device).requires_grad_()
    rate_hz = torch.tensor(91.29, device=arguments.device, requires_grad=True)
    probe = torch.randn(shape, device=arguments.device)
    ways = {"Norse's cells in a loop": norse}
    if arguments.compile:
        ways["that loop compiled"] = torch.compile(norse)
    try:
        importlib.import_module("spikingjelly.activation_based.neuron")
        ways["SpikingJelly"] = spikingjelly
    except ImportError as error:
        print(f"not measured: SpikingJelly ({error})")
    ratios = []
    for neuron in ("li", "lif"):
        mine = functools.partial(step, ours, neuron, current, rate_hz, probe)
        for name, way in ways.items():
            if name == "SpikingJelly" and neuron == "li":
                continue
            assert_equal(
                way if way is not ways.get("that loop compiled") else norse, neuron, current, rate_hz, probe
            )
            theirs = functools.partial(step, way, neuron, current, rate_hz, probe)
            assert_near(mine(), theirs())
            ratios.append(
                alternate(f"{neuron} scan against {name}", mine, theirs, arguments.runs, first=False)
            )
        copying = functools.partial(copy_compulsory, current.detach(), torch.empty_like(probe))
        ratios.append(alternate(f"{neuron} scan against copying as much", mine, copying, arguments.runs))
    if arguments.save:
        write_table("scan", ratios, machine, arguments.device)


if __name__ == "__main__":
    main()
