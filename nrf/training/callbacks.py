"""Around the training loop: what the published program leaves behind, and errors in a line."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from nrf.pictures.plots import kernel_grid, prediction_panel
from nrf.system.archive import save_whole
from nrf.system.files import locked, write_whole
from nrf.training.persistence import TrainingError

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from nrf.data.dataset import EventBatch
    from nrf.training.module import ShapesModel

PICTURE_EVERY = 1000  # optimiser steps between pictures, kernels and time constants, as published


class Drawing(Callback):
    """Pictures that cannot be drawn never stop a run: the first failure is reported, with its cause."""

    complained = False

    def picture(
        self, trainer: pl.Trainer, tag: str, step: int, draw: Callable[..., np.ndarray], *arrays: Any
    ) -> None:
        """Log what draw(*arrays) returns, uint8 (H, W, 3)."""
        try:
            trainer.logger.experiment.add_image(tag, draw(*arrays), step, dataformats="HWC")
        except Exception as error:  # noqa: BLE001  no picture is worth the run, whatever went wrong
            if not self.complained:
                print(f"no picture {tag} at step {step}: {error!r}", file=sys.stderr)
            self.complained = True


class Published(Drawing):
    """What the published program leaves behind: a CSV line per validation, and every `PICTURE_EVERY` steps
    kernels and time constants as files, pictures and histograms."""

    def __init__(self, log_root: str | Path, name: str, data_root: str | Path) -> None:
        self.log_root, self.name = Path(log_root), name
        self.csv = self.log_root / f"{name}_{Path(data_root).name}.csv"
        self.best_error_px = math.inf
        self.error_px: float | None = None  # of the last validation, until training resumes
        # of the CSV, this run's; None: those up to the step of an earlier version's checkpoint
        self.rows: int | None = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best_error_px": self.best_error_px, "error_px": self.error_px, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_error_px, self.rows = state["best_error_px"], state.get("rows")

    def on_validation_end(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            error_px = trainer.callback_metrics["val/error_px"].item()
            self.error_px, self.best_error_px = error_px, min(self.best_error_px, error_px)
            norm = trainer.callback_metrics["val/norm"].item()
            self._write_csv(f"{trainer.global_step},{norm:.10f},{trainer.logger.version}\n")
            self.rows = (self.rows or 0) + 1

    def _write_csv(
        self, line: str = "", keep: Callable[[list[str]], list[str]] = lambda lines: lines
    ) -> None:
        """Rewrites the CSV, which other runs write too, with the lines to keep and a new one."""
        with locked(self.csv):
            lines = self.csv.read_text().splitlines(keepends=True) if self.csv.exists() else []
            kept = keep(lines)
            if line or kept != lines:
                write_whole(self.csv, "".join([*kept, line]).encode())

    def on_train_start(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        """What was logged after the checkpoint that a run resumes from is logged again."""
        if not trainer.is_global_zero:
            return
        ours = re.compile(rf"(\d+),[^,]*,{trainer.logger.version}\n").fullmatch

        def keep(lines: list[str]) -> list[str]:
            steps = [int(match[1]) for match in map(ours, lines) if match]
            if self.rows is None:
                self.rows = sum(step <= trainer.global_step for step in steps)
            place = itertools.count()
            return [line for line in lines if not ours(line) or next(place) < self.rows]

        if trainer.logger.resumes:
            self._write_csv(keep=keep)
        else:
            self.rows = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, model: ShapesModel, batch: EventBatch, batch_idx: int
    ) -> None:
        step, self.error_px = trainer.global_step, None
        if step % PICTURE_EVERY or not trainer.is_global_zero:
            return
        # channels that share weights share copies and pictures
        saved = functools.cache(lambda convolution: convolution.weight.detach().cpu())
        drawn = functools.cache(lambda weight: kernel_grid(weight.flatten(0, 1).float().numpy()))
        kernels = [
            (saved(layer.spatial.spatial), f"channel/{i}/{l}")
            for i, channel in enumerate(model.net.channels)
            for l, layer in enumerate(channel.spatiotemporal)
        ] + [(saved(model.net.classifier[0]), "classifier")]
        taus = {}
        if model.net.neuron.has_tau:
            taus = {
                l: [
                    channel.spatiotemporal[l].temporal.tau_mem_inv.detach().cpu()
                    for channel in model.net.channels
                ]
                for l in range(len(model.net.channels[0].spatiotemporal))
            }
        prefix = f"v{trainer.logger.version}_{self.name}"
        save_whole(self.log_root / f"{prefix}_kernels_{step}.dat", kernels)
        save_whole(self.log_root / f"{prefix}_taus_{step}.dat", taus)
        for layer, rates in taus.items():
            trainer.logger.experiment.add_histogram(f"taus/block/{layer}", torch.stack(rates), step)
        for weight, name in kernels:
            self.picture(trainer, f"kernel/{name}", step, drawn, weight)

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: ShapesModel, outputs: Any, batch: EventBatch, batch_idx: int
    ) -> None:
        if "panel" in outputs and trainer.is_global_zero:
            arrays = (image.float().cpu().numpy() for image in outputs["panel"])
            self.picture(trainer, "image/prediction", trainer.global_step - 1, prediction_panel, *arrays)


def quiet() -> None:
    """Keep from the user what Lightning tells its developers, and its advertisements."""
    warnings.filterwarnings("ignore", ".*(LeafSpec|`srun` command)")
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    logger.addFilter(lambda record: "Tip: For seamless" not in record.getMessage())


def explain(error: BaseException, arguments: Mapping[str, Any]) -> str | None:
    """The line for the user that an error in training deserves, None for one that is the program's own."""
    text = str(error).strip()
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        flags = ", ".join(f"--{name} {arguments[name]}" for name in ("batch_size", "timesteps", "precision"))
        return (
            f"out of memory with {flags} ({text.splitlines()[0].split('. ')[0]}); try a smaller --batch_size "
            "with --accumulate_grad_batches, --precision bf16-mixed, smaller --timesteps, or another device"
        )
    if "loading state_dict" in text:
        return (
            f"--ckpt_path {arguments['ckpt_path']}: its weights do not fit these settings; expected their own"
        )
    if "returned nan values" in text:  # --detect_anomaly, after the trace of the operation
        return f"{text.splitlines()[0]} The operation is in the trace above; try a smaller --lr"
    if "DataLoader worker" in text:
        return f"{text.splitlines()[0]} It reads data; was memory short? Try fewer --num_workers"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; earlier checkpoints are as they were"
    known = ImportError, OSError, TrainingError, ValueError, MisconfigurationException
    return text if isinstance(error, known) else None
