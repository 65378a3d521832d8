"""What breaks around a run: kills, full disks, folders that vanish, numbers that diverge; nothing is lost.

All of the 20 kills each of training and rendering: `python3 -m benchmarks.faults`.  Here are fewer.
"""

import ctypes
import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_learn_shapes import TINY, render, scalars, weights

from benchmarks import faults
from benchmarks.resuming import left
from nrf.commands import generate_data, learn_shapes
from nrf.data.recordings import write_recording
from nrf.system import files
from nrf.system.archive import load_archive, save_whole
from nrf.system.files import write_whole
from nrf.training import module
from nrf.training import run as run_module
from nrf.training.callbacks import Published, explain
from nrf.training.persistence import claim_version, find_last, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
RUN = "li_rf-rf_1_s1_d0.05_n0_(shapes)"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into Linux's /proc")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 8 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    if os.name != "posix" or os.geteuid() or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk (tmpfs)")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk, leave):
    """A file that takes all of a disk but `leave` bytes."""
    filler = disk / "filler"
    file = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(file)
    os.truncate(filler, max(filler.stat().st_size - leave, 0))
    return filler


def train(data, logs, *flags):
    return learn_shapes.main([str(data), str(logs), *TINY, *flags])


def last_error(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def assert_same_run(one, other):
    assert left(one) == left(other)


# kills


def test_kill_9_at_random_moments_of_training(tmp_path):
    assert faults.kill_training(tmp_path, kills=2, seed=1, epochs=2) == 0


def test_kill_9_at_random_moments_of_rendering(tmp_path):
    assert faults.kill_rendering(tmp_path, kills=3, seed=1) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("moment", ["half written", "written", "renamed"])
def test_kill_9_within_a_write(tmp_path, moment):
    """A reader finds the old file or the new one, and what is left over bears another name."""
    path = tmp_path / "last.ckpt"
    save_whole(path, {"step": 1})

    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    save_whole(tmp_path / "later", {"step": 2})
    later = (tmp_path / "later").read_bytes()
    target, name = {
        "half written": (files.os, "fsync"),
        "written": (files.Path, "replace"),
        "renamed": (files.Path, "unlink"),
    }[moment]
    child = os.fork()
    if not child:
        try:
            setattr(target, name, killed)
            write_whole(path, later)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert load_archive(path) == {"step": 2 if moment == "renamed" else 1}
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".ckpt"] == ["last.ckpt"]
    save_whole(path, {"step": 3})
    assert load_archive(path) == {"step": 3}


def test_the_newest_checkpoint_that_can_be_read_is_taken_and_damaged_ones_are_named(data, tmp_path, capsys):
    flags = ["--log_every_n_steps=1", "--ckpt_path=last"]
    assert train(data, tmp_path / "whole", "--max_epochs=3", *flags) == 0
    assert train(data, tmp_path / "parts", "--max_epochs=2", *flags) == 0
    folder = tmp_path / "parts" / RUN / "version_0/checkpoints"
    last = folder / "last.ckpt"
    newest = load_archive(last)["global_step"]
    last.write_bytes(last.read_bytes()[:9000])
    (folder / ".last.ckpt.elsewhere-1").write_bytes(b"half")
    settings = load_archive(folder / f"epoch=1-step={newest}.ckpt")["hyper_parameters"]
    assert find_last(folder.parents[1], settings) == folder / f"epoch=1-step={newest}.ckpt"
    assert f"{last}: damaged or foreign" in capsys.readouterr().err
    (folder / f"epoch=1-step={newest}.ckpt").write_bytes(b"")
    assert train(data, tmp_path / "parts", "--max_epochs=3", *flags) == 0
    output = capsys.readouterr()
    assert output.err.count("damaged or foreign") == 2 and f"resumes from {folder}/epoch=0" in output.out
    assert not list(folder.glob(".*"))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@linux
def test_processes_that_read_data_die_with_their_parent(data, tmp_path):
    flags = [*TINY, "--num_workers=2", "--max_epochs=500"]
    process = faults.start("learn_shapes", [data, tmp_path, *flags], tmp_path)
    end = time.monotonic() + 60
    while len(family(process.pid)) < 3 or not list(tmp_path.glob("*.csv")):
        assert process.is_alive() and time.monotonic() < end, (tmp_path / "output").read_text()
        time.sleep(0.05)
    members = family(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and is_running(pid) for pid in members):
        assert time.monotonic() < end, [
            (pid, Path(f"/proc/{pid}/status").read_text(), Path(f"/proc/{pid}/cmdline").read_text())
            for pid in members
            if Path(f"/proc/{pid}").exists()
        ]
        time.sleep(0.1)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def family(group):
    """Processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


@linux
def test_a_killed_worker_is_told_in_a_line(data, tmp_path, monkeypatch, capsys):
    class Killer(Published):
        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            super().on_train_batch_start(trainer, model, batch, batch_idx)
            if trainer.global_step == 2:
                for worker in trainer.train_dataloader._iterator._workers:
                    os.kill(worker.pid, signal.SIGKILL)
                time.sleep(0.5)

    monkeypatch.setattr(run_module, "Published", Killer)
    assert train(data, tmp_path, "--num_workers=1", "--batch_size=1", "--max_epochs=2") == 1
    assert "DataLoader worker" in last_error(capsys)


# disks


@pytest.mark.parametrize("leave", [0, 24 * 1024])
def test_disk_full_while_training(data, small_disk, tmp_path, leave, capsys):
    """Without room for the logs, and with some but not for a checkpoint."""
    flags = ["--log_every_n_steps=1", "--ckpt_path=last"]
    assert train(data, tmp_path / "whole", "--max_epochs=3", *flags) == 0
    logs = small_disk / "logs"
    assert train(data, logs, "--max_epochs=1", *flags) == 0
    before = {path: path.read_bytes() for path in logs.rglob("*.ckpt")}
    csv = {path: path.read_text() for path in logs.glob("*.csv")}
    filler = fill(small_disk, leave)
    capsys.readouterr()
    assert train(data, logs, "--max_epochs=3", *flags) == 1
    assert "No space left on device" in last_error(capsys)
    assert {path: path.read_bytes() for path in logs.rglob("*.ckpt")} == before
    assert all(path.read_text().startswith(text) for path, text in csv.items())
    filler.unlink()
    assert train(data, logs, "--max_epochs=3", *flags) == 0
    assert_same_run(tmp_path / "whole", logs)


def test_disk_full_while_rendering(small_disk, capsys):
    words = ["6", str(small_disk / "data"), *faults.RENDERING[1:]]
    assert generate_data.main(words) == 0
    recordings = {path: path.read_bytes() for path in small_disk.rglob("*.dat")}
    for path in list(recordings)[3:]:
        path.unlink()
    filler = fill(small_disk, 0)
    capsys.readouterr()
    assert generate_data.main(words) == 1
    assert "No space left on device" in last_error(capsys)
    assert not list(small_disk.rglob(".*.dat*"))
    assert {path: path.read_bytes() for path in small_disk.rglob("*.dat")}.items() <= recordings.items()
    filler.unlink()
    assert generate_data.main(words) == 0
    assert {path: path.read_bytes() for path in small_disk.rglob("*.dat")} == recordings


def test_a_folder_that_cannot_be_written(data, small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert train(data, small_disk / "logs") == 1
    assert "Read-only file system" in last_error(capsys)
    assert generate_data.main(["2", str(small_disk / "data"), *faults.RENDERING[1:]]) == 1
    assert "Read-only file system" in last_error(capsys)


def test_a_folder_that_vanishes(data, tmp_path, monkeypatch, capsys):
    class Vanish(Published):
        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            super().on_train_batch_start(trainer, model, batch, batch_idx)
            if trainer.global_step == 2:
                shutil.rmtree(self.log_root)

    monkeypatch.setattr(run_module, "Published", Vanish)
    assert train(data, tmp_path / "logs") == 1
    error = last_error(capsys)
    assert str(tmp_path / "logs") in error and "No such file or directory" in error
    assert not (tmp_path / "logs").exists()


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write_whole(tmp_path / "a", b"before")
    (tmp_path / "b").mkdir()
    with pytest.raises(OSError, match="not written") as error:
        write_whole(tmp_path / "b", b"after")
    assert error.value.filename == str(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


# numbers


def test_diverged_weights_are_told_and_never_saved(data, tmp_path, monkeypatch, capsys):
    assert train(data, tmp_path) == 0
    kept = weights(tmp_path / RUN / "version_0/checkpoints/last.ckpt")

    def poison(self, *_):
        if self.global_step == 8:
            self.net.classifier[0].weight.data.fill_(float("nan"))

    monkeypatch.setattr(module.ShapesModel, "on_train_batch_end", poison, raising=False)
    capsys.readouterr()
    assert train(data, tmp_path, "--max_epochs=3", "--ckpt_path=last") == 1
    error = last_error(capsys)
    assert "the loss is nan at step 8" in error and "last.ckpt" in error and "--lr" in error
    after = weights(tmp_path / RUN / "version_0/checkpoints/last.ckpt")
    assert all(torch.equal(kept[key], after[key]) for key in kept)
    # weights that turn at the very end of an epoch
    monkeypatch.setattr(module.ShapesModel, "validation_step", lambda *_: None)
    monkeypatch.setattr(
        module.ShapesModel,
        "on_train_batch_end",
        lambda self, *_: self.global_step == 6 and self.net.classifier[0].weight.data.fill_(float("inf")),
    )
    assert train(data, tmp_path / "end", "--limit_val_batches=0") == 1
    assert "is no longer finite at step 6; last good checkpoint: none yet" in last_error(capsys)
    assert not list(tmp_path.glob("end/**/*.ckpt"))


def test_detect_anomaly_names_the_operation(data, tmp_path, monkeypatch, capsys):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("nan")

    norm = module.coordinate_distance
    monkeypatch.setattr(module, "coordinate_distance", lambda a, b: Broken.apply(norm(a, b)))
    with pytest.warns(UserWarning, match="BrokenBackward"):
        assert train(data, tmp_path, "--detect_anomaly=true") == 1
    assert "BrokenBackward' returned nan values" in last_error(capsys)


def test_out_of_memory_is_told_with_what_helps(data, tmp_path, monkeypatch, capsys):
    def allocate(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(module.ShapesModel, "track", allocate)
    assert train(data, tmp_path) == 1
    error = last_error(capsys)
    assert "out of memory with --batch_size 2, --timesteps 3" in error and "--precision bf16-mixed" in error
    assert explain(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        {"batch_size": 1, "timesteps": 1, "precision": None},
    ).startswith("out of memory")
    assert explain(RuntimeError("a bug"), {}) is None


# several at once, and for long


def test_versions_are_claimed_by_one_run_each(tmp_path):
    numbers = []
    threads = [
        threading.Thread(target=lambda: numbers.append(claim_version(tmp_path / "run"))) for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(24))


def test_two_runs_into_one_folder_at_once(data, tmp_path):
    for name in ("one", "two", "alone"):
        (tmp_path / name).mkdir()
    flags = [*TINY, "--max_epochs=3", "--log_every_n_steps=1"]
    both = [
        faults.start("learn_shapes", [data, tmp_path / "logs", *flags, f"--lr={lr}"], tmp_path / name)
        for name, lr in (("one", 0.01), ("two", 0.02))
    ]
    for process in both:
        process.join()
        assert process.exitcode == 0
    rows = {}
    for line in next((tmp_path / "logs").glob("*.csv")).read_text().splitlines():
        step, norm, version = line.split(",")
        rows.setdefault(version, []).append((step, norm))
    assert set(rows) == {"0", "1"} and all([s for s, _ in r] == ["6", "12", "18"] for r in rows.values())
    faults.run("learn_shapes", [data, tmp_path / "alone", *flags, "--lr=0.02"], tmp_path / "alone")
    alone = tmp_path / "alone" / RUN / "version_0"
    twin = next(
        tmp_path / "logs" / RUN / f"version_{v}"
        for v in (0, 1)
        if read_checkpoint(tmp_path / f"logs/{RUN}/version_{v}/checkpoints/last.ckpt")["hyper_parameters"][
            "lr"
        ]
        == 0.02
    )
    ours, theirs = (weights(folder / "checkpoints/last.ckpt") for folder in (twin, alone))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert scalars(twin)[1] == scalars(alone)[1]


@linux
def test_fifty_epochs_leak_neither_memory_nor_file_handles(tmp_path, monkeypatch):
    data = render(tmp_path / "shapes", recordings=5)
    taken = []

    class Watch(Published):
        def on_train_epoch_start(self, trainer, model):
            if trainer.current_epoch not in (10, 20, 30, 40, 49):
                return
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back: the rest is in use
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            taken.append((resident / 2**20, len(os.listdir("/proc/self/fd")), threading.active_count()))

    monkeypatch.setattr(run_module, "Published", Watch)
    assert train(data, tmp_path / "logs", "--max_epochs=50", "--num_workers=0") == 0
    assert len(taken) == 5
    mebibytes, handles, threads = zip(*taken, strict=True)
    assert handles[0] == handles[-1] and threads[0] == threads[-1], taken
    assert mebibytes[-1] - mebibytes[0] < 4, mebibytes


def test_deterministic_algorithms_give_the_same_for_any_number_of_workers(data, tmp_path):
    found = []
    for workers in (0, 1, 3):
        logs = tmp_path / str(workers)
        assert train(data, logs, f"--num_workers={workers}", "--deterministic=true") == 0
        found.append(weights(logs / RUN / "version_0/checkpoints/last.ckpt"))
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(found[0][key], other[key]) for other in found[1:] for key in found[0])


def test_a_recording_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_recording(tmp_path / "0.dat", torch.zeros(0, 4), torch.zeros(3, 1, 2), (3, 2, 16, 16))
    assert not list(tmp_path.iterdir())


# shards


def test_shards_together_are_the_data_set(tmp_path, capsys):
    words = [*faults.RENDERING[1:], "--velocities", "0.5", "0.8"]
    assert generate_data.main(["5", str(tmp_path / "whole"), *words]) == 0
    for shard in ("3/3", "1/3", "2/3"):
        assert generate_data.main(["5", str(tmp_path / "parts"), *words, "--shard", shard]) == 0
    told = capsys.readouterr().out
    assert all(f": {n} recordings rendered" in told for n in (3, 4, 10)) and "were there" not in told
    whole, parts = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "whole", tmp_path / "parts")
    )
    assert whole == parts and len(whole) == 12
    for bad in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(SystemExit) as end:
            generate_data.main(["5", str(tmp_path / "bad"), *words, "--shard", bad])
        assert end.value.code == 2


def test_a_damaged_recording_is_rendered_anew_and_named(tmp_path, capsys):
    words = ["3", str(tmp_path), *faults.RENDERING[1:]]
    assert generate_data.main(words) == 0
    path = next(tmp_path.rglob("1.dat"))
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    (path.parent / ".1.dat.elsewhere-7").write_bytes(b"half")
    capsys.readouterr()
    assert generate_data.main(words) == 0
    assert f"rendered again: {path}" in capsys.readouterr().err
    assert path.read_bytes() == whole and not list(path.parent.glob(".*"))
