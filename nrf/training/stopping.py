"""When checkpoints are saved, which are kept, and how a run is asked to stop without losing anything."""

import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, Timer

KEPT = 5  # of the best
NAME = re.compile(r"epoch=\d+-step=\d+\.ckpt")
TIME_IS_UP = signal.NSIG  # in place of a signal's number


class Stopped(Exception):
    """A signal asked for the end, or --max_time is over; its number is the argument."""


class Checkpoints(Checkpoint):
    """`last.ckpt`, and the KEPT best by val/norm: in a record by name, which belongs to their folder wherever
    it lies."""

    def __init__(self) -> None:
        self.dirpath = ""  # until setup
        self.best: dict[str, float] = {}  # val/norm by name
        self.validated: tuple[str, float] | None = None  # name, val/norm not saved yet
        self.due = self.changed = False  # to save soon; something to save

    @property
    def best_model_path(self) -> str:
        return str(Path(self.dirpath) / min(self.best, key=self.best.__getitem__)) if self.best else ""

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = {name: float(norm) for name, norm in state["best"].items() if NAME.fullmatch(name)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, model: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for key, state in checkpoint["callbacks"].items():
            if key.startswith("ModelCheckpoint"):  # of an earlier version, by path
                norms = state["best_k_models"].items()
                self.load_state_dict({"best": {Path(path).name: norm for path, norm in norms}})

    def setup(self, trainer: pl.Trainer, model: pl.LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")

    def on_train_start(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        """A run that resumes in another folder begins with what is there."""
        there = {name: norm for name, norm in self.best.items() if (Path(self.dirpath) / name).is_file()}
        self.best = trainer.strategy.broadcast(there)

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.changed = True

    def on_train_epoch_end(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        self.due = self.changed

    def on_validation_end(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        norm = trainer.callback_metrics.get("val/norm")
        if norm is not None and not trainer.sanity_checking:
            name = f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
            self.validated = name, norm.item() if norm.isfinite() else math.inf
            self.due = self.changed = True

    def save(self, trainer: pl.Trainer) -> None:
        """What changed since the last time."""
        if not self.changed or trainer.fast_dev_run:
            return
        self.due = self.changed = False
        files = ["last.ckpt"]
        if self.validated is not None:
            name, norm = self.validated
            self.validated = None
            self.best.pop(name, None)
            self.best[name] = norm
            if len(self.best) > KEPT:
                self.best.pop(max(reversed(self.best), key=self.best.__getitem__))  # of equals the last
            files = [name] * (name in self.best) + files
        for file in files:
            trainer.save_checkpoint(Path(self.dirpath) / file, weights_only=False)
        for path in Path(self.dirpath).glob("*.ckpt") if trainer.is_global_zero else ():
            if NAME.fullmatch(path.name) and path.name not in self.best:
                path.unlink(missing_ok=True)


class Stop(Callback):
    """Where training rests: here checkpoints are saved, and it ends if a signal or --max_time wants it to.

    A second Ctrl-C ends it at once.  With several processes a signal to one of them stops all, at one place.
    """

    SIGNALS = [
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
    ]

    def __init__(self, max_time: Any = None) -> None:
        self.received: int | None = None
        self.previous: dict[int, Any] = {}  # handlers by signal
        self.timer = Timer(max_time)

    def setup(self, trainer: pl.Trainer, model: pl.LightningModule, stage: str) -> None:
        self._listen()
        sys.stdout, sys.stderr = Terminal.of(sys.stdout), Terminal.of(sys.stderr)

    def on_sanity_check_start(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        self._listen()  # once more: Lightning has set its own

    def on_train_start(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        self._listen()  # and a sanity check is not always made
        trainer._signal_connector.received_sigterm = False  # heard here too, and saved before the end
        self.timer.on_train_start(trainer, model)

    def _listen(self) -> None:
        for number in self.SIGNALS:
            if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            previous = signal.signal(number, self._receive)
            self.previous.setdefault(number, previous)

    def teardown(self, trainer: pl.Trainer, model: pl.LightningModule, stage: str) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        sys.stdout, sys.stderr = (getattr(stream, "stream", stream) for stream in (sys.stdout, sys.stderr))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number

    def _rest(self, trainer: pl.Trainer) -> None:
        remaining_s = self.timer.time_remaining()
        if remaining_s is not None and remaining_s <= 0 and trainer.fit_loop._can_stop_early:
            self.received = self.received or TIME_IS_UP
        received = self.received
        if trainer.world_size > 1:  # what comes while the others are waited for counts at the next rest
            number = torch.tensor(received or 0, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(number, reduce_op="max")) or None
        self._save(trainer, always=bool(received))
        if received:
            raise Stopped(received)

    def on_train_epoch_start(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        self._rest(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, model: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._rest(trainer)

    def on_validation_start(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._rest(trainer)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        model: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._rest(trainer)

    def on_train_end(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        self._save(trainer, always=True)

    def _save(self, trainer: pl.Trainer, always: bool) -> None:
        for checkpoints in trainer.checkpoint_callbacks:
            if isinstance(checkpoints, Checkpoints) and (checkpoints.due or always):
                checkpoints.save(trainer)


class Terminal:
    """A stream to a terminal that may be closed before the run has saved: what comes then goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @classmethod
    def of(cls, stream: Any) -> Any:
        """The stream, or a Terminal if it is one."""
        return (
            cls(stream) if stream is not None and not isinstance(stream, cls) and stream.isatty() else stream
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int | None:
        return self._unless_closed(self.stream.write, text)

    def flush(self) -> None:
        self._unless_closed(self.stream.flush)

    def _unless_closed(self, function: Callable, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
