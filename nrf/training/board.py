"""What a run records about itself: TensorBoard's pages beyond the published ones, and run.json."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from nrf import __version__
from nrf.pictures.plots import bank_picture, prediction_panel
from nrf.system.files import write_whole
from nrf.training.callbacks import PICTURE_EVERY, Drawing
from nrf.training.stopping import Stopped

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import Tensor

    from nrf.data.dataset import EventBatch
    from nrf.training.module import ShapesModel, Tracking

PICTURE_FRAMES = 10  # last ones of a window, which the picture of a prediction shows as its input
RECORD = "run.json"  # what a run records about itself, beside its TensorBoard files
PACKAGES = ("torch", "pytorch-lightning", "norse", "numpy", "tensorboard")
FIRST = ("net", "init_scheme_spatial", "init_scheme_temporal", "seed", "lr")  # to compare runs by
LAYOUT = {  # TensorBoard's page of custom scalars: charts by title, each of the tags that match
    "Error in pixels": {
        "training and validation": ["Multiline", [r"train/error_px$", r"val/error_px$"]],
        "validation, by shape": ["Multiline", [r"val/error_px(/.*)?$"]],
    },
    "Loss": {
        "all terms": ["Multiline", [r"train/loss$", r"val/loss$"]],
        "distance of the coordinates": ["Multiline", [r"train/norm$", r"val/norm$"]],
        "regularisers": ["Multiline", [r"(train|val)/(spike_)?reg$"]],
    },
    "Neurons": {
        "time constants in ms, by temporal channel": ["Multiline", [r"tau_ms/.*"]],
        "mean output, by temporal channel (lif) and of the read-out": ["Multiline", [r"train/out/.*"]],
    },
    "Optimiser": {"learning rate": ["Multiline", [r"lr-.*"]]},
}


class Board(Drawing):
    """What TensorBoard shows beyond the published: a page about the run, a layout of its charts, settings to
    compare runs by; and every PICTURE_EVERY steps and at each validation time constants in ms, weights, the
    receptive fields with their names, and a prediction."""

    shown_at: int | None = None  # the step
    validated: tuple[Tensor, ...] = ()  # what `panel` gave

    def state_dict(self) -> dict[str, Any]:
        return {"shown_at": self.shown_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shown_at = state["shown_at"]

    def on_fit_start(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        if not trainer.is_global_zero:
            return
        writer = trainer.logger.experiment
        for summary in comparable_settings(model.hparams):
            writer.file_writer.add_summary(summary)
        writer.add_custom_scalars(LAYOUT)

    def on_train_batch_start(
        self, trainer: pl.Trainer, model: ShapesModel, batch: EventBatch, batch_idx: int
    ) -> None:
        if trainer.global_step % PICTURE_EVERY == 0:
            self._show(trainer, model, trainer.global_step)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        model: ShapesModel,
        outputs: Any,
        batch: EventBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.validated = outputs["panel"] if outputs else self.validated

    def on_validation_end(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        if not trainer.sanity_checking:
            step = trainer.global_step - 1  # that of a validation's other numbers
            if trainer.is_global_zero:
                arrays = (image.float().cpu().numpy() for image in self.validated)
                self.picture(trainer, "image/validation", step, prediction_panel, *arrays)
            self._show(trainer, model, step)

    def _show(self, trainer: pl.Trainer, model: ShapesModel, step: int) -> None:
        """The network as it is: time constants, weights, fields; once a step."""
        if not trainer.is_global_zero or self.shown_at == step:
            return
        self.shown_at = step
        self._time_constants(trainer, model, step)
        for l, layer in enumerate(model.net.channels[0].spatiotemporal):
            weight = layer.spatial.spatial.weight.detach()
            trainer.logger.experiment.add_histogram(f"weights/layer_{l}", weight, step)
        first = model.net.channels[0].spatiotemporal[0].spatial.spatial.weight.detach()
        if model.config.init_scheme_spatial == "rf":
            for tag, *arrays in named_fields(first.float().cpu().numpy(), model.net.fields().numpy()):
                self.picture(trainer, f"fields/{tag}", step, bank_picture, *arrays)

    def _time_constants(self, trainer: pl.Trainer, model: ShapesModel, step: int) -> None:
        if not model.net.neuron.has_tau:
            return
        channels, n = model.net.channels, model.config.n_temporal_scales
        for k, channel in enumerate(channels[:: len(channels) // n]):
            tau_ms = 1000 / channel.spatiotemporal[0].temporal.tau_mem_inv.item()
            trainer.logger.experiment.add_scalar(f"tau_ms/channel_{k}", tau_ms, step)
        read_out_ms = 1000 / model.net.classifier[1].tau_mem_inv.item()
        trainer.logger.experiment.add_scalar("tau_ms/read-out", read_out_ms, step)


def panel(frames: Tensor, tracking: Tracking, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the picture of a prediction shows of a batch's first sample, at the end of its window: frames (one
    alone is a few scattered pixels), and each shape's heat map and target."""
    seen = frames[-PICTURE_FRAMES:, 0].sum((0, 1))
    return seen, tracking.heatmaps[-1, 0].detach(), targets[-1, 0]


def comparable_settings(settings: Mapping[str, Any]) -> list:
    """The summaries of TensorBoard's HPARAMS page, whose table begins with the settings in FIRST."""
    plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
    page, *session = hparams(plain, dict.fromkeys(("val/error_px", "hp_metric")))  # the pixels first
    plugin_data = page.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in FIRST  # these come first, the others by the alphabet
    plugin_data.content = content.SerializeToString()
    return [page, *session]


def named_fields(weight: np.ndarray, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The first layer's kernels (out, in, h, w), by the field of the bank `rows` that they started as:
    (tag, kernels, rows) for each polarity and order of derivative. Stacked frames are averaged."""
    n_out, n_in, *size = weight.shape
    polarities = weight.reshape(n_out, n_in // 2, 2, *size).mean(1)
    for p, polarity in enumerate(("off", "on")):
        for dx, dy in sorted({(int(dx), int(dy)) for dx, dy in rows[:, 3:5]}):
            order = (rows[:, 3] == dx) & (rows[:, 4] == dy)
            _, unique = np.unique(rows[order][:, :5].round(6), axis=0, return_index=True)
            yield f"{polarity}/order_{dx}_{dy}", polarities[order][unique, p], rows[order][unique]


class Record(Callback):
    """run.json in the run's folder: its command, data, versions and commit, and how it goes; the same as text
    in TensorBoard.  Of a run that ended, the bytes that it logged, too: fewer are logs that were cut.

    `state` is running, then finished, stopped (by a signal) or failed; of a run that was killed it stays
    running, and `report.py` looks whether the process still lives.
    """

    def __init__(self, data_root: str | Path) -> None:
        self.about: dict[str, Any] = {"data": str(Path(data_root).resolve())}

    def on_fit_start(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        packages = {name: importlib.metadata.version(name) for name in PACKAGES}
        device = model.device
        self.about |= {
            "state": "running",
            "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
            "versions": {"nrf": __version__, "python": platform.python_version()} | packages,
            "commit": commit(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "host": platform.node(),
            "pid": os.getpid(),
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "max_epochs": trainer.max_epochs,
        }
        self._write(trainer)
        if trainer.is_global_zero:
            trainer.logger.experiment.add_text("run", as_markdown(self.about), trainer.global_step)

    def on_fit_end(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        self._end(trainer, state="finished")

    def on_exception(self, trainer: pl.Trainer, model: ShapesModel, exception: BaseException) -> None:
        stopped = isinstance(exception, KeyboardInterrupt | Stopped | SIGTERMException)
        reason = " ".join(str(exception).split())[:300]
        with contextlib.suppress(OSError):  # a full disk, say: what stopped the run is reported, not this
            self._end(trainer, **{"state": "stopped"} if stopped else {"state": "failed", "reason": reason})

    def _end(self, trainer: pl.Trainer, **how: str) -> None:
        if "state" not in self.about:  # it never began
            return
        self.about |= how
        if how["state"] != "failed":
            self.about["logged_bytes"] = sum(trainer.logger.sizes().values())
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            text = json.dumps(self.about | {"epochs": trainer.current_epoch}, indent=1) + "\n"
            write_whole(Path(str(trainer.logger.log_dir)) / RECORD, text.encode())


def commit() -> str | None:
    """The git commit of this program, with + where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + "+" * changed.returncode if head.returncode == 0 else None


def as_markdown(about: Mapping[str, Any]) -> str:
    """The text page of a run."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = {name: about[name] for name in ("data", "commit", "device", "host", "started")}
    rows = "\n".join(f"| {name} | {value or 'unknown'} |" for name, value in lines.items())
    command = " \\\n        ".join(textwrap.wrap(about["command"], 100, break_long_words=False))
    return f"    {command}\n\n| | |\n| --- | --- |\n{rows}\n| versions | {versions} |"
