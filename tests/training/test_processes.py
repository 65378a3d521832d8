"""Several processes: the same numbers as one with as large a batch, one writer, one end."""

import csv
import signal
import socket
from types import SimpleNamespace

import pytest
import torch
from test_learn_shapes import TINY, render, scalars, weights

from benchmarks import faults
from nrf.commands import learn_shapes
from nrf.data.dataset import ShapeDataset, collate, loader
from nrf.system.archive import load_archive
from nrf.training.trainer import first_decides

FLAGS = ["--dropout=0", "--max_epochs=3", "--log_every_n_steps=1", "--ckpt_path=last", "--lr=0.001"]
FLAGS.append("--accumulate_grad_batches=3")  # of 4 batches an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """17 items to train on, 5 to validate: no multiples of 4, and a last batch of one."""
    return render(tmp_path_factory.mktemp("data") / "shapes", recordings=22, frames=12)


def strike(rank):
    """A signal to one process, at the sixth batch: within a window of accumulated gradients."""
    strike = {"way": "SIGTERM", "hook": "on_train_batch_end", "number": 5, "rank": rank}
    return ["--callbacks=benchmarks.resuming.Strike", *(f"--callbacks.{k}={v}" for k, v in strike.items())]


def processes(data, logs_of, folder, *flags):
    """Commands that train together, each with its own logs; the first one's exit code, and what each said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    nodes, outputs = [], [folder / str(rank) for rank in range(len(logs_of))]
    for rank, (output, logs) in enumerate(zip(outputs, logs_of, strict=True)):
        output.mkdir(exist_ok=True)
        (output / "output").write_text("")
        words = [data, logs, *TINY, *FLAGS, *flags, "--strategy=ddp"]
        nodes.append(faults.start("learn_shapes", words, output, NODE_RANK=str(rank), **address))
    for node in nodes:
        node.join(120)
    assert not any(node.exitcode for node in nodes[1:])
    return nodes[0].exitcode, *((output / "output").read_text() for output in outputs)


def one_node(data, logs, folder, *flags):
    """A command that starts its second process itself."""
    return *processes(data, [logs], folder, "--devices=2", *flags), ""


def two_nodes(data, logs, folder, *flags):
    """A command on each node, which find each other by environment variables; the second one's logs are
    elsewhere."""
    return processes(data, [logs, folder / "elsewhere"], folder, "--devices=1", "--num_nodes=2", *flags)


def rows(logs):
    """The CSV's (step, norm), [] before there is one."""
    paths = list(logs.glob("*.csv"))
    return [(int(row[0]), float(row[1])) for row in csv.reader(paths[0].open())] if paths else []


def close(one, other):
    assert one == pytest.approx(other, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("train", "rank", "flags"),
    [(one_node, 0, ["--net=li"]), (two_nodes, 1, ["--net=lif", "--precision=64-true"])],
    ids=["one node", "two nodes"],
)
def test_two_processes_are_one_with_twice_the_batch(data, tmp_path, train, rank, flags):
    """Also where they are stopped by a signal to one of them within a window of accumulated gradients, and
    resume: from what the first process sees, whatever the other does."""
    more = [*flags, "--regularization_scale=1"]  # so that the regulariser counts
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert learn_shapes.main([str(data), str(alone), *TINY, *FLAGS, *more, "--batch_size=4"]) == 0
    code, output, other = train(data, together, tmp_path, *more, *strike(rank))
    assert code == 128 + signal.SIGTERM and output.count("stopped by SIGTERM") == 1, output
    assert "stopped" not in other and "deprecated" not in output and len(rows(together)) == 1
    place = load_archive(next(together.glob("*/*/checkpoints/last.ckpt")))["place"]
    assert (place["batches"], place["window"]) == (6, 2)
    code, output, other = train(data, together, tmp_path, *more)
    assert code == 0 and output.count("resumes from") == output.count("best error") == 1, output
    assert "best error" not in other and not (tmp_path / "elsewhere").exists()

    versions = [next(logs.glob("*/version_0")) for logs in (alone, together)]
    assert [len(list(version.parent.iterdir())) for version in versions] == [1, 1]
    names = [sorted(path.name for path in version.glob("checkpoints/*")) for version in versions]
    assert names[0] == names[1]
    files = [sorted(p.name for p in logs.glob("[!.]*") if p.is_file()) for logs in (alone, together)]
    assert files[0] == files[1]
    found = [rows(logs) for logs in (alone, together)]
    assert [step for step, _ in found[0]] == [step for step, _ in found[1]] == [2, 4, 6]
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
