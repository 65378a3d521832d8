"""Train leaky integrators to follow a circle in events, once from receptive fields and once from noise.

    make demo,  or  python3 -m nrf demo [--seed 0] [--out demo]

renders a small data set, trains twice, evaluates both networks, and films the better one; pictures and the
film go to the folder `demo`.  A few minutes on two cores, no GPU.
"""

import csv
from pathlib import Path

from nrf.commands import evaluate, generate_data, learn_shapes, track
from nrf.commands.parser import CommandLine
from nrf.data.dataset import ShapeDataset, recordings
from nrf.pictures.plots import kernel_bank, learning_curves
from nrf.results.evaluate import CENTRE, run
from nrf.results.tables import tables
from nrf.system.files import whole_file
from nrf.theory.receptive_fields import KERNEL_SIZES, spatial_kernels, spatial_parameters
from nrf.training.callbacks import Published
from nrf.training.run import train as train_run

RENDERING = "--generator clean --shapes circle --resolution 48 48 --scales 18 --velocities 0.5 --frames 128"
RECORDINGS = 200
BANK = {"n_spatial_scales": 3, "n_angles": 1, "n_ratios": 1}
TIMESTEPS, DELAY = 20, 1
TRAINING = (
    f"--net li --timesteps {TIMESTEPS} --network_delay {DELAY} --skip_connections 1 --dropout 0 "
    + "".join(f"--{name} {value} " for name, value in BANK.items())
    + "--batch_size 8 --lr_decay 0.85 --max_epochs 4 --num_workers 0 --accelerator cpu "
    "--num_sanity_val_steps 0 --enable_model_summary false"
)
SCHEMES = {"receptive fields": "rf", "uniform": "uniform"}


def train(scheme, data_root, logs, seed):
    """Train with this initialisation; returns the best checkpoint's path, and (epochs, errors in pixels)."""
    flags = f"{TRAINING} --init_scheme_spatial {scheme} --init_scheme_temporal {scheme} --seed {seed}"
    trainer = train_run(learn_shapes.parse([str(data_root), str(logs), *flags.split()]))
    published = next(c for c in trainer.callbacks if isinstance(c, Published))
    version = str(trainer.logger.version)
    norms = [float(norm) for _, norm, v in csv.reader(published.csv.open()) if v == version]
    to_px = ShapeDataset(data_root, split="val", timesteps=TIMESTEPS).resolution[0] / 2
    curve = range(1, len(norms) + 1), [norm * to_px for norm in norms]
    return trainer.checkpoint_callback.best_model_path, curve


def main(argv=None):
    parser = CommandLine("nrf demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of data and training")
    parser.add_argument("--out", default="demo", help="folder to write to")
    arguments = parser.parse_args(argv)
    out, seed = Path(arguments.out), arguments.seed

    rows = spatial_parameters(*BANK.values())
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "kernels.png") as partial:
        kernel_bank(spatial_kernels(rows, KERNEL_SIZES[0]).numpy(), rows.numpy(), partial)

    data_root = out / f"data-{seed}"
    code = generate_data.main([str(RECORDINGS), str(data_root), *RENDERING.split(), "--seed", str(seed)])
    if code:
        return code
    runs = {name: train(scheme, data_root, out / "logs", seed) for name, scheme in SCHEMES.items()}
    checkpoints = [checkpoint for checkpoint, _ in runs.values()]

    parsed = evaluate.command_line().parse_args(
        [str(data_root), *checkpoints, "--out", str(out / "errors"), "--device", "cpu"]
    )
    results = run(parsed)
    errors_px = {result.network: result.errors["all", "all"].mean for result in results}
    with whole_file(out / "learning.png") as partial:
        curves = {name: curve for name, (_, curve) in runs.items()}
        learning_curves(curves, partial, errors_px[CENTRE])
    print("\n" + tables(results, f"{data_root}: errors in pixels on recordings not trained on") + "\n")

    best = min(results[: len(runs)], key=lambda result: result.errors["all", "all"].mean)
    recording = recordings(data_root, "val")[0]
    code = track.main(
        [str(best.checkpoint), str(recording), "--out", str(out / "track.gif"), "--device", "cpu"]
    )
    print(f"see {out}/kernels.png, learning.png, errors/, track.gif; tensorboard --logdir {out}/logs")
    return code
