"""What a run that trains, but not what its user meant, says in one line on stderr."""

import sys

import torch
from pytorch_lightning.callbacks import Callback

from nrf.data.dataset import dense_frames
from nrf.network.layers import average_pool, layer_response
from nrf.network.neurons import DT_S, NEURONS

GPU_EVERY = 50  # steps between looks at time constants on a GPU, each of which waits for it


class Advice(Callback):
    """Says once when a layer of spiking neurons is silent, when a time constant leaves (0, 1 / dt), and when
    recordings are empty or nearly so."""

    def __init__(self):
        self.said, self.events, self.windows = set(), 0, 0
        self.started = False  # whether a step was taken, with all that a checkpoint holds

    def say(self, what, text):
        if what not in self.said:
            print(text, file=sys.stderr, flush=True)
        self.said.add(what)

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.started = True
        if not trainer.is_global_zero:
            return
        self.events, self.windows = self.events + batch.counts.sum(), self.windows + len(batch.counts)
        if model.device.type == "cpu" or trainer.global_step % GPU_EVERY == 0:
            self._time_constants(trainer, model)
        if trainer.is_last_batch:
            self._events(model.config)
            if NEURONS[model.config.net].spikes:
                self._silence(trainer, model, batch)

    def _time_constants(self, trainer, model):
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

    def _events(self, config):
        if self.events < self.windows:
            found = "no event" if not self.events else f"{self.events} events"
            self.say(
                "events",
                f"{found} in {self.windows} windows of {2 * config.timesteps} ms; is this the right data "
                "set? Try longer --timesteps, or look at recordings with python3 -m nrf track",
            )

    def _silence(self, trainer, model, batch):
        layer = silent_layer(model, batch)
        if layer is not None:
            self.say(
                "silence",
                f"epoch {trainer.current_epoch}: no neuron of layer {layer} fires, so that none learns from "
                "the loss; try --init_scheme_spatial rf, --batch_normalization 1, or a larger "
                "--regularization_activity_scale",
            )


@torch.no_grad()
def silent_layer(model, batch):
    """The first layer, counted from 1, none of whose neurons fires in the windows of a batch, or None."""
    config, was_training = model.config, model.training
    halves = dense_frames(batch, config.resolution, config.timesteps, config.stack_frames, config.sum_frames)
    frames = torch.cat(halves).to(model.net.classifier[0].weight.dtype)
    model.eval()
    activities = []  # of each channel and layer
    for channel in model.net.channels:
        out, own = average_pool(frames)[:, None], []
        for field in channel.spatiotemporal:
            out, _, activity = layer_response([field], out, None, average_pool)
            own.append(activity)
        activities.append(torch.cat(own))
    model.train(was_training)
    fires = (torch.stack(activities) > 0).any(0).tolist()
    return fires.index(False) + 1 if False in fires else None
