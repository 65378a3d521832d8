"""Runs stopped in all ways at all places, and resumed, against the same runs undisturbed.

A case is drawn: settings, flags of the Trainer, and one or two stops, each at a hook of Lightning's.  Every
bit that a run leaves must be that of the undisturbed one.  `benchmarks.faults` tries hundreds, `make test` a
few.
"""

import contextlib
import dataclasses
import io
import logging
import os
import random
import shutil
import signal
import time
from unittest import mock

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from nrf.commands import learn_shapes
from nrf.config import result_affecting
from nrf.data.recordings import write_recording
from nrf.system.archive import load_archive
from nrf.training import run
from nrf.training.stopping import Stop

SIZE, FRAMES, RECORDINGS, EPOCHS = 16, 12, 9, 3  # 7 recordings to train on
TINY = [
    *"--timesteps=3 --n_spatial_scales=1 --n_temporal_scales=2 --n_angles=1 --n_ratios=1".split(),
    *"--accelerator=cpu --enable_progress_bar=false --enable_model_summary=false --dropout=0.2".split(),
]
SETTINGS = {  # of a run and its Trainer: the values to draw from, the default among them
    "net": ["li", "lif", "ann"],
    "batch_size": [1, 2],
    "optimizer": ["adam", "adagrad", "rmsprop", "sgd"],
    "optimizer_split": [0, 1],
    "lr_step": ["step", "ca", "none"],
    "batch_normalization": [0, 0, 1],
    "coordinate": ["dsntli", "dsnt"],
    "accumulate_grad_batches": [1, 1, 2, 3, 4],
    "limit_train_batches": [1.0, 1.0, 0.7, 2],
    "overfit_batches": [0, 0, 0, 2],
    "reload_dataloaders_every_n_epochs": [0, 0, 1, 2],
    "val_check_interval": [1.0, 1.0, 0.5, 0.3, 2],
    "check_val_every_n_epoch": [1, 1, 1, 2],
    "limit_val_batches": [1.0, 1.0, 1, 0],
    "num_sanity_val_steps": [0, 2],
    "log_every_n_steps": [1, 2, 3],
    "gradient_clip_val": [None, 0.5],
    "precision": ["32-true", "32-true", "bf16-mixed", "64-true"],
}
WAYS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGKILL", "max_steps", "max_epochs", "max_time")
HOOKS = {  # where a signal arrives; weights of the draw
    "on_train_epoch_start": 1,
    "on_train_batch_start": 3,
    "on_before_optimizer_step": 2,
    "on_train_batch_end": 3,
    "on_validation_start": 2,
    "on_validation_batch_end": 2,
    "on_validation_end": 2,
    "on_train_epoch_end": 1,
    "on_save_checkpoint": 1,
}


@dataclasses.dataclass
class Case:
    """Flags by name; stops (way, hook or None, number); workers of each part of the run."""

    flags: dict
    stops: list
    workers: list

    def __str__(self):
        stops = ", ".join(" ".join(str(word) for word in stop if word is not None) for stop in self.stops)
        return f"{stops}; workers {self.workers}; {' '.join(words(self.flags))}"


def words(flags):
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


def draw(source, first_way):
    """A Case, and the way of its first stop."""
    flags = {name: source.choice(values) for name, values in SETTINGS.items()}
    n_batches = 7 // flags["batch_size"]
    if flags["overfit_batches"]:
        flags["limit_train_batches"] = flags["limit_val_batches"] = 1.0
        n_batches = 2
    elif isinstance(flags["limit_train_batches"], int):
        n_batches = flags["limit_train_batches"]
    else:
        n_batches = int(n_batches * flags["limit_train_batches"])
    if flags["val_check_interval"] == 2 and n_batches < 2:
        flags["val_check_interval"] = 1.0
    stops = []
    others = [way for way in WAYS if way != "max_epochs"]  # which may be over by then
    for way in [first_way, source.choice(others)][: source.choice((1, 1, 2))]:
        if way == "max_epochs":
            stops.append((way, None, source.randrange(1, EPOCHS)))
        elif way == "max_steps":
            n_steps = -(-n_batches // flags["accumulate_grad_batches"])
            stops.append((way, None, source.randrange(1, max(EPOCHS * n_steps, 2))))
        else:
            hook = source.choices(list(HOOKS), HOOKS.values())[0]
            often = "batch" in hook or "step" in hook
            stops.append((way, hook, source.randrange(EPOCHS * n_batches if often else EPOCHS)))
    return Case(flags, stops, [source.choice((0, 0, 0, 1, 2)) for _ in range(len(stops) + 1)])


class Strike(Callback):
    """Stops a run at the given call of a hook, counted from 0, in one of its processes."""

    def __init__(self, way: str, hook: str, number: int, rank: int = 0):
        self.left, self.way, self.rank = number, way, rank
        setattr(self, hook, self.called)

    def called(self, trainer, *_, **__):
        if trainer.sanity_checking or trainer.global_rank != self.rank:
            return
        self.left -= 1
        if self.left == -1 and self.way == "max_time":
            next(c for c in trainer.callbacks if isinstance(c, Stop)).timer._offset = 10**9
        elif self.left == -1:
            os.kill(os.getpid(), getattr(signal, self.way))


def train(data, logs, flags, stop=None):
    """The exit code of a run, and what it said."""
    flags, build = dict(flags), run.build_trainer
    way, hook, number = stop or (None, None, None)
    if way == "max_time":
        flags["max_time"] = "01:00:00:00"
    if hook:

        def with_strike(flags, logger, callbacks):
            return build(flags, logger, [*callbacks, Strike(way, hook, number)])
    elif way:
        flags[way] = number
    arguments = [str(data), str(logs), *TINY, "--ckpt_path=last", *words(flags)]
    with mock.patch.object(run, "build_trainer", with_strike if hook else build):
        return said(learn_shapes.main if way != "SIGKILL" else in_a_child, arguments)


def in_a_child(arguments):
    child = os.fork()
    if not child:
        os._exit(learn_shapes.main(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def said(function, *arguments):
    """What a function returns, and what it says."""
    words = io.StringIO()
    with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
        return function(*arguments), words.getvalue()


def left(logs):
    """All that a run leaves: CSV, scalars, content of checkpoints; without times and sizes of logs."""
    found = {path.name: path.read_text() for path in logs.glob("*.csv")}
    for version in logs.glob("*/version_*"):
        events = EventAccumulator(str(version), size_guidance={"scalars": 0}).Reload()
        for tag in sorted(events.Tags()["scalars"]):
            logged = sorted(events.Scalars(tag), key=lambda event: (event.step, event.wall_time))
            found[version.name, tag] = [(event.step, event.value) for event in logged]
        for path in version.glob("checkpoints/*.ckpt"):
            for name, value in load_archive(path).items():
                if name == "hyper_parameters":
                    value = result_affecting(value)
                found[version.name, path.name, name] = plain(value) if name != "logs" else None
    return found


def plain(value):
    """A checkpoint's content as plain numbers."""
    if torch.is_tensor(value):
        return value.tolist()
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def attempt(case, data, folder):
    """Names of what differs between the undisturbed run and the stopped and resumed one; and whether each
    stop came.  RuntimeError where a run ends as it should not."""
    flags = case.flags | {"max_epochs": EPOCHS}
    came = []
    try:
        code, output = train(data, folder / "whole", flags | {"num_workers": 0})
        if code:
            raise RuntimeError(f"undisturbed: exit code {code}: {output}")
        for stop, workers in zip([*case.stops, None], case.workers, strict=True):
            code, output = train(data, folder / "parts", flags | {"num_workers": workers}, stop)
            way = stop and stop[0]
            wanted = {"SIGKILL": -9}.get(way, 128 + getattr(signal, way) if way and way[:3] == "SIG" else 0)
            if code not in (0, wanted):
                raise RuntimeError(f"{stop}: exit code {code}: {output}")
            came.append(code != 0 or way and way[:3] != "SIG")
        expected, found = left(folder / "whole"), left(folder / "parts")
        names = [*expected, *(name for name in found if name not in expected)]
        return [name for name in names if expected.get(name) != found.get(name)], came[:-1]
    finally:
        for logs in ("whole", "parts"):
            shutil.rmtree(folder / logs, ignore_errors=True)


def record(root, recordings=RECORDINGS):
    """Dots that move along the diagonal, in noise."""
    draw_numbers = np.random.default_rng(0)
    (root / "v1").mkdir(parents=True)
    shape = FRAMES, 2, SIZE, SIZE
    for i in range(recordings):
        start, moved = draw_numbers.uniform(3, 10, (1, 3, 1)), np.arange(FRAMES)[:, None, None] * 0.3
        labels = (start + moved) * np.ones((1, 1, 2))
        dots = [(t, p, *labels[t, n].astype(int)) for t in range(FRAMES) for p in (0, 1) for n in range(3)]
        noise = draw_numbers.integers(0, shape, (20, 4))
        write_recording(root / "v1" / f"{i}.dat", np.concatenate([dots, noise]), labels, shape)
    return root


def try_many(folder, cases, seed):
    """Tries so many cases, all ways in turn. Prints a table by way; returns how many lost a bit."""
    event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)  # names read in order
    source, table = random.Random(seed), {way: [0, 0, 0] for way in WAYS}
    data, began = record(folder / "shapes"), time.monotonic()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for number in range(cases):
        way = WAYS[number % len(WAYS)]
        case = draw(source, way)
        try:
            different, came = attempt(case, data, folder)
        except (RuntimeError, SystemExit) as error:
            different, came = [str(error)], []
        row = table[way]
        row[0], row[1], row[2] = row[0] + 1, row[1] + sum(map(bool, came)), row[2] + bool(different)
        if different:
            print(f"case {number} DIFFERS: {case}\n    {different}", flush=True)
    lost = sum(row[2] for row in table.values())
    print("| first stop by | combinations | stops that came | bits lost in |\n| --- | --- | --- | --- |")
    for way, row in table.items():
        print(f"| {way} | {' | '.join(map(str, row))} |")
    print(f"resuming: {cases} combinations, {lost} lost bits; {time.monotonic() - began:.0f} s")
    return lost
