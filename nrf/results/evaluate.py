"""Errors of trained networks in pixels, as the paper measures them, over whole data sets.

    python3 evaluate.py data/spatial logs/*/version_*/checkpoints/last.ckpt --out results

prints Markdown tables: each network and initialisation over its seeds, beside two baselines (always the
centre of the field; the centroid of the window's events so far); by size and velocity as the folders of the
recordings state them, by shape, and over the time since the warm-up.  An error is the distance of predicted
and true position, averaged over a window's time steps and shapes; quartiles are over windows.  Windows are
those that a network was trained with.
"""

import contextlib
import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from nrf.config import result_affecting
from nrf.data.dataset import EventBatch, ShapeDataset, loader
from nrf.network.coordinates import unit_to_pixel
from nrf.pictures.plots import error_boxes
from nrf.results import operations
from nrf.results.tables import (
    PUBLISHED_PX,
    Result,
    grouped,
    initialisation_name,
    network_name,
    pooled,
    published_set,
)
from nrf.system.files import whole_file
from nrf.training.checkpoints import Trained, find_checkpoints, load_trained, pick_device
from nrf.training.module import RECORDINGS_SHAPES, ShapesModel
from nrf.training.persistence import CheckpointError
from nrf.training.run import WINDOW

CENTRE, CENTROID = "always the centre", "events' centroid"  # baselines
CONDITION = re.compile(r"v(?P<velocity>[\d.]+)-p(?P<density>[\d.]+)-s(?P<size>[\d.]+)_\d(?P<changing>\d)\d\d")


def condition_of(path: str | Path) -> dict[str, Any]:
    """What a recording's folder says about it: velocity, event density and size, else its name alone."""
    name = Path(path).parent.name
    found = CONDITION.fullmatch(name)
    if not found:
        return {"folder": name}
    pixels = float(found["size"])
    size = "changing" if found["changing"] == "1" else "random" if pixels == 0 else pixels
    return {"size": size, "velocity": float(found["velocity"]), "density": float(found["density"])}


def tracking_errors_px(model: ShapesModel, batch: EventBatch) -> Tensor:
    """Distances (T, B, N) in pixels between the predicted and true positions of a batch's windows."""
    tracking, _, labels_px = model.track(batch)
    predicted_px = unit_to_pixel(tracking.coordinates, model.config.resolution)
    return torch.linalg.vector_norm(predicted_px - labels_px, dim=-1)


def baseline_errors_px(batch: EventBatch, data: ShapeDataset) -> dict[str, Tensor]:
    """The same distances for the two baselines: {name: (T, B, N)}.

    The centroid is the mean position of all events since the window's beginning, warm-up included, up to the
    frame that a time step sees last; the middle of pixel k lies at k + 1/2.  Before any event: the centre.
    """
    (H, W), B = data.resolution, len(batch.counts)
    centre = torch.tensor([H / 2, W / 2], dtype=torch.float64)
    frames, cells = 2 * data.window, 2 * H * W
    row = torch.repeat_interleave(torch.arange(B), batch.counts) * frames + batch.events // cells
    h, w = batch.events // W % H + 0.5, batch.events % W + 0.5
    n, along_h, along_w = (
        torch.bincount(row, weights.double(), B * frames).view(B, frames).cumsum(1)
        for weights in (torch.ones_like(h), h, w)
    )
    centroid = torch.stack([along_h, along_w], -1) / n.clamp_min(1)[..., None]  # B frames 2
    centroid = torch.where(n[..., None] > 0, centroid, centre)[:, -data.timesteps :, None]
    labels_px = batch.labels.double()
    return {
        name: torch.linalg.vector_norm(guess - labels_px, dim=-1).transpose(0, 1)
        for name, guess in ((CENTRE, centre), (CENTROID, centroid))
    }


def evaluate(
    trained: Trained,
    data: ShapeDataset,
    batch_size: int | None = None,
    num_workers: int = 0,
    baselines: bool = False,
    each: Callable[[int, Tensor], None] | None = None,
    count: bool = False,
) -> tuple[Result, list[Result]]:
    """The Result of a `Trained` network over a ShapeDataset, and those of the baselines if they are asked
    for.

    each(index, errors_px (T, N)) is called for every window.  count: operations, too.
    CheckpointError where a network predicts no position.
    """
    model, settings = trained.model, trained.settings
    names = RECORDINGS_SHAPES if data.n_classes == len(RECORDINGS_SHAPES) else range(data.n_classes)
    own = Result(
        network_name(settings),
        initialisation_name(settings),
        settings["seed"],
        trained.path,
        trained.error_px,
        result_affecting(settings),
    )
    others = {name: Result(name) for name in (CENTRE, CENTROID) if baselines}
    batches, i = loader(data, batch_size or settings["batch_size"], False, num_workers), 0
    device = next(model.parameters()).device
    with torch.inference_mode(), tqdm(total=len(data), unit="window", disable=None) as bar:
        for batch in batches:
            on_device = type(batch)(*(part.to(device, non_blocking=True) for part in batch))
            errors_px = tracking_errors_px(model, on_device).cpu().double()
            if not errors_px.isfinite().all():
                raise CheckpointError(f"{trained.path}: predicts positions that are not finite")
            indices = range(i, i + len(batch.counts))
            conditions = [condition_of(data.files[k // data.chunks]) for k in indices]
            own.add(errors_px, conditions, names)
            if count:
                frames, state = model.warmed_up(on_device)
                own.operations += operations.count(model.net, frames, state and state.network)
            if others:
                for name, errors in baseline_errors_px(batch, data).items():
                    others[name].add(errors, conditions, names)
            if each:
                for k in indices:
                    each(k, errors_px[:, k - i])
            i += len(batch.counts)
            bar.update(len(batch.counts))
    return own, list(others.values())


def write(out: Path, results: Sequence[Result], data_root: str | Path, split: str) -> None:
    """errors.csv, errors.json and errors.png in the folder `out`."""
    names = ["network", "initialisation", "seed", "checkpoint", "by", "value"]
    lines = []
    for result in results:
        about = [
            result.network,
            result.initialisation,
            result.seed,
            result.checkpoint and str(result.checkpoint),
        ]
        for key, spread in result.errors.items():
            lines.append(dict(zip(names, [*about, *key], strict=True)) | spread.summary())
    with whole_file(out / "errors.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    content = {"data": str(data_root), "split": split, "unit": "px", "errors": lines}
    with whole_file(out / "errors.json") as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")
    marks = PUBLISHED_PX.get(published_set(Path(data_root).name) or "", {})
    boxes = [
        (
            network,
            initialisation,
            pooled(group, ("all", "all")).summary(),
            marks.get(network, {}).get(initialisation or ""),
        )
        for (network, initialisation), group in grouped(results).items()
    ]
    with whole_file(out / "errors.png") as partial:
        error_boxes({f"{Path(data_root).name}, {split}": boxes}, partial)


def run(
    data_root: str | Path,
    checkpoints: Sequence[str | Path],
    out: str | Path | None = None,
    split: str = "val",
    batch_size: int | None = None,
    num_workers: int = 0,
    device: str = "auto",
    operations: bool = False,
) -> list[Result]:
    """All results of what `nrf evaluate` names, baselines last; writes the tables to the folder `out`."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch_size {batch_size}: expected 1 or more")
    if num_workers < 0:
        raise ValueError(f"--num_workers {num_workers}: expected 0 or more")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    folder = Path(out) if out else None
    results, baselines = [], {}
    with contextlib.ExitStack() as stack:
        writer = None
        if folder:
            partial = stack.enter_context(whole_file(folder / "windows.csv"))
            writer = csv.writer(stack.enter_context(partial.open("w", newline="")))
            writer.writerow(["checkpoint", "recording", "window", "error_px", "error_px of each shape"])
        for path in find_checkpoints(checkpoints):
            trained = load_trained(path, pick_device(device))
            window = {name: trained.settings[name] for name in WINDOW if name in trained.settings}
            data = open_windows(data_root, split, window, trained)
            new = str(window) not in baselines
            own, others = evaluate(
                trained,
                data,
                batch_size,
                num_workers,
                baselines=new,
                each=_row_writer(writer, path, data) if writer else None,
                count=operations,
            )
            results.append(own)
            if new:
                baselines[str(window)] = others
    for k, others in enumerate(baselines.values(), start=1):
        for other in others:  # windows of another length see other labels
            other.network += f", windows {k}" if len(baselines) > 1 else ""
    results += [other for others in baselines.values() for other in others]
    if folder:
        write(folder, results, data_root, split)
    return results


def open_windows(data_root: str | Path, split: str, window: dict[str, Any], trained: Trained) -> ShapeDataset:
    """The recordings in the windows that a network was trained with."""
    data = ShapeDataset(data_root, split=split, **window)
    if data.n_classes != (tracked := trained.model.config.n_classes):
        raise ValueError(
            f"{trained.path} tracks {tracked} shapes, recordings in {data_root} have {data.n_classes}"
        )
    return data


def _row_writer(writer: Any, checkpoint: Path, data: ShapeDataset) -> Callable[[int, Tensor], None]:
    def write_row(index: int, errors_px: Tensor) -> None:
        file, chunk = divmod(index, data.chunks)
        row = [checkpoint, data.files[file], chunk, errors_px.mean(), *errors_px.mean(0)]
        writer.writerow([f"{v:.6f}" if torch.is_tensor(v) else v for v in row])

    return write_row
