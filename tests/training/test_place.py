"""The place of a run, by hand: what `Resume` keeps, checks and restores, without training."""

import dataclasses
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from nrf.config import Config
from nrf.data.sampling import Batches, Position
from nrf.training import ranks, resuming
from nrf.training.persistence import CheckpointError, RunLogger
from nrf.training.resuming import FLAGS, EpochLoop, Place, Resume

SETTINGS = dataclasses.asdict(Config(seed=5))


class Data:
    files = ()

    def __len__(self):
        return 7


def made(n=7, batch_size=2, drop_last=False, n_processes=1, shuffled=True, **flags):
    """A Resume, its Trainer and the sampler of its loader."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=99, **flags)
    sampler = Batches(n, batch_size, drop_last, Position(5, shuffled), 0, n_processes)
    return Resume(trainer, SimpleNamespace(batch_sampler=sampler), {"train": Data()}), trainer, sampler


def saved(place, **more):
    place = dataclasses.asdict(place)
    return {
        "place": place,
        "hyper_parameters": SETTINGS,
        "global_step": 3,
        "loops": {},
        "gradients": {},
    } | more


@pytest.mark.parametrize(
    "options, n_batches, per_epoch",
    [
        ({}, 4, 7),
        ({"drop_last": True}, 3, 6),
        ({"limit_train_batches": 2}, 2, 4),
        ({"limit_train_batches": 9}, 4, 7),
        ({"limit_train_batches": 0.5}, 2, 4),
        ({"n_processes": 2}, 2, 7),
    ],
)
def test_what_an_epoch_is(options, n_batches, per_epoch):
    resume, trainer, sampler = made(**options)
    assert (resume.n_batches, resume.per_epoch) == (n_batches, per_epoch)
    assert resume.per_batch == 2 * options.get("n_processes", 1) == sampler.size
    assert resume.place == Place(Position(5)) and resume.place.position is sampler.position
    assert (resume.batch, resume.gradients, resume.accumulated) == (0, {}, 1)
    loop = trainer.fit_loop.epoch_loop
    assert type(loop) is EpochLoop and (loop.min_steps, loop.max_steps) == (None, 99)


def test_conditions_are_plain_values_by_name():
    resume, trainer, _ = made(gradient_clip_val=0.5, accumulate_grad_batches=3)
    conditions = resume.conditions
    assert set(conditions) == {*FLAGS, "devices", "accelerator", "train data"}
    assert (conditions["devices"], conditions["accelerator"]) == ("1", "CPUAccelerator")
    assert conditions["gradient_clip_val"] == "0.5" and conditions["accumulate_grad_batches"] == "3"
    assert conditions["train data"] == resuming.fingerprint(Data()) and resume.accumulated == 3
    assert conditions["gradient_clip_algorithm"] == "None" and conditions["precision"] == "32-true"


@pytest.mark.parametrize(
    "ready, over, begun, wanted",
    [(1, False, 3, Position(5, True, 2, 2, 7)), (3, True, 3, Position(5, True, 3, 0, 7))],
)
def test_the_place_of_an_earlier_version_is_that_of_lightnings_counters(capsys, ready, over, begun, wanted):
    resume, *_ = made()
    progress = {"current": {"ready": ready}, "is_last_batch": over}
    loop = {"epoch_loop.batch_progress": progress, "epoch_progress": {"total": {"ready": begun}}}
    checkpoint = {"loops": {"fit_loop": loop}, "global_step": 11, "hyper_parameters": SETTINGS}
    assert resume._place_of(checkpoint) == Place(wanted, 11, 0, 11, False)
    resume.check(checkpoint, SETTINGS)
    assert capsys.readouterr().err == "the checkpoint of an earlier version: resuming as that version did\n"
    resume.check(saved(Place(Position(5))), SETTINGS)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "part, value",
    [("batches", -1), ("batches", 2**63), ("batches", 1.0), ("window", None), ("position", 3), ("of", 1)],
)
def test_a_place_that_cannot_be_is_refused(part, value):
    resume, *_ = made()
    checkpoint = saved(Place(Position(5, True, 0, 2, 7)))
    checkpoint["place"][part] = value
    if part == "of":
        del checkpoint["place"]["of"]
        checkpoint["place"]["position"]["of"] = value
    with pytest.raises(CheckpointError, match=r"damaged or foreign checkpoint \(its place: ."):
        resume._place_of(checkpoint)
    for number in (0, 2**63 - 1):
        assert resume._place_of(saved(Place(Position(5), number))).batches == number


def test_a_checkpoint_puts_position_and_counters_where_they_were():
    resume, trainer, sampler = made(shuffled=False)
    checkpoint = saved(Place(Position(8, True, 2, 4, 7), 13, 0, 9, True), gradients={"x": torch.ones(1)})
    resume.on_load_checkpoint(trainer, None, checkpoint)
    assert "loops" not in checkpoint and resume.gradients == checkpoint["gradients"]
    assert sampler.position == Position(8, False, 2, 4, 7) and resume.place.position is sampler.position
    assert resume.place == Place(sampler.position, 13, 0, 9, True)
    loop = trainer.fit_loop.epoch_loop
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    found = trainer.fit_loop.epoch_progress.total, loop.batch_progress.total, steps
    for tracker, number in zip(found, (2, 13, 3), strict=True):
        assert set(vars(tracker).values()) == {number}
    assert set(vars(trainer.fit_loop.epoch_progress.current).values()) == {2}
    assert loop._batches_that_stepped == 9
    resume.on_train_start(trainer, torch.nn.Linear(1, 1))
    assert (resume.batch, loop.first_batch, loop.validation_due, resume.place.validation_due) == (
        2,
        2,
        True,
        False,
    )
    assert (
        trainer.fit_loop.epoch_progress.current.ready == trainer.fit_loop.epoch_progress.current.started == 3
    )
    assert trainer.fit_loop.epoch_progress.current.completed == 2 and resume.gradients == {}
    resume.on_load_checkpoint(trainer, None, {k: v for k, v in checkpoint.items() if k != "gradients"})
    assert resume.gradients == {}


def test_an_epoch_not_begun_starts_as_lightning_does():
    resume, trainer, _ = made()
    resume.on_load_checkpoint(trainer, None, saved(Place(Position(5, True, 2, 0, 7), 8)))
    resume.on_train_start(trainer, torch.nn.Linear(1, 1))
    assert (resume.batch, trainer.fit_loop.epoch_loop.first_batch) == (0, 0)
    assert trainer.fit_loop.epoch_progress.current.ready == 2
    assert trainer.fit_loop._resuming_from_checkpoint is True


@pytest.mark.parametrize("world_size, rank, wanted", [(1, 0, 2.0), (2, 0, 1.0), (2, 1, 3.0)])
def test_gradients_of_a_window_go_back_to_their_process_or_their_mean(world_size, rank, wanted):
    resume, trainer, _ = made()
    model = torch.nn.Linear(2, 1)
    resume.gradients = {"weight": torch.stack([torch.full((1, 2), v) for v in (1.0, 3.0)])}
    seen = SimpleNamespace(fit_loop=trainer.fit_loop, world_size=world_size, global_rank=rank)
    resume.on_train_start(seen, model)
    assert model.weight.grad.tolist() == [[wanted, wanted]] and model.bias.grad is None


@pytest.mark.parametrize(
    "wrong", [3, torch.ones(2, 1), torch.ones(0, 1, 2), torch.ones(1, 1, 3), torch.ones(1, 2)]
)
def test_gradients_that_do_not_fit_are_refused(wrong):
    resume, trainer, _ = made()
    resume.gradients = {"weight": wrong}
    with pytest.raises(CheckpointError, match=r"damaged or foreign checkpoint \(its gradient of weight\)"):
        resume.on_train_start(trainer, torch.nn.Linear(2, 1))


def test_dropout_follows_from_seed_batch_and_process():
    resume, *_ = made()
    for seed, batches, rank in ((5, 7, 0), (5, 7, 1), (2**60, 3, 2)):
        resume.place = Place(Position(seed), batches)
        resume.on_train_batch_start(SimpleNamespace(global_rank=rank), None, None, 0)
        assert torch.initial_seed() == ((seed * 1_000_003 + batches) * 4099 + rank) % 2**63


def test_batches_and_epochs_are_counted():
    """Seven items in batches of 2, gradients of 3 batches at a time: 3 + 1, and no window stays open."""
    resume, *_ = made(accumulate_grad_batches=3)
    found = []
    for _ in range(4):
        resume.on_train_batch_end(None, None, None, None, 0)
        position = resume.place.position
        found.append((position.items, resume.place.batches, resume.batch, resume.place.window))
    assert found == [(2, 1, 1, 1), (4, 2, 2, 2), (6, 3, 3, 0), (7, 4, 4, 0)]
    resume.on_train_epoch_end(None, None)
    assert (position.epoch, position.items, resume.batch) == (1, 0, 0)
    resume.on_train_batch_end(None, None, None, None, 0)
    resume.on_train_epoch_end(None, None)  # not over: a limit of Lightning's ended it
    assert (position.epoch, position.items, resume.batch) == (1, 2, 1)


@pytest.mark.parametrize("items, left", [(0, 4), (2, 3), (4, 2), (6, 1), (7, 0)])
def test_batches_left_of_an_epoch(items, left):
    resume, *_ = made()
    assert resume._batches_left(Position(5, True, 0, items, 7)) == left


@pytest.mark.parametrize("sanity", [True, False])
def test_a_validation_is_due_until_it_is_over(sanity):
    resume, *_ = made()
    seen = SimpleNamespace(sanity_checking=sanity)
    resume.on_validation_start(seen, None)
    assert resume.place.validation_due == (not sanity)
    resume.place.validation_due = True
    resume.on_validation_end(seen, None)
    assert resume.place.validation_due == sanity


@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_keeps_the_gradients_of_an_open_window_of_all_processes(monkeypatch, processes):
    resume, trainer, _ = made()
    model = torch.nn.Linear(2, 1)
    model.weight.grad = torch.tensor([[1.0, 2.0]])

    def all_gather(shares, grad):
        for rank, share in enumerate(shares):
            share.copy_((1 + 2 * rank) * grad)

    monkeypatch.setattr(ranks, "n_processes", lambda: processes)
    monkeypatch.setattr(ranks.distributed, "all_gather", all_gather)
    seen = SimpleNamespace(world_size=processes, fit_loop=trainer.fit_loop, loggers=[])
    trainer.fit_loop.epoch_loop._batches_that_stepped = 6
    for window in (0, 1):
        resume.place.window = window
        checkpoint = {"loops": {}, "logs": 1}
        resume.on_save_checkpoint(seen, model, checkpoint)
        assert checkpoint["place"] == dataclasses.asdict(Place(Position(5), 0, window, 6, False))
        assert (
            set(checkpoint) == {"epoch", "place", "conditions", "gradients", "logs"}
            and checkpoint["logs"] == {}
        )
        assert checkpoint["conditions"] == resume.conditions
        gathered = [[[1.0, 2.0]], [[3.0, 6.0]]][:processes]
        wanted = {"weight": gathered} if window else {}
        assert {name: shares.tolist() for name, shares in checkpoint["gradients"].items()} == wanted


def test_a_checkpoint_knows_how_long_the_logs_were():
    class Log(RunLogger):
        def __init__(self):
            pass

        def sizes(self):
            return {"metrics.csv": 12}

    resume, trainer, _ = made()
    for first, wanted in ((True, {"metrics.csv": 12}), (False, {})):
        seen = SimpleNamespace(fit_loop=trainer.fit_loop, loggers=[object(), Log()], is_global_zero=first)
        checkpoint = {"loops": {}}
        resume.on_save_checkpoint(seen, None, checkpoint)
        assert checkpoint["logs"] == wanted


def test_what_alters_the_numbers_is_reported_in_a_line(capsys):
    resume, *_ = made()
    checkpoint = saved(Place(Position(5)), conditions=resume.conditions | {"train data": "other"})
    resume.check(checkpoint, SETTINGS | {"dropout": 0.25, "lr": 0.5, "num_workers": 7})
    now = resume.conditions["train data"]
    assert capsys.readouterr().err == (
        "not the numbers of an undisturbed run: --dropout was 0.05, is 0.25; --lr was 0.005, is 0.5 "
        f"(without effect: resumed as saved); train data was other, is {now}\n"
    )


def test_what_would_leave_items_out_is_refused():
    resume, *_ = made(batch_size=4)
    for position, conditions in (
        (Position(5, True, 1, 2, 20), {}),  # five batches of 4 of an epoch of two
        (Position(5, True, 1, 4, 7), {"train data": "other"}),
        (Position(5, True, 1, 4, 7), {"overfit_batches": 0.5}),
    ):
        left = position.of - position.items
        text = f"after {position.items} of {position.of} items of epoch 1; the other {left} would not come"
        with pytest.raises(ValueError, match=text):
            resume.check(saved(Place(position), conditions=resume.conditions | conditions), SETTINGS)
    resume.check(saved(Place(Position(5, True, 1, 4, 7)), conditions=resume.conditions), SETTINGS)


@pytest.mark.parametrize(
    "window, changed, fits", [(1, {}, True), (2, {}, False), (1, {"precision": "64"}, False)]
)
def test_gradients_wait_for_the_step_of_their_own_window(window, changed, fits):
    resume, *_ = made(accumulate_grad_batches=3)
    place = Place(Position(5, True, 0, 2, 7), 1, window)
    checkpoint = saved(place, conditions=resume.conditions | changed)
    if fits:
        resume.check(checkpoint, SETTINGS)
        return
    with pytest.raises(
        ValueError, match=f"gradients of {window} batches wait for the step of their window: "
    ):
        resume.check(checkpoint, SETTINGS)
