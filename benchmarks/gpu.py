"""Everything that only a GPU can tell, in one command that survives being cut off.

python3 -m benchmarks.gpu --out DIR [--minutes 9] [--resume CHECKPOINT] [--data DIR]
                          [--size tiny --device cpu]

Parts run one after the other, each in processes of its own, and what they print is appended to DIR/gpu.md at
once: fused kernels against the readable loops, in float32 and bfloat16; a training step that may not wait for
the device; --strategy=dp; step time and peak memory against the published way at the paper's batches; scans,
convolutions and growth.  The time that is left trains the paper's LI network on recordings rendered here;
DIR/last.ckpt (below 16 MB) and DIR/errors.csv are copied every minute, and --resume trains on from such a
checkpoint.  --size tiny goes through all parts on a CPU in a few minutes.
"""

import argparse
import contextlib
import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.paired import machine_line
from benchmarks.step import batch_of, config_of

NETS = ("li", "lif", "ann")
PRECISIONS = ("32-true", "bf16-mixed")
CLOSE = {"32-true": 1e-3, "bf16-mixed": 5e-2}  # of gradients, relative to their largest value
TINY = {
    "resolution": (32, 32), "timesteps": 6, "batch_size": 2, "n_spatial_scales": 1, "n_temporal_scales": 2,
    "n_angles": 1, "n_ratios": 1,
}  # fmt: skip
SPEND = {
    "kernels": 90,
    "waiting": 60,
    "dp": 60,
    "steps": 240,
    "scans": 60,
    "convolutions": 45,
    "growth": 60,
}  # s
SAVE_S = 60  # seconds of training between copies of its checkpoint
TRAINING = (
    "--net=li --batch_size=8 --enable_progress_bar=false --num_sanity_val_steps=0 --log_every_n_steps=10"
)


def config_at(net, size, device, **more):
    if size == "paper":
        return config_of(net, size, device=device, **more)
    coordinate = "dsnt" if net == "ann" else "dsntli"
    base = config_of(net, "demo", device=device, **more)
    return dataclasses.replace(base, coordinate=coordinate, n_classes=3, skip_connections=0, **TINY)


def step_of(config, device, precision):
    """Loss and gradients of one training step, `ShapesModel` on a sparse batch."""
    from nrf.training.module import ShapesModel

    torch.manual_seed(0)
    model = ShapesModel(**dataclasses.asdict(config)).to(device)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
        tracking, _, labels_px = model.track(batch_of(config, device))
        terms, *_ = model.terms(tracking, labels_px)
    (terms["loss"] + terms.get("spike_reg", 0)).backward()
    return terms["loss"].detach(), {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


def kernels(size, device):
    """Fused kernels against the readable loops on the device, a small field, forward and backward."""
    wrong = 0
    for net in NETS:
        for precision in PRECISIONS:
            ways = []
            for backend in ("auto", "loop"):
                small = dataclasses.replace(config_at(net, "tiny", device), temporal_backend=backend)
                ways.append(step_of(dataclasses.replace(small, convolution="direct"), device, precision))
            (loss, gradients), (plain, plain_gradients) = ways
            worst = max(
                ((gradients[name] - g).abs().max() / g.abs().max().clamp_min(1e-5)).item()
                for name, g in plain_gradients.items()
            )
            good = gradients.keys() == plain_gradients.keys() and worst < CLOSE[precision]
            wrong += not good
            verdict = "equal" if good else "DIFFERENT"
            print(f"{net}, {precision}: {verdict}, loss {loss:.6g} and {plain:.6g}, gradients to {worst:.1e}")
    return wrong


def waiting(size, device):
    """One training step in which waiting for the device is an error."""
    for net in NETS:
        config = config_at(net, size, device)
        step_of(config, device, "32-true")  # compiles and allocates
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            step_of(config, device, "32-true")
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        print(f"{net}: a step waits for nothing")
    return 0


def commands(arguments, data):
    """{part: the words of its processes}."""
    size, device = arguments.size, arguments.device
    here = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--size",
        size,
        "--device",
        device,
        "--out",
        str(arguments.out),
    ]
    bench = [sys.executable, "-m"]
    of_step = [*bench, "benchmarks.step", "--device", device, "--runs", "3" if size == "paper" else "1"]
    sizes = ["--sizes", "paper" if size == "paper" else "demo"]
    train = [sys.executable, "-m", "nrf", "learn_shapes", str(data), str(arguments.out / "logs")]
    dp = [*train, *words_of_training(arguments), "--strategy=dp", "--devices=1", "--max_steps=2"]
    quick = size != "paper"
    return {
        "kernels": [[*here, "--part", "kernels"]],
        "waiting": [[*here, "--part", "waiting"]],
        "dp": [dp],
        "steps": [
            [*of_step, *sizes, "--nets", net, "--precision", precision]
            for net in NETS
            for precision in (PRECISIONS if not quick else PRECISIONS[:1])
        ],
        "scans": [
            [
                *bench,
                "benchmarks.scan",
                "--device",
                device,
                *(["--batch", "1", "--runs", "1"] if quick else []),
            ]
        ],
        "convolutions": [] if quick else [[*bench, "benchmarks.conv", "--device", device]],
        "growth": [] if quick else [[*bench, "benchmarks.scaling", "--device", device]],
    }


def words_of_training(arguments):
    words = TRAINING.split() + ["--accelerator=" + ("gpu" if arguments.device == "cuda" else "cpu")]
    if arguments.size != "paper":
        words += [
            f"--{name}={value}" for name, value in TINY.items() if name not in ("resolution", "batch_size")
        ]
        words += ["--batch_size=2", "--num_workers=0"]
    return words


class Record:
    """DIR/gpu.md, written line by line, so that nothing is lost when the machine is taken away."""

    def __init__(self, out):
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "gpu.md"

    def line(self, text=""):
        print(text, flush=True)
        with self.path.open("a") as file:
            print(text, file=file, flush=True)


def run(record, words, seconds):
    """A process, its lines recorded as they come; it is ended after `seconds`.  Whether it went well."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.alarm(max(1, round(seconds)))
    try:
        lines = [record.line(f"    {line.rstrip()}") or line for line in process.stdout]
        code = process.wait()
    finally:
        signal.alarm(0)
    if code:
        why = f"cut off after {seconds:.0f} s" if code == -signal.SIGKILL else f"exit code {code}"
        record.line(f"    ({why}{'' if lines else ', it printed nothing'})")
    return code == 0


def training(record, arguments, data, until):
    """Train the LI network in parts of `SAVE_S`, keeping checkpoint and errors in DIR after each."""
    part, checkpoint = 0, arguments.resume
    while (left := until - time.monotonic()) > (20 if arguments.size == "paper" else 5):
        spend = min(SAVE_S if arguments.size == "paper" else 5, left - 5)
        clock = time.strftime("%H:%M:%S", time.gmtime(spend))
        words = [sys.executable, "-m", "nrf", "learn_shapes", str(data), str(arguments.out / "logs")]
        words += [*words_of_training(arguments), f"--max_time=00:{clock}", "--max_epochs=100000"]
        words += [f"--ckpt_path={checkpoint or 'last'}"]
        if not run(record, words, left):
            return
        checkpoint, part = None, part + 1
        keep(record, arguments.out)
        if arguments.size != "paper":
            return


def keep(record, out):
    """Copy the newest checkpoint and the errors of all validations out of the logs."""
    with contextlib.suppress(FileNotFoundError):
        last = max(
            out.glob("logs/*/version_*/checkpoints/last.ckpt"), default=None, key=lambda p: p.stat().st_mtime
        )
        errors = next(out.glob("logs/*.csv"), None)
        if last:
            shutil.copy(last, out / "last.ckpt")
            record.line(f"    kept last.ckpt, {last.stat().st_size / 1e6:.1f} MB")
        if errors:
            shutil.copy(errors, out / "errors.csv")
            record.line(f"    validations so far: {len(errors.read_text().splitlines())}")


def recordings(record, arguments):
    """A data set to train on: --data, or rendered on all cores."""
    if arguments.data:
        return arguments.data
    data = arguments.out / "data"
    if arguments.size == "paper":
        words = "40 --generator published --scales 10 20 40 80 --velocities 0.2"
    else:
        words = "5 --resolution 32 32 --frames 20 --scales 10 --velocities 0.5"
    n, *words = words.split()
    run(record, [sys.executable, "-m", "nrf", "generate_data", n, str(data), *words], 180)
    return data


def main(argv=None):
    parser = argparse.ArgumentParser("benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.md, last.ckpt and errors.csv")
    parser.add_argument("--minutes", type=float, default=9, help="in all (default: %(default)s)")
    parser.add_argument("--resume", help="checkpoint of an earlier call to train on from")
    parser.add_argument("--data", type=Path, help="data set to train on (default: rendered into DIR/data)")
    parser.add_argument("--parts", nargs="+", choices=[*SPEND, "training"], default=[*SPEND, "training"])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", default="paper", choices=("paper", "tiny"))
    parser.add_argument("--part", choices=("kernels", "waiting"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.part:
        return int(
            bool({"kernels": kernels, "waiting": waiting}[arguments.part](arguments.size, arguments.device))
        )
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; expected one, or --device cpu --size tiny")
    until, record = time.monotonic() + 60 * arguments.minutes, Record(arguments.out)
    record.line(machine_line(device=arguments.device, size=arguments.size))
    data = recordings(record, arguments)
    for part, processes in commands(arguments, data).items():
        if part not in arguments.parts:
            continue
        record.line(f"\n## {part}\n")
        ends = min(time.monotonic() + SPEND[part], until)
        for words in processes:
            if (left := ends - time.monotonic()) < 1:
                record.line("    (no time left)")
                break
            run(record, words, left)
    if "training" in arguments.parts:
        record.line("\n## training\n")
        training(record, arguments, data, until)
    return 0


if __name__ == "__main__":
    sys.exit(main())
