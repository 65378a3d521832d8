"""Train the paper's network to track shapes:  python3 learn_shapes.py DATA LOGS [flags].

`ShapesModel` ties network, coordinates and losses to Lightning; `main` is the command.  Every setting is a
field of `config.Config`, every flag of Lightning's Trainer is accepted as it is.
"""

import dataclasses
import math
import os
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from nrf.config import Config
from nrf.data.dataset import EventBatch, dense_frames
from nrf.network.coordinates import COORDINATES, RECTIFIERS, pixel_to_unit, unit_to_pixel
from nrf.network.losses import REGULARISERS, coordinate_distance, gaussian_targets, spike_regulariser
from nrf.network.model import SpatioTemporalModel
from nrf.training.board import panel
from nrf.training.callbacks import PICTURE_EVERY
from nrf.training.persistence import (
    TrainingError,
    diverged,
)
from nrf.training.ranks import mean_of_all, n_processes, sum_of_all
from nrf.training.trainer import optimizers

# large tensors on huge pages: on a CPU, touching fresh pages of 4 KB costs more than the arithmetic on them
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
RECORDINGS_SHAPES = ("circle", "square", "triangle")  # GERD's order; names of `val/error_px/...`


class TrackingState(NamedTuple):
    network: Any  # NetworkState
    coordinate: Any  # (B, N, 2) of dsntli, else None


class Tracking(NamedTuple):
    heatmaps: Tensor  # (T, B, N, h, w), rectified
    coordinates: Tensor  # (T, B, N, 2), units
    state: TrackingState
    activities: Tensor  # (channels,)


class ShapesModel(pl.LightningModule):
    """Network, rectifier and coordinate; settings are the fields of `Config`, by name."""

    validation: Any  # a ModuleDict of MeanMetrics; torch's type does not say of what

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = Config(**settings)
        self.save_hyperparameters(dataclasses.asdict(self.config))
        self.net = SpatioTemporalModel(self.config)
        self.coordinate = COORDINATES[self.config.coordinate]()
        names = ["loss", "norm", "reg", "error_px"] + (["spike_reg"] if self.net.neuron.spikes else [])
        n = self.config.n_classes
        shapes = RECORDINGS_SHAPES if n == len(RECORDINGS_SHAPES) else range(n if n > 1 else 0)
        names += [f"error_px/{shape}" for shape in shapes]
        self.validation = torch.nn.ModuleDict({name: MeanMetric() for name in [*names, "hp_metric"]})

    def setup(self, stage: str) -> None:
        if not self.config.skip_connections:
            for name, parameter in self.named_parameters():  # no part of the loss: DDP would wait for them
                parameter.requires_grad_(parameter.requires_grad and not name.endswith("skip_weight"))

    def forward(self, frames: Tensor, state: TrackingState | None = None) -> Tracking:
        """Positions in frames (T, B, C, H, W); `state` carries over from the previous chunk, None is rest."""
        state = state or TrackingState(None, None)
        response = self.net(frames, state.network)
        maps = response.heatmaps.to(torch.promote_types(response.heatmaps.dtype, torch.float32))
        heatmaps = RECTIFIERS[self.config.rectification](maps)
        coordinates, coordinate_state = self.coordinate(heatmaps, state.coordinate)
        return Tracking(
            heatmaps, coordinates, TrackingState(response.state, coordinate_state), response.activities
        )

    def track(self, batch: EventBatch) -> tuple[Tracking, Tensor, Tensor]:
        """The tracking of a batch's window, warmed up without gradients, its frames and labels_px (T, B, N,
        2)."""
        frames, state = self.warmed_up(batch)
        return self(frames, state), frames, batch.labels.transpose(0, 1)

    def warmed_up(self, batch: EventBatch) -> tuple[Tensor, TrackingState | None]:
        """The frames of a batch's window, and the state after its warm-up, None for rest."""
        config = self.config
        warmup, frames = dense_frames(
            batch, config.resolution, config.timesteps, config.stack_frames, config.sum_frames
        )
        state = None
        if self.needs_warmup():
            with torch.no_grad():
                state = self(warmup).state
        return frames, state

    def needs_warmup(self) -> bool:
        """Whether a warm-up changes anything: not in ReLU nets whose coordinate has no state either,
        unless batch normalisation counts (FIDELITY 13)."""
        has_state = self.net.neuron.state is not None or getattr(self.coordinate, "has_state", True)
        return bool(has_state or (self.config.batch_normalization and self.training))

    def terms(self, tracking: Tracking, labels_px: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Loss terms by published name, the error in pixels per shape (N,), and the targets."""
        config = self.config
        target = pixel_to_unit(labels_px, config.resolution)
        targets = gaussian_targets(target, tracking.heatmaps.shape[-2:], sum_of_all)
        norm = coordinate_distance(tracking.coordinates, target)
        reg = REGULARISERS[config.regularization](tracking.heatmaps, targets) * config.regularization_scale
        terms = {"loss": norm + reg, "norm": norm, "reg": reg}
        if self.net.neuron.spikes:
            terms["spike_reg"] = spike_regulariser(
                mean_of_all(tracking.activities, labels_px.shape[1]),
                config.regularization_activity_mean,
                config.regularization_activity_scale,
            )
        predicted_px = unit_to_pixel(tracking.coordinates.detach(), config.resolution)
        error_px = torch.linalg.vector_norm(predicted_px - labels_px, dim=-1).mean((0, 1))
        return terms, error_px, targets

    def training_step(self, batch: EventBatch, batch_idx: int) -> dict[str, Any]:
        tracking, frames, labels_px = self.track(batch)
        terms, error_px, targets = self.terms(tracking, labels_px)
        loss = terms["loss"] = terms["loss"] + terms.get("spike_reg", 0)
        logged = {**terms, "error_px": error_px.mean()}
        if n_processes() > 1:
            means = sum_of_all(torch.stack([value.float() for value in logged.values()])) / n_processes()
            logged = dict(zip(logged, means, strict=True))
        step, value = self.late_loss(logged["loss"])
        if not math.isfinite(value):
            folder = getattr(self.trainer.checkpoint_callback, "dirpath", None)
            raise TrainingError(diverged(f"the loss is {value}", step, folder))
        size = len(batch.counts)
        self.log("train/error_px", logged.pop("error_px"), prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in logged.items()}, batch_size=size)
        self.log("loss", logged["loss"], prog_bar=True, logger=False)
        outputs = dict(enumerate(tracking.activities)) if self.net.neuron.spikes else {}
        outputs[len(self.net.channels)] = tracking.heatmaps.mean()
        self.log_dict({f"train/out/{i}": value for i, value in outputs.items()})
        result: dict[str, Any] = {"loss": loss}
        if self.global_step % PICTURE_EVERY == 0:
            result["panel"] = panel(frames, tracking, targets)
        return result

    def late_loss(self, loss: Tensor) -> tuple[int, float]:
        """(step, loss) to check: on a CPU this step's, on a GPU the one before, whose copy is there already,
        so that the GPU is never waited for.  What is saved is checked once more, in `persistence.py`."""
        if not loss.is_cuda:
            return self.global_step, loss.item()
        copied = torch.empty((), pin_memory=True).copy_(loss.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        before, self.copied_loss = getattr(self, "copied_loss", None), (self.global_step, copied, event)
        if before is None:
            return self.global_step, 0.0
        step, value, event = before
        event.synchronize()
        return step, value.item()

    def on_validation_epoch_start(self) -> None:
        # the same to the last digit however many processes there are; other conversions of a module reset it
        for metric in () if torch.backends.mps.is_available() else self.validation.values():
            metric.set_dtype(torch.float64)

    def validation_step(self, batch: EventBatch, batch_idx: int) -> dict[str, Any] | None:
        size, shown = len(batch.counts), None
        if size:
            tracking, frames, labels_px = self.track(batch)
            terms, error_px, targets = self.terms(tracking, labels_px)
            shapes = [name for name in self.validation if name.startswith("error_px/")]
            # hp_metric is without spike_reg (kept: FIDELITY 15)
            values = terms | {"error_px": error_px.mean(), "hp_metric": terms["loss"]}
            values |= dict(zip(shapes, error_px, strict=True)) if shapes else {}
            for name, value in values.items():
                self.validation[name].update(value, size)
            shown = {"panel": panel(frames, tracking, targets)} if batch_idx == 0 else None
        else:  # the share of a last batch may be empty: the others wait for its sums all the same
            sum_of_all(torch.zeros((), device=self.device))
            if self.net.neuron.spikes:
                mean_of_all(torch.zeros(len(self.net.channels), device=self.device), 0)
        for name, metric in self.validation.items():
            tag, bar = name if name == "hp_metric" else f"val/{name}", name == "error_px"
            self.log(tag, metric, on_step=False, on_epoch=True, prog_bar=bar, batch_size=max(size, 1))
        return shown

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list]:
        return optimizers(self.named_parameters(), self.config)
