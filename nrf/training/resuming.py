"""Where a run is, in its checkpoints under our own names, so that it resumes there whatever stopped it.

Checkpoints are saved at rest (`Stop` says when): what was begun is over, logged and counted, and nothing else
has begun.  Lightning's record of its loops is not kept; its counters follow from our place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.fit_loop import RestartStage
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor
from torch.utils.data import DataLoader

from nrf.config import result_affecting
from nrf.data.sampling import Batches, Position
from nrf.training.persistence import CheckpointError, RunLogger
from nrf.training.ranks import shares_of_all

if TYPE_CHECKING:
    from nrf.data.dataset import EventBatch, ShapeDataset
    from nrf.training.module import ShapesModel

# flags of the Trainer that alter a run's numbers
FLAGS: tuple[str, ...] = ("precision", "accumulate_grad_batches", "gradient_clip_val")
FLAGS += ("gradient_clip_algorithm", "limit_train_batches", "limit_val_batches", "overfit_batches")
FLAGS += ("val_check_interval", "check_val_every_n_epoch")
KEPT = ("seed", "lr", "lr_decay", "weight_decay")  # in the place, the optimiser and its schedule


@dataclasses.dataclass
class Place:
    """Where a run is: its position in the data, and what follows from no other part of a checkpoint."""

    position: Position
    batches: int = 0  # trained on since the start, each with its own dropout
    window: int = 0  # of them, whose gradients wait for the optimiser's step
    logged: int = 0  # TensorBoard's next step
    validation_due: bool = False


class EpochLoop(_TrainingEpochLoop):
    """Lightning's, which starts an epoch at any batch, or at the validation that is due before it."""

    first_batch, validation_due = 0, False

    def reset(self) -> None:
        super().reset()
        count(self.batch_progress.current, self.first_batch)
        self.first_batch = 0

    @property
    def done(self) -> bool:
        return not self.validation_due and super().done

    def advance(self, data_fetcher: Any) -> None:
        if self.validation_due:
            self.validation_due = False  # `on_advance_end` validates
        else:
            super().advance(data_fetcher)


def count(tracker: Any, n: int) -> None:
    """So many have begun and are over, by all of a tracker's numbers."""
    vars(tracker).update(dict.fromkeys(vars(tracker), n))


class Resume(Callback):
    """Keeps the place of a run, and starts there what resumes.  The first of all callbacks."""

    def __init__(self, trainer: pl.Trainer, loader: DataLoader, data: Mapping[str, ShapeDataset]) -> None:
        """data: the ShapeDatasets of a run, by split.  loader: of its training."""
        sampler, limit = loader.batch_sampler, trainer.limit_train_batches
        assert isinstance(sampler, Batches)
        self.per_batch, self.n_processes = sampler.size, sampler.n_processes
        self.n_batches = min(len(sampler), limit) if isinstance(limit, int) else int(len(sampler) * limit)
        self.per_epoch = min(self.n_batches * self.per_batch, sampler.n)
        self.accumulated = trainer.accumulate_grad_batches
        self.place, self.batch = Place(sampler.position), 0  # of its epoch
        self.gradients: dict[str, Tensor] = {}
        conditions = {name: getattr(trainer, name) for name in FLAGS}
        conditions |= {"devices": trainer.world_size, "accelerator": type(trainer.accelerator).__name__}
        conditions |= {f"{split} data": fingerprint(dataset) for split, dataset in data.items()}
        self.conditions = {name: str(value) for name, value in conditions.items()}
        replaced = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = EpochLoop(trainer, replaced.min_steps, replaced.max_steps)

    def check(self, checkpoint: dict[str, Any], settings: Mapping[str, Any]) -> None:
        """Report in a line what differs from the run that a checkpoint is of and alters the numbers.
        ValueError, saying what was and what is, where items of an epoch would be left out or come twice."""
        if "place" not in checkpoint:
            print("the checkpoint of an earlier version: resuming as that version did", file=sys.stderr)
        place, was = self._place_of(checkpoint), checkpoint.get("conditions", {})
        before = result_affecting(checkpoint["hyper_parameters"]) | was
        now = result_affecting(settings) | self.conditions
        changed = [name for name in now if before.get(name, now[name]) != now[name]]
        what = "; ".join(
            f"{name if ' ' in name else f'--{name}'} was {before[name]}, is {now[name]}"
            + " (without effect: resumed as saved)" * (name in KEPT)
            for name in changed
        )
        position, first = place.position, self.n_batches - self._batches_left(place.position)
        left = position.of - position.items
        if position.items and (
            first < 0
            or left % self.per_batch % self.n_processes
            or not {"train data", "overfit_batches"}.isdisjoint(changed)
        ):
            raise ValueError(
                f"stopped after {position.items} of {position.of} items of epoch {position.epoch}; the other "
                f"{left} would not come once each in batches of {self.per_batch}: {what}"
            )
        if place.window and (
            first % self.accumulated != place.window or not {"precision", "devices"}.isdisjoint(changed)
        ):
            raise ValueError(f"gradients of {place.window} batches wait for the step of their window: {what}")
        if changed:
            print(f"not the numbers of an undisturbed run: {what}", file=sys.stderr)

    def _batches_left(self, position: Position) -> int:
        return -(-(position.of - position.items) // self.per_batch) if position.items else self.n_batches

    def _place_of(self, checkpoint: dict[str, Any]) -> Place:
        """The Place of a checkpoint; of an earlier version's what Lightning's counters tell. CheckpointError
        for one that cannot be."""
        try:
            if "place" in checkpoint:
                position = Position(**checkpoint["place"]["position"])
                place = Place(**checkpoint["place"] | {"position": position})
            else:
                place = self._earlier(checkpoint)
            numbers = [*(vars(place) | {"position": 0}).values(), *vars(place.position).values()]
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"damaged or foreign checkpoint (its place: {error!r})") from error
        fits = all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers)
        if not fits or place.position.items > place.position.of:
            raise CheckpointError(f"damaged or foreign checkpoint (its place: {place})")
        return place

    def _earlier(self, checkpoint: dict[str, Any]) -> Place:
        fit, step = checkpoint["loops"]["fit_loop"], checkpoint["global_step"]
        progress, begun = fit["epoch_loop.batch_progress"], fit["epoch_progress"]["total"]["ready"]
        over = progress["is_last_batch"]
        items = 0 if over else progress["current"]["ready"] * self.per_batch
        seed = checkpoint["hyper_parameters"]["seed"]
        return Place(Position(seed, True, begun if over else begun - 1, items, self.per_epoch), step, 0, step)

    def on_load_checkpoint(self, trainer: pl.Trainer, model: ShapesModel, checkpoint: dict[str, Any]) -> None:
        place, position = self._place_of(checkpoint), self.place.position
        checkpoint.pop("loops", None)  # nothing restarts: the counters are those of a run never stopped
        shuffled = position.shuffled
        vars(position).update(vars(place.position), shuffled=shuffled)
        place.position, self.place = position, place  # the sampler's own
        self.gradients = checkpoint.get("gradients", {})
        fit, step = trainer.fit_loop, checkpoint["global_step"]
        count(fit.epoch_progress.total, position.epoch)
        count(fit.epoch_progress.current, position.epoch)
        count(fit.epoch_loop.batch_progress.total, place.batches)
        count(fit.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total, step)
        fit.epoch_loop._batches_that_stepped = place.logged

    def on_train_start(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        fit, place = trainer.fit_loop, self.place
        self.batch = self.n_batches - self._batches_left(place.position)
        fit.epoch_loop.first_batch, fit.epoch_loop.validation_due = self.batch, place.validation_due
        place.validation_due = False
        fit._resuming_from_checkpoint = True  # the iterator that is there starts at our position
        if place.position.items:  # the epoch has begun: no hooks of its start
            fit.epoch_progress.increment_ready()
            fit.epoch_progress.increment_started()
            fit._restart_stage = RestartStage.RESTARTED_MID_EPOCH
        for name, parameter in model.named_parameters():
            if name in self.gradients:
                shares = self.gradients[name]
                if not torch.is_tensor(shares) or shares[:1].shape != (1, *parameter.shape):
                    raise CheckpointError(f"damaged or foreign checkpoint (its gradient of {name})")
                own = shares[trainer.global_rank] if len(shares) == trainer.world_size else shares.mean(0)
                parameter.grad = own.to(parameter)
        self.gradients = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, model: ShapesModel, batch: EventBatch, batch_idx: int
    ) -> None:
        # a batch's dropout follows from its number alone
        number = self.place.position.seed * 1_000_003 + self.place.batches
        torch.manual_seed((number * 4099 + trainer.global_rank) % 2**63)

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: ShapesModel, outputs: Any, batch: EventBatch, batch_idx: int
    ) -> None:
        place = self.place
        place.position.advance(self.per_batch, self.per_epoch)
        place.batches, self.batch = place.batches + 1, self.batch + 1
        unused = self.batch % self.accumulated and place.position.items < place.position.of
        place.window = self.batch % self.accumulated if unused else 0

    def on_train_epoch_end(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        self.place.position.end_epoch()
        self.batch = self.batch if self.place.position.items else 0

    def on_validation_start(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        if not trainer.sanity_checking:
            self.place.validation_due = True

    def on_validation_end(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        if not trainer.sanity_checking:
            self.place.validation_due = False

    def on_save_checkpoint(self, trainer: pl.Trainer, model: ShapesModel, checkpoint: dict[str, Any]) -> None:
        del checkpoint["loops"]
        self.place.logged = trainer.fit_loop.epoch_loop._batches_that_stepped
        checkpoint["epoch"] = self.place.position.epoch  # Lightning's own depends on where a run had stopped
        checkpoint["place"], checkpoint["conditions"] = dataclasses.asdict(self.place), self.conditions
        checkpoint["gradients"] = self._unused_gradients(model)
        logs = [logger.sizes() for logger in trainer.loggers if isinstance(logger, RunLogger)]
        checkpoint["logs"] = logs[0] if logs and trainer.is_global_zero else {}

    def _unused_gradients(self, model: ShapesModel) -> dict[str, Tensor]:
        """Of a window of accumulated batches that has begun: (process, ...) by name."""
        if not self.place.window:
            return {}
        return {
            name: shares_of_all(parameter.grad)
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }


def fingerprint(dataset: ShapeDataset) -> str:
    """Number of items, and names and sizes of the recordings wherever they lie, in short."""
    files = [f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in dataset.files]
    return f"{len(dataset)} items ({hashlib.sha256(chr(10).join(files).encode()).hexdigest()[:8]})"
