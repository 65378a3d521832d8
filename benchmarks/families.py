"""An easy task from different receptive fields: does the exact family train better, equal or worse?

python3 -m benchmarks.families [SEEDS ...] [--out families]    a minute or two a run, four runs a seed

Each seed renders its own data and trains from the published fields, from uniform noise, from the exact
fields, and from exact fields of which only deviations, angles and amplitudes train.  The error is the best of
all epochs in pixels on recordings not trained on.  Runs that `families.csv` in the folder has are not made
again.
"""

import argparse
import csv
import statistics
from pathlib import Path

from benchmarks.paired import machine_line
from nrf.commands import generate_data, learn_shapes
from nrf.training import run as run_module

RENDERING = "--generator clean --shapes circle --resolution 48 48 --scales 18 --velocities 0.5 --frames 128"
RECORDINGS = 200
TRAINING = (
    "--net li --timesteps 20 --skip_connections 1 --dropout 0 --n_spatial_scales 3 --n_angles 1 --n_ratios 1 "
    "--batch_size 8 --lr_decay 0.85 --max_epochs 4 --num_workers 0 --accelerator cpu "
    "--num_sanity_val_steps 0 --enable_model_summary false"
)
STARTS = {
    "published": "--init_scheme_spatial rf --init_scheme_temporal rf",
    "uniform": "--init_scheme_spatial uniform --init_scheme_temporal uniform",
    "exact": "--init_scheme_spatial rf --init_scheme_temporal rf --receptive_fields exact",
    "exact, as fields": "--init_scheme_spatial rf --init_scheme_temporal rf --receptive_fields exact "
    "--train_receptive_fields 1",
}


def error_px(start, seed, out):
    """Train once; the best error in pixels over epochs."""
    flags = f"{TRAINING} {STARTS[start]} --seed {seed} --enable_progress_bar false"
    arguments = [str(out / f"data-{seed}"), str(out / "logs"), *flags.split()]
    trainer = run_module.train(learn_shapes.parse(arguments))
    return next(c for c in trainer.callbacks if isinstance(c, run_module.Published)).best_error_px


def done(path):
    """{(start, seed): error in pixels} of the runs in a CSV file."""
    if not path.exists():
        return {}
    return {(row["start"], int(row["seed"])): float(row["error_px"]) for row in csv.DictReader(path.open())}


def table(errors, seeds):
    """Errors by start and seed, mean and standard deviation, and the mean difference from published ones."""
    print(f"{'start':<18}" + "".join(f"{seed:>7}" for seed in seeds) + "    mean  deviation  minus published")
    for start in STARTS:
        own = [errors[start, seed] for seed in seeds]
        lines = f"{start:<18}" + "".join(f"{error:7.2f}" for error in own) + f"{statistics.mean(own):8.2f}"
        if len(own) > 1:
            gaps = [error - errors["published", seed] for error, seed in zip(own, seeds, strict=True)]
            spread = f"{statistics.mean(gaps):+.2f} +- {statistics.stdev(gaps):.2f}"
            lines += f"{statistics.stdev(own):11.2f}  {spread if start != 'published' else ''}"
        print(lines.rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=int, help="of data and training (default: 0 to 4)")
    parser.add_argument(
        "--out", type=Path, default=Path("families"), help="folder for data, logs and results"
    )
    arguments = parser.parse_args()
    seeds, path = arguments.seeds or list(range(5)), arguments.out / "families.csv"
    arguments.out.mkdir(parents=True, exist_ok=True)
    errors = done(path)
    for seed in seeds:
        data = str(arguments.out / f"data-{seed}")
        words = [str(RECORDINGS), data, *RENDERING.split(), "--seed", str(seed)]
        if any((start, seed) not in errors for start in STARTS) and generate_data.main(words):
            raise SystemExit(1)
        for start in STARTS:
            if (start, seed) in errors:
                continue
            errors[start, seed] = error_px(start, seed, arguments.out)
            new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["start", "seed", "error_px"])
                writer.writerow([start, seed, f"{errors[start, seed]:.4f}"])
    print(machine_line(n=len(seeds)))
    table(errors, seeds)


if __name__ == "__main__":
    main()
