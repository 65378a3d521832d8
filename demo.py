"""Train leaky integrators to follow a circle in events, once from receptive fields and once from noise.

make demo,  or  python3 demo.py [--seed 0] [--out demo]:  renders a small data set, trains twice, prints the
errors in pixels and writes pictures and a video to the folder `demo`.  A few minutes on two cores, no GPU.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch

import generate_data
import learn_shapes
from coordinates import unit_to_pixel
from dataset import ShapeDataset, read_recording
from films import track_gif
from receptive_fields import KERNEL_SIZES, spatial_kernels, spatial_parameters
from visualization import kernel_bank, learning_curves

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


def centre_error_px(data):
    """The error in pixels of always guessing the centre of the field, over all windows of a ShapeDataset."""
    labels_px = torch.stack([data[i].labels for i in range(len(data))])
    return torch.linalg.vector_norm(labels_px - torch.tensor(data.resolution) / 2, dim=-1).mean().item()


def train(scheme, data_root, logs, seed):
    """Train with this initialisation; returns the checkpoint's path, its error in pixels, and (epochs,
    errors)."""
    flags = f"{TRAINING} --init_scheme_spatial {scheme} --init_scheme_temporal {scheme} --seed {seed}"
    trainer = learn_shapes.train(learn_shapes.parse([str(data_root), str(logs), *flags.split()]))
    published = next(c for c in trainer.callbacks if isinstance(c, learn_shapes.Published))
    version = str(trainer.logger.version)
    norms = [float(norm) for _, norm, v in csv.reader(published.csv.open()) if v == version]
    to_px = ShapeDataset(data_root, split="val", timesteps=TIMESTEPS).resolution[0] / 2
    curve = range(1, len(norms) + 1), [norm * to_px for norm in norms]
    return trainer.checkpoint_callback.best_model_path, published.best_error_px, curve


def follow(model, recording):
    """The model on a whole recording, from rest: frames (T, 2, H, W), positions in pixels and heat maps."""
    frames = torch.zeros(recording.shape, dtype=torch.uint8)
    frames[tuple(recording.events.T)] = 1
    model.eval()
    with torch.no_grad():
        tracking = model(frames[:, None])  # T 1 2 H W
    predicted_px = unit_to_pixel(tracking.coordinates, recording.shape[2:])
    return frames, predicted_px[:, 0], tracking.heatmaps[:, 0]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of data and training (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to (default: demo)")
    arguments = parser.parse_args()
    out, seed = arguments.out, arguments.seed

    rows = spatial_parameters(*BANK.values())
    out.mkdir(parents=True, exist_ok=True)
    kernel_bank(spatial_kernels(rows, KERNEL_SIZES[0]).numpy(), rows.numpy(), out / "kernels.png")

    data_root = out / f"data-{seed}"
    code = generate_data.main([str(RECORDINGS), str(data_root), *RENDERING.split(), "--seed", str(seed)])
    if code:
        sys.exit(code)
    data = ShapeDataset(data_root, split="val", timesteps=TIMESTEPS, network_delay=DELAY)
    results = {name: train(scheme, data_root, out / "logs", seed) for name, scheme in SCHEMES.items()}
    centre_px = centre_error_px(data)
    learning_curves({name: curve for name, (*_, curve) in results.items()}, out / "learning.png", centre_px)

    checkpoint, best_px, _ = min(results.values(), key=lambda result: result[1])
    model = learn_shapes.ShapesModel.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    recording = read_recording(data.files[0])
    frames, predicted_px, heatmaps = follow(model, recording)
    track_gif(
        out / "track.gif",
        frames[:-DELAY].numpy(),
        recording.labels[DELAY:].numpy(),
        predicted_px[:-DELAY].numpy(),
        heatmaps[:-DELAY].numpy(),
        title="Leaky integrators follow a circle",
    )
    print("\nerror in pixels")
    print(f"  always the centre   {centre_px:6.2f}")
    for name, (_, error_px, _) in results.items():
        print(f"  {name:<18}  {error_px:6.2f}   {centre_px / error_px:.1f} x better")
    print(f"see {out}/track.gif, {out}/kernels.png, {out}/learning.png; tensorboard --logdir {out}/logs")


if __name__ == "__main__":
    main()
