"""Every flag of Lightning's Trainer, each with an unusual value: it works, or one line says why not."""

import inspect
import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from test_learn_shapes import TINY, render, scalars

from nrf.commands import learn_shapes
from nrf.data.recordings import read_recording, write_recording
from nrf.training import advice
from nrf.training.callbacks import Drawing

FLAGS = inspect.signature(pl.Trainer).parameters
WORKS = 0
VALUES = {  # flag: (further words, words of the line that refuses it, or WORKS)
    "accelerator": [
        ("abacus", "abacus"),
        ("gpu", WORKS if torch.cuda.is_available() else "No supported gpu"),
    ],
    "strategy": [
        ("ddp", WORKS),
        ("ddp_fork", "expected ddp"),
        ("ddp_spawn", "expected ddp"),
        ("nothing", "invalid strategy"),
    ],
    "devices": [("0", "devices"), ("1", WORKS)],
    "num_nodes": [("0", "num_nodes")],
    "precision": [("bf16-true", WORKS), ("64-true", WORKS), ("3", "precision")],
    "logger": [("false", WORKS), ("CSVLogger --logger.save_dir=OUT/csv", WORKS), ("NoLogger", "NoLogger")],
    "callbacks": [("EarlyStopping --callbacks.monitor=val/norm", WORKS), ("NoCallback", "NoCallback")],
    "fast_dev_run": [("true", WORKS), ("2", WORKS), ("-1", "fast_dev_run")],
    "max_epochs": [("0", WORKS), ("-2", "max_epochs")],
    "min_epochs": [("2", WORKS)],
    "max_steps": [("2", WORKS), ("-2", "max_steps")],
    "min_steps": [("7", WORKS)],
    "max_time": [("00:00:00:00", WORKS), ("soon", "duration")],
    "limit_train_batches": [("0.5", WORKS), ("0", WORKS), ("-1", "limit_train_batches")],
    "limit_val_batches": [("0", WORKS), ("1", WORKS)],
    "limit_test_batches": [("0", WORKS)],
    "limit_predict_batches": [("1", WORKS)],
    "overfit_batches": [("1", WORKS)],
    "val_check_interval": [("2", WORKS), ("0.5", WORKS)],
    "check_val_every_n_epoch": [("5", WORKS)],
    "num_sanity_val_steps": [("-1", WORKS)],
    "log_every_n_steps": [("0", WORKS), ("1", WORKS)],
    "enable_checkpointing": [("false", WORKS)],
    "enable_progress_bar": [("true", WORKS)],
    "enable_model_summary": [("true", WORKS)],
    "accumulate_grad_batches": [("3", WORKS), ("0", "accumulate_grad_batches")],
    "gradient_clip_val": [("0.1", WORKS)],
    "gradient_clip_algorithm": [
        ("value --gradient_clip_val=0.1", WORKS),
        ("none", "gradient_clip_algorithm"),
    ],
    "deterministic": [("warn", WORKS), ("true", WORKS)],
    "benchmark": [("true", WORKS)],
    "inference_mode": [("false", WORKS)],
    "use_distributed_sampler": [("false", WORKS)],
    "profiler": [("simple", WORKS), ("nothing", "profiler")],
    "detect_anomaly": [("true", WORKS)],
    "barebones": [("true", WORKS), ("true --enable_progress_bar=true", "barebones")],
    "plugins": [("nothing", "nothing")],
    "sync_batchnorm": [("true", "per process")],
    "reload_dataloaders_every_n_epochs": [("1", WORKS)],
    "default_root_dir": [("OUT/elsewhere", WORKS)],
    "enable_autolog_hparams": [("false", WORKS)],
    "model_registry": [("somewhere", WORKS)],
}


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """Pictures take most of the time of so small a run: they are drawn in half precision only."""
    if "precision" not in request.node.name:
        monkeypatch.setattr(Drawing, "picture", lambda *arguments: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("data") / "shapes", recordings=6, size=24, frames=8)


def train(data, logs, *flags):
    """Exit code of a run of two steps, however it ends."""
    try:
        return learn_shapes.main([str(data), str(logs), *TINY, "--timesteps=2", *flags])
    except SystemExit as end:
        return end.code
    finally:
        torch.use_deterministic_algorithms(False)


def test_every_flag_of_the_installed_trainer_is_walked_through():
    assert set(VALUES) == set(FLAGS)


@pytest.mark.parametrize("flag", FLAGS)
def test_it_works_or_one_line_says_why_not(data, tmp_path, capsys, flag):
    for i, (value, refusal) in enumerate(VALUES[flag]):
        words = f"--{flag}={value}".replace("OUT", str(tmp_path)).split()
        code = train(data, tmp_path / str(i), *words)
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("learn_shapes.py: ")]
        if refusal == WORKS:
            assert code == 0 and not lines, (value, lines)
            assert "inf px" not in out and out.strip() and "no picture" not in err, value
        else:
            assert code in (1, 2) and len(lines) == 1 and refusal in lines[0], (value, code, err)
            assert " at 0x" not in lines[0]


def test_further_loggers_and_callbacks_come_beside_ours(data, tmp_path):
    words = ["--logger=CSVLogger", f"--logger.save_dir={tmp_path}/csv", "--callbacks=EarlyStopping"]
    words += ["--callbacks.monitor=val/norm"]
    assert train(data, tmp_path / "logs", *words, "--log_every_n_steps=1") == 0
    (table,) = tmp_path.glob("csv/**/metrics.csv")
    assert "val/error_px" in table.read_text()
    (version,) = tmp_path.glob("logs/*/version_0")
    assert "val/error_px" in scalars(version)[1] and (version / "run.json").is_file()
    kept = torch.load(version / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert any("EarlyStopping" in name for name in kept) and "Published" in kept


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--callbacks=EarlyStopping --callbacks.monitor=loss --callbacks.mode=sideways", "got sideways"),
        ("--logger=WandbLogger", "wandb"),  # not among what the tests install
    ],
)
def test_a_class_that_cannot_be_made_says_why(data, tmp_path, capsys, words, why):
    assert train(data, tmp_path, *words.split()) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("learn_shapes.py: ")]
    assert len(lines) == 1 and words.split()[0].split("=")[1] in lines[0] and why in lines[0], lines


def test_without_a_logger_the_run_is_kept_all_the_same(data, tmp_path, capsys):
    assert train(data, tmp_path, "--logger=false") == 0
    out = capsys.readouterr().out
    assert "checkpoint: /" in out
    assert "tensorboard" not in out
    (version,) = tmp_path.glob("*/version_0")
    assert (version / "run.json").is_file() and (version / "checkpoints/last.ckpt").is_file()
    assert not list(version.glob("events.*"))


@pytest.mark.parametrize("words", ["--limit_val_batches=0", "--check_val_every_n_epoch=5", "--max_steps=1"])
def test_a_run_without_a_validation_names_its_checkpoint(data, tmp_path, capsys, words):
    assert train(data, tmp_path, words) == 0
    out = capsys.readouterr().out
    assert "no validation" in out and "last.ckpt" in out


class Interrupts(Callback):
    """Ctrl-C within the first batch, so often."""

    def __init__(self, times=1):
        self.times = times

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        for _ in range(self.times):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("times", "words", "told"),
    [
        (1, [], "to resume: the same command with --ckpt_path last"),
        (1, ["--enable_checkpointing=false"], "no checkpoint was asked for"),
        (2, [], "stopped at once"),
    ],
)
def test_what_ctrl_c_says(data, tmp_path, capsys, times, words, told):
    interrupts = [f"--callbacks={__name__}.Interrupts", f"--callbacks.times={times}"]
    before = signal.getsignal(signal.SIGINT)
    try:
        assert train(data, tmp_path, *interrupts, *words) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    out, err = capsys.readouterr()
    assert told in out + err and "Traceback" not in err


LIF = "--net=lif --init_scheme_spatial=uniform --regularization_activity_scale=0 --weight_decay=0".split()


def test_a_silent_layer_and_a_time_constant_that_leaves_are_told_once(data, tmp_path, capsys):
    assert train(data, tmp_path, *LIF, "--max_epochs=2") == 0
    err = capsys.readouterr().err
    assert err.count("no neuron of layer 1 fires") == 1 and "--batch_normalization 1" in err
    assert train(data, tmp_path, *LIF, "--skip_connections=1") == 0
    assert "no neuron of layer 1 fires; try" in capsys.readouterr().err
    assert train(data, tmp_path, "--lr=300", "--max_epochs=2") in (0, 1)
    err = capsys.readouterr().err
    assert err.count("has left its range") == 1 and "expected 0 to 1000" in err


@pytest.mark.parametrize(
    ("firing", "told"), [([{1, 2, 3}, set()], None), ([set(), {1, 2, 3}], None), ([{1}, {1, 3}], 2)]
)
def test_a_layer_is_silent_that_never_fires_in_an_epoch(data, tmp_path, monkeypatch, capsys, firing, told):
    source = iter(firing * 2)
    monkeypatch.setattr(advice, "firing_layers", lambda *_: next(source))
    assert train(data, tmp_path, "--net=lif", "--max_epochs=2") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "fires" in line]
    assert lines == [] if told is None else len(lines) == 1 and f"layer {told} fires, and those" in lines[0]


def test_recordings_without_events_are_told(tmp_path, capsys, data):
    for path in data.rglob("*.dat"):
        recording = read_recording(path)
        copy = tmp_path / "empty" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_recording(copy, recording.events[:0], recording.labels, recording.shape)
    assert train(tmp_path / "empty", tmp_path / "logs") == 0
    assert capsys.readouterr().err.count("no event in") == 1
    assert train(data, tmp_path / "logs") == 0
    assert "event" not in capsys.readouterr().err
