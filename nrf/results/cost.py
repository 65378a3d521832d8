"""How long training will take, from a step measured here."""

import dataclasses
import math
import time

import torch

from nrf.config import Config
from nrf.data.dataset import EventBatch
from nrf.training.module import ShapesModel

EVENTS_PER_CELL = 0.0015  # of the random batch, as in the paper's recordings
VALIDATION_SHARE = 0.5  # of a training step's time that a batch takes without its backward pass
CPU_PIXELS = 2**20  # in all frames of a batch: up to so many, a CPU is measured with the whole batch,
CPU_FRAMES = 2, 6  # else with so many time steps of one recording, and what one more costs is extrapolated


def random_batch(config: Config, seed: int = 0) -> EventBatch:
    """Sparse events and labels of one batch, evenly spread."""
    B, T, (H, W) = config.batch_size, config.timesteps, config.resolution
    generator = torch.Generator().manual_seed(seed)
    cells = 2 * (T + config.stack_frames - 1) * 2 * H * W
    n = int(EVENTS_PER_CELL * cells)
    events = [torch.randint(cells, (n,), generator=generator).sort().values.int() for _ in range(B)]
    labels = torch.rand(B, T, config.n_classes, 2, generator=generator) * torch.tensor([H, W])
    return EventBatch(torch.cat(events), torch.full((B,), n), labels)


def step_seconds(config: Config, device: str | torch.device = "cpu") -> float:
    """Seconds that a training step of these settings takes: forward, loss and backward.

    On a CPU a large batch is extrapolated from two small ones, since time grows linearly with time steps and
    batch (README, Speed) beyond what the filters alone cost."""
    frames = config.batch_size * config.timesteps
    if torch.device(device).type != "cpu" or frames * math.prod(config.resolution) <= CPU_PIXELS:
        return _measured(config, device)
    few, more = (
        _measured(dataclasses.replace(config, batch_size=1, timesteps=n), device) for n in CPU_FRAMES
    )
    per_frame = max(more - few, 0.0) / (CPU_FRAMES[1] - CPU_FRAMES[0])
    return more + (frames - CPU_FRAMES[1]) * per_frame


def _measured(config: Config, device: str | torch.device) -> float:
    """Seconds of the second of two steps."""
    model = ShapesModel(**dataclasses.asdict(config)).to(device)
    batch = EventBatch(*(part.to(device) for part in random_batch(config)))
    for _ in range(2):
        start = time.perf_counter()
        tracking, _, labels_px = model.track(batch)
        terms, *_ = model.terms(tracking, labels_px)
        terms["loss"].backward()
        terms["loss"].item()  # waits for a GPU
        seconds = time.perf_counter() - start
    return seconds


def run_seconds(
    config: Config, recordings: int, frames: int, epochs: int, limit: int | None, seconds_per_step: float
) -> float:
    """Seconds of a whole run.

    recordings: of all conditions, of which 80 % are trained on.  frames: of each.  limit: batches per epoch
    at
    most, None for all.
    """
    window = config.timesteps + config.stack_frames - 1
    chunks = min(
        frames // (2 * config.timesteps + config.network_delay),
        (frames - config.network_delay - window) // window,
    )
    windows = recordings * chunks
    batches = min(math.floor(0.8 * windows / config.batch_size), limit or math.inf)
    validation = math.ceil(0.2 * windows / config.batch_size) * VALIDATION_SHARE
    return epochs * (batches + validation) * seconds_per_step
