"""What a run that trains, but not what its user meant, says in one line on stderr."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.callbacks import Callback

from nrf.data.dataset import dense_frames
from nrf.network.layers import average_pool, layer_response
from nrf.network.neurons import DT_S, NEURONS

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import Tensor

    from nrf.config import Config
    from nrf.data.dataset import EventBatch
    from nrf.training.module import ShapesModel

GPU_EVERY = 50  # steps between looks at time constants on a GPU, each of which waits for it


class Advice(Callback):
    """Says once when a layer of spiking neurons is silent, when a time constant leaves (0, 1 / dt), and when
    recordings are empty or nearly so."""

    def __init__(self) -> None:
        self.said: set[str] = set()
        self.events: Tensor | int = 0
        self.windows = 0
        self.silent: set[int] = set()  # layers, from 1, without a spike since the epoch's start
        self.started = False  # whether a step was taken, with all that a checkpoint holds

    def say(self, what: str, text: str) -> None:
        if what not in self.said:
            print(text, file=sys.stderr, flush=True)
        self.said.add(what)

    def on_train_epoch_start(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        spiking = NEURONS[model.config.net].spikes and trainer.is_global_zero and "silence" not in self.said
        self.silent = set(range(1, len(model.net.channels[0].spatiotemporal) + 1)) if spiking else set()

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: ShapesModel, outputs: Any, batch: EventBatch, batch_idx: int
    ) -> None:
        self.started = True
        if not trainer.is_global_zero:
            return
        self.events, self.windows = self.events + batch.counts.sum(), self.windows + len(batch.counts)
        if model.device.type == "cpu" or trainer.global_step % GPU_EVERY == 0:
            self._time_constants(trainer, model)
        if self.silent:
            self.silent -= firing_layers(model, batch)
        if trainer.is_last_batch:
            self._events(model.config)
            self._silence(trainer, model.config)

    def _time_constants(self, trainer: pl.Trainer, model: ShapesModel) -> None:
        rates = [(name, p) for name, p in model.named_parameters() if name.endswith("tau_mem_inv")]
        if not rates or "tau" in self.said:
            return
        values = torch.stack([rate.detach().flatten()[0] for _, rate in rates]).tolist()
        for (name, _), rate_hz in zip(rates, values, strict=True):
            if not 0 < rate_hz < 1 / DT_S:
                self.say(
                    "tau",
                    f"step {trainer.global_step}: the time constant {name} has left its range: {rate_hz:.4g} "
                    f"Hz, expected 0 to {1 / DT_S:g}; training continues, as published (FIDELITY 92); try a "
                    "smaller --lr",
                )

    def _events(self, config: Config) -> None:
        if self.events < self.windows:
            found = "no event" if not self.events else f"{self.events} events"
            self.say(
                "events",
                f"{found} in {self.windows} windows of {2 * config.timesteps} ms; is this the right data "
                "set? Try longer --timesteps, or look at recordings with python3 -m nrf track",
            )

    def _silence(self, trainer: pl.Trainer, config: Config) -> None:
        if self.silent:
            lost = "" if config.skip_connections else ", and those after it see nothing"
            self.say(
                "silence",
                f"epoch {trainer.current_epoch}: no neuron of layer {min(self.silent)} fires{lost}; try "
                "--init_scheme_spatial rf, --batch_normalization 1, or a larger "
                "--regularization_activity_scale",
            )


@torch.no_grad()
def firing_layers(model: ShapesModel, batch: EventBatch) -> set[int]:
    """The layers, counted from 1, any of whose neurons fires in the windows of a batch."""
    config, was_training = model.config, model.training
    halves = dense_frames(batch, config.resolution, config.timesteps, config.stack_frames, config.sum_frames)
    frames = torch.cat(halves).to(model.net.classifier[0].weight.dtype)
    model.eval()
    spikes = torch.zeros(len(model.net.channels[0].spatiotemporal), device=frames.device)
    for channel in model.net.channels:
        out = average_pool(frames)[:, None]
        for i, field in enumerate(channel.spatiotemporal):
            before, (out, _, activity) = out, layer_response([field], out, None, average_pool)
            if field.skip_connection:  # whose current is no spike
                alone = copy.copy(field)
                alone.skip_connection = False
                *_, activity = layer_response([alone], before)
            spikes[i] += activity.sum()
    model.train(was_training)
    return {i for i, n in enumerate(spikes.tolist(), start=1) if n > 0}
