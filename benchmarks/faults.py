"""kill -9 at random moments of training and of rendering; then the same command again.  And hundreds of drawn
runs, stopped in all ways at all places, and resumed (`benchmarks/resuming.py`).

python3 -m benchmarks.faults [--kills 20] [--combinations 240] [--seed 0]

What comes out must be what an undisturbed command leaves, bit by bit: the weights, optimiser states and
callbacks of every checkpoint, the CSV, every scalar of TensorBoard; every byte of every recording.
Whatever lies there when the kill has hit must be whole.  Each command is a process of its own, forked with
PyTorch loaded.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.paired import machine_line
from benchmarks.resuming import left, try_many
from nrf.data.recordings import read_recording
from nrf.system.archive import ArchiveError, load_archive

RENDERING = "24 --scales 9 --velocities 0.7 --resolution 36 36 --frames 24 --workers 1".split()
TRAINING = [
    *"--timesteps=4 --batch_size=2 --n_spatial_scales=1 --n_temporal_scales=2 --n_angles=1".split(),
    *"--n_ratios=1 --num_workers=0 --accelerator=cpu --enable_progress_bar=false".split(),
    *"--enable_model_summary=false --log_every_n_steps=1 --ckpt_path=last".split(),
]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["nrf.commands.learn_shapes", "nrf.commands.generate_data"])
ROOT = Path(__file__).resolve().parents[1]


def command(module, words, output, variables):
    """In a process of its own: `module.main(words)` with these environment variables, what it says into a
    file, its exit code the process's."""
    os.setsid()
    os.environ.update(variables)
    multiprocessing.set_start_method("fork", force=True)  # of what it starts itself, as if called by a shell
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    words = [str(word) for word in words]
    sys.argv = [str(ROOT / f"{module}.py"), *words]  # by which Lightning starts further processes
    sys.exit(importlib.import_module(f"nrf.commands.{module}").main(words))


def start(module, words, folder, **variables):
    process = PROCESSES.Process(target=command, args=(module, words, folder / "output", variables))
    process.start()
    return process


def run(module, words, folder):
    """Runs a command to its end; its seconds. RuntimeError with its output if it fails."""
    began = time.perf_counter()
    process = start(module, words, folder)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"exit code {process.exitcode}:\n{(folder / 'output').read_text()}")
    return time.perf_counter() - began


def kill(module, words, folder, after_s):
    """kill -9 of a command and all its processes after so many seconds; whether it was still running."""
    process = start(module, words, folder)
    process.join(after_s)
    running = process.exitcode is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return running


def damaged(folder):
    """Files under their names that cannot be read, where a kill has hit."""
    bad = []
    for path in [*folder.rglob("[!.]*.ckpt"), *folder.rglob("[!.]*.dat")]:
        try:
            if path.suffix == ".ckpt" or "_kernels_" in path.name or "_taus_" in path.name:
                load_archive(path)
            else:
                read_recording(path)
        except (ArchiveError, ValueError) as error:
            bad.append(f"{path}: {error}")
    return bad


def kill_training(folder, kills, seed, epochs=8):
    """Kills training at `kills` random moments, one a run. Prints each; returns how many went wrong."""
    draw, data = random.Random(seed), folder / "data"
    run("generate_data", [RENDERING[0], data, *RENDERING[1:]], folder)
    whole, flags = folder / "whole", [*TRAINING, f"--max_epochs={epochs}"]
    spent = run("learn_shapes", [data, whole, *flags], folder)
    expected, wrong, twice = left(whole), 0, []
    for trial in range(kills):
        logs = folder / f"killed{trial}"
        moment, began = draw.uniform(0, spent), time.time()
        running = kill("learn_shapes", [data, logs, *flags], folder, moment)
        ended, bad, checkpoints = time.time(), damaged(logs), list(logs.rglob("[!.]*.ckpt"))
        twice.append(ended - max((path.stat().st_mtime for path in checkpoints), default=began))
        step = max((load_archive(path)["global_step"] for path in checkpoints), default=0)
        run("learn_shapes", [data, logs, *flags], folder)
        same = left(logs) == expected
        wrong += bool(bad) or not same
        print(
            f"training {trial}: killed {'' if running else 'after its end, '}after {moment:.2f} of "
            f"{spent:.2f} s with a checkpoint of step {step}; damaged files {len(bad)}; "
            f"{'the same bits' if same else 'DIFFERENT'}",
            flush=True,
        )
        shutil.rmtree(logs)
    print(f"training: {kills} kills, {wrong} went wrong")
    if twice:
        again = f"{statistics.median(twice):.1f} (median), {max(twice):.1f} at most"
        print(f"seconds done twice, of {spent:.1f}: {again}")
    return wrong


def kill_rendering(folder, kills, seed):
    """Kills rendering at `kills` random moments. Prints each; returns how many went wrong."""
    draw, whole = random.Random(seed), folder / "rendered"

    def recordings(root):
        files = (path for path in root.rglob("[!.]*") if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    spent = run("generate_data", [RENDERING[0], whole, *RENDERING[1:]], folder)
    expected, wrong = recordings(whole), 0
    for trial in range(kills):
        root = folder / f"rendered{trial}"
        words = [RENDERING[0], root, *RENDERING[1:]]
        moment = draw.uniform(0, spent)
        running = kill("generate_data", words, folder, moment)
        bad, kept = damaged(root), {path: path.stat().st_mtime_ns for path in root.rglob("[!.]*.dat")}
        run("generate_data", words, folder)
        same = recordings(root) == expected
        again = sum(path.stat().st_mtime_ns != at for path, at in kept.items())
        wrong += bool(bad) or bool(again) or not same
        print(
            f"rendering {trial}: killed {'' if running else 'after its end, '}after {moment:.2f} of "
            f"{spent:.2f} s with {len(kept)} of {RENDERING[0]} recordings, {again} of them rendered again; "
            f"damaged files {len(bad)}; {'the same bytes' if same else 'DIFFERENT'}",
            flush=True,
        )
        shutil.rmtree(root)
    print(f"rendering: {kills} kills, {wrong} went wrong")
    return wrong


def main(argv=None):
    parser = argparse.ArgumentParser("benchmarks.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--combinations", type=int, default=240, help="of settings and stops")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and combinations")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine_line(kills=args.kills, combinations=args.combinations, seed=args.seed))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        wrong = kill_training(folder, args.kills, args.seed) + kill_rendering(folder, args.kills, args.seed)
        return wrong + try_many(folder / "resuming", args.combinations, args.seed)


if __name__ == "__main__":
    sys.exit(bool(main()))
