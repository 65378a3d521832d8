"""Several processes: the same numbers as one with as large a batch, one writer, one end."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_learn_shapes import TINY, render, scalars, weights

import learn_shapes
from dataset import ShapeDataset, collate, loader

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--dropout=0", "--max_epochs=3", "--log_every_n_steps=1", "--ckpt_path=last", "--lr=0.001"]
TOGETHER = ["--devices=2", "--strategy=ddp"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """17 items to train on, 5 to validate: no multiples of 4, and a last batch of one."""
    return render(tmp_path_factory.mktemp("data") / "shapes", recordings=22, frames=12)


def start(data, logs, *flags):
    words = [sys.executable, ROOT / "learn_shapes.py", data, logs, *TINY, *FLAGS, *TOGETHER, *flags]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean | {"OMP_NUM_THREADS": "1"},
    )


def rows(logs):
    """The CSV's (step, norm), [] before there is one."""
    paths = list(logs.glob("*.csv"))
    return [(int(row[0]), float(row[1])) for row in csv.reader(paths[0].open())] if paths else []


def close(one, other):
    assert one == pytest.approx(other, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("net", ["li", "lif"])
def test_two_processes_are_one_with_twice_the_batch(data, tmp_path, net):
    """Also where they are stopped by a signal to one of them, and go on."""
    more = [f"--net={net}", "--regularization_scale=1"]  # so that the regulariser counts
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert learn_shapes.main([str(data), str(alone), *TINY, *FLAGS, *more, "--batch_size=4"]) == 0
    if net == "li":
        process, end = start(data, together, *more), time.monotonic() + 90
        while not rows(together):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM and output.count("stopped by SIGTERM") == 1, output
        assert len(rows(together)) < 3
    process = start(data, together, *more)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and output.count("best error") == 1, output

    versions = [next(logs.glob("*/version_0")) for logs in (alone, together)]
    assert [len(list(version.parent.iterdir())) for version in versions] == [1, 1]
    names = [sorted(path.name for path in version.glob("checkpoints/*")) for version in versions]
    assert names[0] == names[1]
    files = [sorted(p.name for p in logs.glob("[!.]*") if p.is_file()) for logs in (alone, together)]
    assert files[0] == files[1]
    found = [rows(logs) for logs in (alone, together)]
    assert [step for step, _ in found[0]] == [step for step, _ in found[1]] == [4, 8, 12]
    for (_, one), (_, other) in zip(*found, strict=True):
        close(one, other)
    (_, one), (_, other) = map(scalars, versions)
    assert one.keys() == other.keys()
    for tag in one:
        if tag.startswith(("train/out", "epoch")):
            continue
        assert [step for step, _ in one[tag]] == [step for step, _ in other[tag]], tag
        close([value for _, value in one[tag]], [value for _, value in other[tag]])
    ours, theirs = (weights(version / "checkpoints/last.ckpt") for version in versions)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert (value - theirs[key]).abs().max() <= 1e-5 * value.abs().max(), key


def test_shares_of_a_batch_are_the_batch(data):
    dataset = ShapeDataset(data, 3, split="val")
    for size, processes, shuffle in ((2, 2, False), (1, 3, False), (2, 2, True), (1, 4, True)):
        whole = loader(dataset, size * processes, shuffle, seed=3)
        shares = [
            loader(dataset, size, shuffle, 0, 3, rank=r, n_processes=processes) for r in range(processes)
        ]
        batches = list(whole.batch_sampler)
        parts = [list(share.batch_sampler) for share in shares]
        assert all(len(part) == len(batches) == len(share) for part, share in zip(parts, shares, strict=True))
        for k, batch in enumerate(batches):
            assert sorted(batch) == sorted(item for part in parts for item in part[k])
            assert all(len(part[k]) <= size for part in parts)
    assert len(collate([]).counts) == 0
    with pytest.raises(ValueError, match="wants 20 items to train on; there are"):
        loader(dataset, 10, True, rank=0, n_processes=2)


def test_what_several_processes_cannot_do_is_told(data, tmp_path, capsys):
    assert learn_shapes.main([str(data), str(tmp_path), *TINY, "--sync_batchnorm=true"]) == 2
    assert "--sync_batchnorm: batch normalisation here is per time step" in capsys.readouterr().err


def test_the_mean_of_all_has_the_gradient_of_its_part(monkeypatch):
    import ranks

    other = torch.tensor([3.0, 5.0])

    def all_reduce(tensor):
        tensor += torch.cat([torch.tensor([1.0]), other])

    monkeypatch.setattr(ranks, "n_processes", lambda: 2)
    monkeypatch.setattr(ranks.distributed, "all_reduce", all_reduce)
    own = torch.tensor([1.0, 1.0], requires_grad=True)
    mean = ranks.mean_of_all(own, 3)
    assert torch.equal(mean, torch.tensor([6 / 4, 8 / 4]))
    (mean**2).sum().backward()
    assert torch.equal(own.grad, 2 * mean.detach())
