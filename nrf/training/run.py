"""One training run, from settings to its last checkpoint."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from nrf.config import Config, run_name
from nrf.data.dataset import ShapeDataset, loader
from nrf.system.memory import keep_memory
from nrf.system.text import printable
from nrf.training.advice import Advice
from nrf.training.board import Board, Record
from nrf.training.callbacks import Published, explain, quiet
from nrf.training.module import ShapesModel
from nrf.training.persistence import WANTED, CheckpointError, RunLogger, read_checkpoint, where_to_resume
from nrf.training.resuming import Resume
from nrf.training.stopping import TIME_IS_UP, Stopped
from nrf.training.trainer import build_trainer, first_decides, writes

WINDOW = ("timesteps", "network_delay", "stack_frames", "sum_frames", "dataset_filter", "resolution")


def open_data(
    data_root: str | Path, settings: dict[str, Any]
) -> tuple[dict[str, ShapeDataset], dict[str, Any]]:
    """The train and val recordings of these settings, and the settings completed from them."""
    window = {name: settings[name] for name in WINDOW if name in settings}
    data = {split: ShapeDataset(data_root, split=split, **window) for split in ("train", "val")}
    found = {"resolution": list(data["train"].resolution), "n_classes": data["train"].n_classes}
    if settings.get("n_classes", found["n_classes"]) != found["n_classes"]:
        raise ValueError(f"--n_classes: the recordings in {data_root} have {found['n_classes']} shapes")
    return data, found | settings


def settings_and_flags(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a command line: the settings of `Config` that it gives, and the Trainer's flags."""
    own = {"data_root", "log_root", "ckpt_path", "config"}
    fields = {setting.name for setting in dataclasses.fields(Config)}
    settings = {k: v for k, v in arguments.items() if k in fields and v is not None}
    return settings, {k: v for k, v in arguments.items() if k not in own | fields}


def train(arguments: dict[str, Any]) -> pl.Trainer:
    """Train what the command line asks for, say where it ended, and return Lightning's trainer."""
    quiet()
    keep_memory()
    settings, flags = settings_and_flags(arguments)
    Config(**settings)  # a bad value is reported before anything is read
    data, settings = open_data(arguments["data_root"], settings)
    model_settings = dataclasses.asdict(Config(**settings))
    pl.seed_everything(settings["seed"], workers=True, verbose=False)
    model = ShapesModel(**model_settings)
    if model.config.compile:
        model.net.compile_normalisation()

    name = run_name(model.config, arguments["data_root"])
    logger = RunLogger(
        arguments["log_root"],
        name,
        reuse=arguments["ckpt_path"] == "last",
        silent=arguments["logger"] is False,
    )
    advice = Advice()
    callbacks: list[pl.Callback] = [advice]
    if writes(flags):
        published = Published(arguments["log_root"], name, arguments["data_root"])
        callbacks = [published, Board(), Record(arguments["data_root"]), *callbacks, LearningRateMonitor()]
    trainer = build_trainer(flags, logger, callbacks)
    rank, n_processes = trainer.global_rank, trainer.world_size
    size, workers, seed = (settings[name] for name in ("batch_size", "num_workers", "seed"))
    trainer.precision_plugin.convert_module(model)  # before a checkpoint's weights go into it
    whole = len(data["train"]) >= size  # batches, of what there is to train on
    training = loader(
        data["train"], size, not trainer.overfit_batches, workers, seed, whole, rank, n_processes
    )
    validation = loader(data["val"], size, False, workers, rank=rank, n_processes=n_processes)
    resume = Resume(trainer, training, data)
    trainer.callbacks.insert(0, resume)

    def decide() -> tuple:
        checkpoint, version = where_to_resume(
            arguments["ckpt_path"], Path(arguments["log_root"]) / name, model_settings
        )
        content = read_checkpoint(checkpoint) if checkpoint else {}
        if checkpoint:
            resume.check(content, model_settings)
        return checkpoint, version, content.get("global_step"), content.get("logs")

    checkpoint, version, *logged = first_decides(trainer, decide)
    if version is not None:
        logger.resume(version, *logged)
    with contextlib.closing(logger):
        try:
            fit(trainer, model, (training, validation), checkpoint)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            if advice.started or not checkpoint or explain(error, arguments) is not None:
                raise
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{checkpoint}: damaged or foreign ({reason:.200}); {WANTED}") from error
    rank_zero_only(summarise)(trainer, arguments["log_root"])
    return trainer


def fit(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    loaders: tuple[DataLoader, DataLoader],
    checkpoint: str | Path | None,
) -> None:
    """Train from a checkpoint, if any, until training is over or the time is up."""
    try:
        trainer.fit(model, *loaders, ckpt_path=checkpoint, weights_only=True)
    except Stopped as stop:
        if stop.args[0] != TIME_IS_UP:
            raise
        rank_zero_only(print)("--max_time is over; to resume: the same command with --ckpt_path last")


def summarise(trainer: pl.Trainer, log_root: str | Path) -> None:
    published = next((c for c in trainer.callbacks if isinstance(c, Published)), None)
    if published is None:
        print("trained and validated; nothing was kept, as --fast_dev_run and --barebones ask")
        return
    error = f"best error {published.best_error_px:.2f} px"
    if published.best_error_px == math.inf:
        error = f"no validation in {trainer.global_step} steps"
    best = checkpoint = trainer.checkpoint_callback and trainer.checkpoint_callback.best_model_path
    if checkpoint == "":
        last = Path(trainer.checkpoint_callback.dirpath) / "last.ckpt"
        best = last if last.is_file() else ""
    print(
        f"{error} after {trainer.current_epoch} epochs; checkpoint: {printable(best or 'none')}"
        + (f"; look: tensorboard --logdir {printable(log_root)}" if not trainer.logger.silent else "")
    )
