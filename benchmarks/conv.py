"""Convolution over frequencies against torch's own, forward and backward, over shapes: the rule of `auto`.

    python3 -m benchmarks.conv [--runs 2] [--precision bf16-mixed] [--device cuda] [--save]

Values and gradients are asserted equal first, in full float32; a GPU is then timed as torch sets it: direct
convolution in TF32, the products of the spectral one in float32.  In bf16-mixed the direct one is bfloat16's,
the spectral one is not; a last row says what its products would take in bfloat16, and how far off they are.
After each shape: how many times fewer multiplications frequencies need
(`convolution.multiplications`), and what `auto` takes, which is wrong where the other way is faster by more
than 5 %: see `ADVANTAGE` and `LEAST` of `spectral_native` and `spectral_torch`.  Without units for bfloat16
`auto` is direct in float32, and has a row of its own against the spectral way.
"""

import argparse

import torch

from benchmarks.paired import alternate, machine_line, write_table
from nrf.fast import spectral_torch
from nrf.fast.convolution import convolve, has_matrix_units, multiplications, spectral_is_faster

SHAPES = {  # frames, channels, height and width, channels out, kernel
    "the paper's second layer": (80, 144, 75, 144, 7),
    "8 frames of it": (8, 144, 75, 144, 7),
    "its norse-1.1.0 bank": (40, 192, 75, 192, 7),
    "half the field": (80, 144, 37, 144, 7),
    "36 fields": (80, 36, 75, 36, 7),
    "12 fields": (80, 12, 75, 12, 7),
    "the demo's second layer": (640, 12, 12, 12, 7),
    "that of 64 x 64 pixels": (1280, 12, 16, 12, 7),
    "that, 36 fields": (1280, 36, 16, 36, 7),
    "5 x 5": (40, 64, 75, 64, 5),
    "the paper's third layer": (80, 144, 37, 3, 5),
}
PRODUCTS = 50  # timed together


def step(method, frames, weight, probe, narrow=False):
    """Output and gradients; probe: the gradient at the output, by dtype."""
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=narrow):
        out = convolve(frames, weight, method)
    return out, *torch.autograd.grad(out, (frames, weight), probe[out.dtype])


def measure(name, runs, device, narrow):
    n, C, size, N, k = SHAPES[name]
    frames, grad = (
        torch.randn(n, channels, size, size, device=device).contiguous(memory_format=torch.channels_last)
        for channels in (C, N)
    )
    frames.requires_grad_()
    weight = torch.randn(N, C, k, k, device=device, requires_grad=True)
    probe = {grad.dtype: grad, torch.bfloat16: grad.bfloat16()}
    few = frames.detach()[:2].requires_grad_(), weight, {grad.dtype: grad[:2]}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        results = step("spectral", *few), step("direct", *few)
    for actual, wanted in zip(*results, strict=True):
        assert (actual - wanted).abs().max() < 1e-5 * wanted.abs().max()
    direct, spectral = multiplications(frames.shape, weight.shape, device)
    with torch.autocast(device, torch.bfloat16, enabled=narrow):
        taken = "spectral" if spectral_is_faster(frames, weight) else "direct"
    saved = f"{direct / spectral:.2g} times fewer multiplications, {direct:.2g} direct: auto takes {taken}"
    ratio = alternate(
        f"convolution, {name}: {n} x {C} to {N}, {size} x {size}, kernel {k}; {saved}",
        lambda: step("spectral", frames, weight, probe, narrow),
        lambda: step("direct", frames, weight, probe, narrow),
        runs,
    )
    if taken == "spectral" or not narrow or device != "cpu" or has_matrix_units():
        check(ratio.median if taken == "spectral" else 1 / ratio.median)
        return [ratio]
    auto = alternate(
        f"auto, in float32, against frequencies, {name}",
        lambda: step("auto", frames, weight, probe, narrow),
        lambda: step("spectral", frames, weight, probe, narrow),
        runs,
    )
    check(min(auto.median, ratio.theirs / auto.ours))
    return [ratio, auto]


def check(advantage):
    """advantage: how many times as long the best other way takes."""
    if advantage < 1 / 1.05:
        print("  auto is WRONG here")


def measure_products(name, runs):
    """The products of the spectral way, in float32 against bfloat16."""
    _, C, size, N, k = SHAPES[name]
    points, tiles = spectral_torch.layout(size, k).circle, spectral_torch.CHUNK["cpu"]
    ours = torch.randn(points, tiles, C), torch.randn(points, C, N), torch.empty(points, tiles, N)
    theirs = tuple(x.bfloat16() for x in ours)
    for a, b, out in (ours, theirs):
        torch.bmm(a, b, out=out)
    error = ((theirs[2] - ours[2]).norm() / ours[2].norm()).item()
    assert 0 < error < 1e-2, error

    def products(a, b, out):
        for _ in range(PRODUCTS):
            torch.bmm(a, b, out=out)

    return alternate(
        f"products of {name} over frequencies, in bfloat16 {error:.1e} off in norm, against float32",
        lambda: products(*ours),
        lambda: products(*theirs),
        runs,
    )


def main():
    parser = argparse.ArgumentParser("benchmarks.conv", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2, help="pairs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--save", action="store_true", help="write a table into benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, precision = arguments.device, arguments.precision
    machine = machine_line(device=device, precision=precision, passes="forward and backward")
    print(machine)
    narrow = precision == "bf16-mixed"
    ratios = [ratio for name in SHAPES for ratio in measure(name, arguments.runs, device, narrow)]
    if narrow and device == "cpu":
        ratios.append(measure_products(next(iter(SHAPES)), arguments.runs))
    if arguments.save:
        write_table("conv", ratios, machine, device, precision)


if __name__ == "__main__":
    main()
