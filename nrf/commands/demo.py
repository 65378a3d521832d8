"""The paper's point in five minutes: what single frames cannot see, neurons that remember can.

    make demo,  or  python3 -m nrf demo [--seed 0] [--out demo]

renders a circle that moves slowly in much noise, too little of it in any one frame to be seen, and trains
four networks on it: ReLU units, which see one frame at a time, and leaky integrators, each from receptive
fields and from uniform noise, as `nrf reproduce` does.  The folder `demo` gets errors/, learning.png,
kernels.png, and film.gif with the four networks side by side.  Five minutes on two cores, no GPU.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nrf.commands import generate_data, learn_shapes
from nrf.commands.parser import CommandLine, finish
from nrf.data.dataset import recordings
from nrf.data.recordings import Recording, read_recording
from nrf.pictures.films import Panel, film
from nrf.pictures.plots import Curve, kernel_bank, learning_curves
from nrf.results import evaluate
from nrf.results.logs import read_scalars
from nrf.results.report import ERROR
from nrf.results.reproduction import SIZES, SMALL_FIELD
from nrf.results.tables import tables
from nrf.results.track import delayed_labels, follow, frames_of
from nrf.system.files import whole_file
from nrf.theory.receptive_fields import KERNEL_SIZES, spatial_kernels, spatial_parameters
from nrf.training.checkpoints import load_trained
from nrf.training.run import train as train_run

SIZE = replace(
    SIZES["small"],
    recordings={"spatial": (240, f"{SMALL_FIELD} --scales 11 --velocities 0.04")},
    training=f"{SIZES['small'].training} --max_epochs=6",
)
FIELDS = "published"  # the receptive fields that the demo starts from
KINDS = {  # what they are called: (network, start)
    "single frames, uniform": ("ReLU-SF", "uniform"),
    "single frames, receptive fields": ("ReLU-SF", FIELDS),
    "leaky integrators, uniform": ("LI", "uniform"),
    "leaky integrators, receptive fields": ("LI", FIELDS),
}
FILM_FRAMES = 128
FPS = 12


def train(words: str, data_root: Path, logs: Path, seed: int) -> tuple[str, Curve]:
    """Train with these flags; returns the best checkpoint's path, and (epochs, errors in pixels)."""
    trainer = train_run(learn_shapes.parse([str(data_root), str(logs), *words.split(), "--seed", str(seed)]))
    errors = read_scalars(Path(str(trainer.logger.log_dir)), (ERROR,))[ERROR]
    errors_px = [errors[step] for step in sorted(errors)]
    return trainer.checkpoint_callback.best_model_path, (range(1, len(errors_px) + 1), errors_px)


def side_by_side(path: Path, recording: Recording, checkpoints: Mapping[str, str]) -> None:
    """A film of the networks {name: checkpoint} on a Recording, at `path`."""
    panels = []
    for name, checkpoint in checkpoints.items():
        model = load_trained(checkpoint).model
        track = follow(model, recording)
        panels.append(Panel(name, track.predicted_px[:FILM_FRAMES], track.heatmaps[:FILM_FRAMES]))
        labels_px = delayed_labels(recording, model.config.network_delay, model.config.n_classes)
    frames = np.stack([frame.numpy() for frame in frames_of(recording)])[:FILM_FRAMES]
    with whole_file(path, ending=path.suffix) as partial:
        film(partial, frames, labels_px[:FILM_FRAMES], panels, FPS)


def draw_fields(path: Path) -> None:
    """The bank of receptive fields that the networks start from, a PNG at `path`."""
    settings = learn_shapes.parse(["DATA", "LOGS", *SIZE.lines()["LI", FIELDS].split()])
    rows = spatial_parameters(*(settings[f"n_{name}"] for name in ("spatial_scales", "angles", "ratios")))
    kernels = spatial_kernels(rows, KERNEL_SIZES[0], FIELDS)
    with whole_file(path) as partial:
        kernel_bank(kernels.numpy(), rows.numpy(), partial)


def demonstrate(arguments: argparse.Namespace) -> None:
    """Everything that the demo leaves in its folder."""
    out, seed = Path(arguments.out), arguments.seed
    out.mkdir(parents=True, exist_ok=True)
    draw_fields(out / "kernels.png")
    data_root, (number, flags) = out / f"data-{seed}", SIZE.recordings["spatial"]
    if generate_data.main([str(number), str(data_root), *flags.split(), "--seed", str(seed)]):
        raise OSError(f"{data_root}: not rendered")
    lines = SIZE.lines()
    runs = {name: train(lines[kind], data_root, out / "logs", seed) for name, kind in KINDS.items()}
    checkpoints = {name: checkpoint for name, (checkpoint, _) in runs.items()}
    results = evaluate.run(data_root, list(checkpoints.values()), out / "errors", device="cpu")
    centre = next(result for result in results if result.network == evaluate.CENTRE)
    with whole_file(out / "learning.png") as partial:
        curves = {name: curve for name, (_, curve) in runs.items()}
        learning_curves(curves, partial, centre.errors["all", "all"].mean)
    print("\n" + tables(results, f"{data_root}: errors in pixels on recordings not trained on") + "\n")
    validation = recordings(data_root, "val")
    side_by_side(out / "film.gif", read_recording(validation[len(validation) // 2]), checkpoints)
    print(f"see {out}/film.gif, learning.png, kernels.png, errors/; tensorboard --logdir {out}/logs")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = CommandLine("nrf demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of data and training")
    parser.add_argument("--out", default="demo", help="folder to write to")
    return finish(parser.prog, demonstrate, parser.parse_args(argv))
