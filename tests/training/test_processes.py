"""Several processes: the same numbers as one with as large a batch, one writer, one end."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_learn_shapes import TINY, render, scalars, weights

from nrf.commands import learn_shapes
from nrf.data.dataset import ShapeDataset, collate, loader
from nrf.training.trainer import first_decides

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--dropout=0", "--max_epochs=3", "--log_every_n_steps=1", "--ckpt_path=last", "--lr=0.001"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """17 items to train on, 5 to validate: no multiples of 4, and a last batch of one."""
    return render(tmp_path_factory.mktemp("data") / "shapes", recordings=22, frames=12)


class Node:
    """A learn_shapes.py of ours that trains with others; what it says is in `output`."""

    def __init__(self, data, logs, output, *flags, **variables):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    ROOT / "learn_shapes.py",
                    data,
                    logs,
                    *TINY,
                    *FLAGS,
                    "--strategy=ddp",
                    *flags,
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=clean | {"OMP_NUM_THREADS": "1"} | variables,
            )

    def stop_after_an_epoch(self, logs):
        end = time.monotonic() + 120
        while not rows(logs):
            assert self.process.poll() is None and time.monotonic() < end, self.output.read_text()
            time.sleep(0.02)
        self.process.send_signal(signal.SIGTERM)

    def end(self):
        """Its exit code, and what it said."""
        code = self.process.wait(timeout=120)
        return code, self.output.read_text()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def two_nodes(data, logs, others_logs, folder, *flags):
    """The first process of each, found as Lightning finds them: by environment variables."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    flags = ["--num_nodes=2", "--devices=1", *flags]
    return [
        Node(data, root, folder / f"output-{rank}", *flags, **address, NODE_RANK=str(rank))
        for rank, root in enumerate((logs, others_logs))
    ]


def rows(logs):
    """The CSV's (step, norm), [] before there is one."""
    paths = list(logs.glob("*.csv"))
    return [(int(row[0]), float(row[1])) for row in csv.reader(paths[0].open())] if paths else []


def close(one, other):
    assert one == pytest.approx(other, rel=1e-5, abs=1e-7)


def one_node(data, logs, folder, *flags):
    """Stopped by a signal to the first process, and resumed."""
    node = Node(data, logs, folder / "output", "--devices=2", *flags)
    node.stop_after_an_epoch(logs)
    code, output = node.end()
    assert code == 128 + signal.SIGTERM and output.count("stopped by SIGTERM") == 1, output
    assert len(rows(logs)) < 3
    code, output = Node(data, logs, folder / "output", "--devices=2", *flags).end()
    assert code == 0 and output.count("best error") == 1, output


def several_nodes(data, logs, folder, *flags):
    """Stopped by a signal to the second one, which then does not see where to resume, but is told."""
    nodes = two_nodes(data, logs, logs, folder, *flags)
    nodes[1].stop_after_an_epoch(logs)
    (first, output), (second, nothing) = (node.end() for node in nodes)
    assert (first, second) == (128 + signal.SIGTERM, 0), output + nothing
    assert output.count("stopped by SIGTERM") == 1 and "stopped" not in nothing
    assert len(rows(logs)) < 3
    nodes = two_nodes(data, logs, folder / "elsewhere", folder, *flags)
    (first, output), (second, nothing) = (node.end() for node in nodes)
    assert (first, second) == (0, 0), output + nothing
    assert output.count("resumes from") == output.count("best error") == 1 and "best error" not in nothing
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize(
    ("train", "flags"),
    [(one_node, ["--net=li"]), (several_nodes, ["--net=lif", "--precision=64-true"])],
    ids=["one node", "two nodes"],
)
def test_two_processes_are_one_with_twice_the_batch(data, tmp_path, train, flags):
    """Also where they are stopped by a signal to one of them, and resume."""
    more = [*flags, "--regularization_scale=1"]  # so that the regulariser counts
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert learn_shapes.main([str(data), str(alone), *TINY, *FLAGS, *more, "--batch_size=4"]) == 0
    train(data, together, tmp_path, *more)

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
    with pytest.raises(ValueError, match="needs 20 items to train on; there are"):
        loader(dataset, 10, True, rank=0, n_processes=2)


def test_what_several_processes_cannot_do_is_told(data, tmp_path, capsys):
    assert learn_shapes.main([str(data), str(tmp_path), *TINY, "--sync_batchnorm=true"]) == 2
    assert "--sync_batchnorm: batch normalisation here is per time step" in capsys.readouterr().err


def test_an_error_of_the_first_process_ends_the_others_without_a_word():
    sent = []

    def trainer(first, broadcast):
        strategy = SimpleNamespace(launcher=None, broadcast=broadcast)
        return SimpleNamespace(strategy=strategy, is_global_zero=first)

    def fail():
        raise FileNotFoundError("nowhere.ckpt")

    with pytest.raises(FileNotFoundError):
        first_decides(trainer(True, lambda value: sent.append(value) or value), fail)
    with pytest.raises(SystemExit) as end:
        first_decides(trainer(False, lambda _: sent[0]), lambda: pytest.fail("asked"))
    assert end.value.code is None
    assert first_decides(trainer(True, lambda value: sent.append(value) or value), lambda: 3) == 3
    assert first_decides(trainer(False, lambda _: sent[1]), fail) == 3


def test_the_mean_of_all_has_the_gradient_of_its_part(monkeypatch):
    from nrf.training import ranks

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
