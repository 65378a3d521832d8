"""A run that resumes is the same run, whatever stopped it; or the user hears in a line what differs.

Hundreds of drawn runs, stopped and resumed: `python3 -m benchmarks.faults`.  Here are a few of them.
"""

import dataclasses
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import resuming
from benchmarks.resuming import EPOCHS, TINY, WAYS, attempt, draw, left, record
from nrf.commands import learn_shapes
from nrf.data.sampling import Batches, Position
from nrf.system.archive import load_archive, save_whole
from nrf.training.checkpoints import find_checkpoints
from nrf.training.resuming import FLAGS as FLAGS_OF_TRAINER
from nrf.training.resuming import Resume

FLAGS = {
    "max_epochs": EPOCHS,
    "batch_size": 2,
    "num_workers": 0,
    "log_every_n_steps": 1,
}  # 3 batches an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return record(tmp_path_factory.mktemp("data") / "shapes")


def train(data, logs, stop=None, /, **flags):
    code, said = resuming.train(data, logs, FLAGS | flags, stop)
    assert "Traceback" not in said, said
    return code, said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_run_that_resumes_is_the_same_run(data, tmp_path, way):
    case = draw(random.Random(f"{way} 0"), way)
    different, _ = attempt(case, data, tmp_path)
    assert not different, case


def epoch_of(n, size, processes, whole=True, limit=1.0, **position):
    """What `Resume` is for one of the processes' batches, and the batches of all."""
    place = Position(3, **position)
    shares = [Batches(n, size, whole, place, rank, processes) for rank in range(processes)]
    trainer = SimpleNamespace(
        **dict.fromkeys(FLAGS_OF_TRAINER, 1) | {"limit_train_batches": limit},
        world_size=processes,
        accelerator=None,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(min_steps=0, max_steps=-1)),
    )
    return Resume(trainer, SimpleNamespace(batch_sampler=shares[0]), {}), shares


def test_every_item_of_an_epoch_comes_once_whatever_the_batches_before_and_after_a_stop(capsys):
    source, seen, settings = random.Random(0), {"resumed": 0, "refused": 0}, {"batch_size": 1}
    for _ in range(600):
        n, sizes = source.randrange(4, 40), [source.randrange(1, 5) for _ in range(2)]
        processes = [source.randrange(1, 3) for _ in range(2)]
        limit = source.choice((1.0, 1.0, 0.8, 3))
        before, shares = epoch_of(n, sizes[0], processes[0], limit=limit, epoch=2)
        if before.n_batches < 2:
            continue
        stop = source.randrange(1, before.n_batches)
        batches = [sum(parts, []) for parts in zip(*shares, strict=True)][: before.n_batches]
        for _ in range(stop):
            before.on_train_batch_end(None, None, None, None, 0)
        checkpoint = {"place": dataclasses.asdict(before.place), "conditions": before.conditions}
        checkpoint["hyper_parameters"] = settings
        after, shares = epoch_of(n, sizes[1], processes[1], limit=limit)
        try:
            after.check(checkpoint, settings)
        except ValueError as refused:
            seen["refused"] += 1
            assert sizes != sizes[::-1] or processes != processes[::-1], (n, sizes, processes, stop)
            assert f"{before.place.position.items} of {before.per_epoch} items of epoch 2" in str(refused)
            continue
        vars(shares[0].position).update(checkpoint["place"]["position"])
        parts = [list(share) for share in shares]
        assert all(part for share in parts for part in share)
        rest = sorted(item for share in parts for part in share for item in part)
        assert rest == sorted(sum(batches[stop:], []))
        assert len(parts[0]) <= after.n_batches
        seen["resumed"] += 1
    capsys.readouterr()
    assert min(seen.values()) > 50, seen


def resume(path, root, logs, **flags):
    """The exit code of a run that resumes from this checkpoint in a new folder, and what it said."""
    shutil.rmtree(logs, ignore_errors=True)
    words = resuming.words(FLAGS | flags)
    return resuming.said(learn_shapes.main, [str(root), str(logs), *TINY, f"--ckpt_path={path}", *words])


def test_other_batches_and_data_are_resumed_or_refused_in_a_line(data, tmp_path):
    assert train(data, tmp_path / "logs", ("SIGTERM", "on_train_batch_end", 0))[0] == 128 + signal.SIGTERM
    path, again = next(tmp_path.glob("logs/*/version_0/checkpoints/last.ckpt")), tmp_path / "again"
    code, said = resume(path, data, again, batch_size=1, num_workers=1)
    assert code == 0 and "not the numbers of an undisturbed run: --batch_size was 2, is 1\n" in said
    code, said = resume(path, data, again, precision="bf16-mixed", gradient_clip_val=0.1, lr=0.1)
    assert code == 0 and "--lr was 0.005, is 0.1 (without effect: resumed as saved); " in said
    assert "--precision was 32-true, is bf16-mixed; --gradient_clip_val was None, is 0.1\n" in said
    code, said = resume(path, data, again, limit_train_batches=1)
    assert code == 2 and said.endswith(
        "learn_shapes.py: stopped after 2 of 6 items of epoch 0; the other 4 would not come once each in "
        "batches of 2: --limit_train_batches was 1.0, is 1\n"
    )
    code, said = resume(path, record(tmp_path / "other" / "shapes", 10), again)
    assert code == 2 and "train data was 7 items (" in said and "is 8 items (" in said
    assert not again.exists()


def test_gradients_that_wait_for_their_step_are_kept_or_the_run_is_refused(data, tmp_path):
    flags = {"accumulate_grad_batches": 3, "batch_size": 1}
    assert train(data, tmp_path / "logs", ("SIGTERM", "on_train_batch_end", 4), **flags)[0] == 143
    path, again = next(tmp_path.glob("logs/*/version_0/checkpoints/last.ckpt")), tmp_path / "again"
    assert load_archive(path)["place"]["window"] == 2 and load_archive(path)["gradients"]
    for changed in ({"accumulate_grad_batches": 5}, {"precision": "bf16-mixed"}):
        code, said = resume(path, data, again, **flags | changed)
        assert code == 2 and "gradients of 2 batches wait for the step of their window: --" in said
        assert f"is {next(iter(changed.values()))}\n" in said and not again.exists()


def test_every_batch_of_a_window_has_its_own_dropout():
    run, _ = epoch_of(8, 1, 1)
    run.accumulated, seeds = 4, []
    for batch in range(8):
        run.on_train_batch_start(SimpleNamespace(global_rank=0), None, None, batch)
        seeds.append(torch.initial_seed())
        run.on_train_batch_end(None, None, None, None, batch)
    assert len(set(seeds)) == 8


def test_the_best_belong_to_their_folder_and_last_is_the_highest_step(data, tmp_path, monkeypatch):
    """Whatever LOGS is called, wherever it lies, and whatever its files' times say."""
    flags = {"lr": 0.05, "limit_train_batches": 2}
    assert train(data, tmp_path / "whole", **flags, max_epochs=9)[0] == 0
    monkeypatch.chdir(tmp_path)
    assert train(data, Path("parts"), **flags, max_epochs=3)[0] == 0
    assert train(data, tmp_path / "parts", **flags, max_epochs=6)[0] == 0
    shutil.move("parts", "elsewhere")
    for i, path in enumerate(sorted(tmp_path.glob("elsewhere/*/*/checkpoints/epoch*.ckpt"))):
        os.utime(path, times=(2**32, 2**32 - i))
    code, said = train(data, Path("elsewhere"), ("SIGTERM", "on_train_batch_end", 0), **flags, max_epochs=9)
    assert code == 143 and "last.ckpt" in said
    code, said = train(data, Path("elsewhere"), **flags, max_epochs=9)
    assert left(tmp_path / "whole") == left(tmp_path / "elsewhere")
    assert len(list(tmp_path.glob("elsewhere/*/version_0/checkpoints/*"))) == 6
    best = [find_checkpoints([tmp_path / logs])[0].name for logs in ("whole", "elsewhere")]
    assert best[0] == best[1] and f"{best[0]}; look" in said


@pytest.mark.parametrize("stop", [("SIGTERM", "on_train_batch_end", 4), ("max_epochs", None, 1)])
def test_an_earlier_versions_checkpoint_resumes_as_far_as_it_tells(data, tmp_path, stop):
    assert train(data, tmp_path / "whole")[0] == 0
    train(data, tmp_path / "parts", stop)
    for path in tmp_path.glob("parts/*/version_0/checkpoints/*.ckpt"):
        content = load_archive(path)
        place = content.pop("place")
        for name in ("conditions", "gradients", "logs"):
            del content[name]
        over = not place["position"]["items"]
        ready = place["position"]["items"] // 2 or 3
        content["loops"] = {"fit_loop": {
            "epoch_loop.batch_progress": {"current": {"ready": ready}, "is_last_batch": over},
            "epoch_progress": {"total": {"ready": place["position"]["epoch"] + (not over)}},
            "epoch_loop.state_dict": {},
        }}  # fmt: skip
        best = content["callbacks"].pop("Checkpoints")["best"]
        best = {f"/gone/{name}": torch.tensor(norm) for name, norm in best.items()}
        content["callbacks"]["ModelCheckpoint{'monitor': 'val/norm'}"] = {"best_k_models": best}
        del content["callbacks"]["Published"]["rows"], content["callbacks"]["Board"]
        save_whole(path, content)
    code, said = train(data, tmp_path / "parts")
    assert code == 0 and said.count("the checkpoint of an earlier version") == 1, said
    whole, parts = left(tmp_path / "whole"), left(tmp_path / "parts")
    different = {name[1] for name in whole if whole[name] != parts.get(name)}
    assert different == {"epoch=0-step=3.ckpt"}, different  # as that version left it
    assert whole["version_0", "last.ckpt", "callbacks"]["Checkpoints"]["best"].keys() == (
        parts["version_0", "last.ckpt", "callbacks"]["Checkpoints"]["best"].keys()
    )


IN_A_TERMINAL = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where these tests run under nohup
from nrf.commands import learn_shapes
sys.exit(learn_shapes.main(sys.argv[1:]))
"""


def test_a_closed_terminal_loses_nothing_and_nohup_is_heeded(data, tmp_path):
    flags = FLAGS | {"max_epochs": 1000, "enable_progress_bar": "true"}
    arguments = [str(data), str(tmp_path / "logs"), *TINY, *resuming.words(flags)]
    terminal, its = pty.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, *arguments]
    child = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    while not list(tmp_path.glob("logs/*.csv")):
        assert os.read(terminal, 1024)
    os.close(terminal)
    assert child.wait() == 128 + signal.SIGHUP
    assert load_archive(next(tmp_path.glob("logs/*/*/checkpoints/last.ckpt")))["global_step"] >= 3
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(data, tmp_path / "nohup", ("SIGHUP", "on_train_batch_end", 1))[0] == 0
    finally:
        signal.signal(signal.SIGHUP, handler)
