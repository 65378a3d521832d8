"""The command: it trains, logs, stops, resumes with the same numbers, and says what is wrong in one line."""

import csv
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nrf.commands import learn_shapes
from nrf.commands.config_files import read_config_lines
from nrf.config import Config, run_name
from nrf.data.dataset import ShapeDataset
from nrf.data.recordings import write_recording
from nrf.training import module, trainer
from nrf.training import run as run_module
from nrf.training.callbacks import Drawing, Published

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *"--timesteps=3 --batch_size=2 --n_spatial_scales=1 --n_temporal_scales=2 --n_angles=1".split(),
    *"--n_ratios=1 --max_epochs=1 --num_workers=0 --accelerator=cpu --enable_progress_bar=false".split(),
    *"--enable_model_summary=false --num_sanity_val_steps=0".split(),
]


def render(root, recordings=8, shapes=3, size=32, frames=18):
    """Dots that move along the diagonal, in noise."""
    rng = np.random.default_rng(0)
    (root / "v1").mkdir(parents=True)
    for i in range(recordings):
        start = rng.uniform(4, size - 4 - frames, (1, shapes, 1))
        labels = start + np.arange(frames)[:, None, None] * np.ones((1, 1, 2))
        dots = [
            (t, p, *labels[t, n].astype(int)) for t in range(frames) for p in (0, 1) for n in range(shapes)
        ]
        noise = rng.integers(0, (frames, 2, size, size), (40, 4))
        write_recording(
            root / "v1" / f"{i}.dat", np.concatenate([dots, noise]), labels, (frames, 2, size, size)
        )
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("data") / "shapes")


def weights(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return events, {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_run_leaves_what_the_published_program_leaves(data, tmp_path, capsys):
    assert learn_shapes.main([str(data), str(tmp_path), *TINY, "--net=lif", "--log_every_n_steps=1"]) == 0
    out = capsys.readouterr().out
    name = run_name(Config(net="lif"), data)
    assert name == "lif_rf-rf_1_s1_d0.05_n0_(shapes)"
    version = tmp_path / name / "version_0"
    checkpoints = sorted(path.name for path in (version / "checkpoints").iterdir())
    assert checkpoints == ["epoch=0-step=6.ckpt", "last.ckpt"]
    assert f"{version / 'checkpoints' / checkpoints[0]}" in out and "tensorboard --logdir" in out
    events, values = scalars(version)
    published = {"loss", "norm", "reg", "spike_reg"}
    assert {f"train/{t}" for t in published} | {f"val/{t}" for t in published} <= set(values)
    assert {"train/out/0", "train/out/1", "train/out/2", "lr-Adam", "hp_metric"} <= set(values)
    assert {"val/error_px", "val/error_px/circle", "val/error_px/square", "val/error_px/triangle"} <= set(
        values
    )
    assert {"image/prediction", "kernel/channel/1/2", "kernel/classifier"} <= set(events.Tags()["images"])
    assert {f"taus/block/{l}" for l in range(3)} <= set(events.Tags()["histograms"])
    # on a square field an error of 1 in units is half the field in pixels
    assert values["val/error_px"][0][1] == pytest.approx(values["val/norm"][0][1] * 16, rel=1e-5)
    shapes = [values[f"val/error_px/{s}"][0][1] for s in ("circle", "square", "triangle")]
    assert values["val/error_px"][0][1] == pytest.approx(np.mean(shapes), rel=1e-5)
    rows = list(csv.reader((tmp_path / f"{name}_shapes.csv").open()))
    assert len(rows) == 1 and rows[0][0] == "6" and rows[0][2] == "0"
    assert float(rows[0][1]) == pytest.approx(values["val/norm"][0][1], abs=1e-6)
    kernels = torch.load(tmp_path / f"v0_{name}_kernels_0.dat", weights_only=True)
    assert [n for _, n in kernels][-2:] == ["channel/1/2", "classifier"] and kernels[0][0].shape == (
        4,
        2,
        9,
        9,
    )
    taus = torch.load(tmp_path / f"v0_{name}_taus_0.dat", weights_only=True)
    assert [round(float(t), 2) for t in taus[0]] == [182.57, 91.29]


def test_trained_fields_are_drawn_and_kept(data, tmp_path):
    """The kernels that the fields make, once for the channels that share them."""
    flags = [*TINY, *TRAINED_FIELDS, "--max_epochs=-1", "--max_steps=1", "--limit_val_batches=1"]
    assert learn_shapes.main([str(data), str(tmp_path), *flags]) == 0
    version = next(tmp_path.glob("*/version_0"))
    assert {"kernel/channel/0/0", "kernel/channel/1/2"} <= set(scalars(version)[0].Tags()["images"])
    kernels = torch.load(next(tmp_path.glob("*_kernels_0.dat")), weights_only=True)
    weights_of = {name: weight for weight, name in kernels}
    assert weights_of["channel/0/1"].shape == (4, 4, 7, 7)
    assert weights_of["channel/0/1"].data_ptr() == weights_of["channel/1/1"].data_ptr()
    names = weights(version / "checkpoints/last.ckpt")
    fields = "net.channels.0.spatiotemporal.1.spatial.spatial."
    assert {name.removeprefix(fields) for name in names if name.startswith(fields)} == {
        "sigma_logit",
        "phi_rad",
        "amplitude",
    }


class Interrupt(Published):
    """Published, and a signal at the given step."""

    at = None

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        super().on_train_batch_start(trainer, model, batch, batch_idx)
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


TRAINED_FIELDS = ["--receptive_fields=exact", "--train_receptive_fields=1"]


# within an epoch of 6 steps, and at an epoch's last
@pytest.mark.parametrize("step, more", [(1, []), (8, []), (11, []), (8, TRAINED_FIELDS)])
def test_a_stopped_run_resumes_with_the_same_numbers(data, tmp_path, monkeypatch, step, more, capsys):
    flags = [*TINY, "--max_epochs=3", "--log_every_n_steps=1", *more]
    assert learn_shapes.main([str(data), str(tmp_path / "whole"), *flags]) == 0
    monkeypatch.setattr(run_module, "Published", Interrupt)
    monkeypatch.setattr(Interrupt, "at", step)
    assert learn_shapes.main([str(data), str(tmp_path / "parts"), *flags]) == 128 + signal.SIGTERM
    assert "--ckpt_path last" in capsys.readouterr().out
    monkeypatch.setattr(Interrupt, "at", None)
    assert learn_shapes.main([str(data), str(tmp_path / "parts"), *flags, "--ckpt_path", "last"]) == 0
    whole, parts = (tmp_path / part / "li_rf-rf_1_s1_d0.05_n0_(shapes)" for part in ("whole", "parts"))
    assert [path.name for path in parts.iterdir()] == ["version_0"]
    expected, found = (weights(run / "version_0/checkpoints/last.ckpt") for run in (whole, parts))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    for tag in ("train/loss", "val/error_px"):
        assert scalars(whole / "version_0")[1][tag] == scalars(parts / "version_0")[1][tag], tag
    csvs = [(tmp_path / part / f"{whole.name}_shapes.csv").read_text() for part in ("whole", "parts")]
    assert csvs[0] == csvs[1]


def test_a_run_of_part_of_each_epoch_resumes_with_the_same_numbers_beside_a_copy_of_itself(data, tmp_path):
    flags = [*TINY, "--limit_train_batches=2", "--ckpt_path=last"]
    for logs, epochs in (("whole", 2), ("parts", 1), ("parts", 2)):
        assert learn_shapes.main([str(data), str(tmp_path / logs), *flags, f"--max_epochs={epochs}"]) == 0
        run = tmp_path / logs / "li_rf-rf_1_s1_d0.05_n0_(shapes)"
        if epochs == 1:
            shutil.copytree(run / "version_0", run / "version_0_backup")  # newer than the run itself
    csvs = [(tmp_path / logs / f"{run.name}_shapes.csv").read_text() for logs in ("whole", "parts")]
    assert csvs[0] == csvs[1] and csvs[0].count("\n") == 2
    assert sorted(path.name for path in run.iterdir()) == ["version_0", "version_0_backup"]
    copy = run / "version_0_backup/checkpoints/last.ckpt"  # resumed in a run of its own
    flags[-1] = f"--ckpt_path={copy}"
    assert learn_shapes.main([str(data), str(tmp_path / "parts"), *flags, "--max_epochs=2"]) == 0
    assert (run / "version_1/checkpoints/last.ckpt").is_file()


def test_last_resumes_only_a_run_of_the_same_settings(data, tmp_path, capsys):
    assert learn_shapes.main([str(data), str(tmp_path), *TINY, "--lr=0.01"]) == 0
    assert learn_shapes.main([str(data), str(tmp_path), *TINY, "--ckpt_path=last"]) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "li_rf-rf_1_s1_d0.05_n0_(shapes)").iterdir()) == [
        "version_0",
        "version_1",
    ]


def test_seed_and_workers(data, tmp_path):
    """The same seed gives the same weights for any number of workers; another seed gives others."""
    runs = {}
    for name, flags in {"a": [], "b": ["--num_workers=2"], "c": ["--seed=1"]}.items():
        assert learn_shapes.main([str(data), str(tmp_path / name), *TINY, *flags]) == 0
        runs[name] = weights(next((tmp_path / name).glob("*/version_0/checkpoints/last.ckpt")))
    kernel = "net.channels.0.spatiotemporal.0.spatial.spatial.weight"
    assert torch.equal(runs["a"][kernel], runs["b"][kernel])
    assert not torch.equal(runs["a"][kernel], runs["c"][kernel])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config_ann.txt", "config_snn.txt"])
def test_every_line_of_the_papers_configurations_takes_a_step(data, tmp_path, monkeypatch, file):
    monkeypatch.setattr(Drawing, "picture", lambda *_: None)  # of 144 fields takes longer than the step
    runs = read_config_lines(ROOT / file)
    assert len(runs) == 16 and len({tuple(run) for run in runs}) == 16
    for i, run in enumerate(runs):
        small = "--timesteps=1 --batch_size=2 --max_epochs=-1 --max_steps=1 --limit_val_batches=1"
        flags = [*run, *small.split(), *TINY[6:]]
        assert learn_shapes.main([str(data), str(tmp_path / str(i)), *flags]) == 0, run
        trained = weights(next((tmp_path / str(i)).glob("*/version_0/checkpoints/last.ckpt")))
        layer = "net.channels.0.spatiotemporal.1.spatial.spatial.weight"
        assert trained[layer].shape == (144, 144, 7, 7)
        shutil.rmtree(tmp_path / str(i))


OPTIONS = [
    *(f"--optimizer={o}" for o in trainer.OPTIMIZERS),
    *(f"--lr_step={s}" for s in trainer.SCHEDULERS),
    *(f"--rectification={r}" for r in module.RECTIFIERS),
    *(f"--regularization={r}" for r in module.REGULARISERS),
    *(f"--coordinate={c}" for c in module.COORDINATES),
    *(f"--temporal_backend={b}" for b in ("auto", "fused", "loop", "norse")),
    *("--convolution=spectral", "--checkpoint_activations=0"),
    *("--optimizer_split=1", "--skip_connections=1", "--batch_normalization=1"),
    "--separate_spatial_channels=1",
    *("--weight_sharing=0", "--receptive_fields=norse-1.1.0", "--init_scheme_temporal=uniform"),
    *("--receptive_fields=exact", " ".join(TRAINED_FIELDS)),
    " ".join([*TRAINED_FIELDS, "--precision=bf16-mixed", "--net=lif", "--weight_sharing=0"]),
    *("--stack_frames=2 --sum_frames=True --timesteps=2", "--precision=bf16-mixed", "--net=ann"),
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_trains(data, tmp_path, option):
    flags = [*TINY, "--max_epochs=-1", "--max_steps=1", "--limit_val_batches=1", *option.split()]
    assert learn_shapes.main([str(data), str(tmp_path), *flags]) == 0
    after = weights(next(tmp_path.glob("*/version_0/checkpoints/last.ckpt")))
    assert all(value.isfinite().all() for value in after.values())
    settings = torch.load(next(tmp_path.glob("*/*/checkpoints/last.ckpt")), weights_only=True)[
        "hyper_parameters"
    ]
    torch.manual_seed(settings["seed"])
    before = module.ShapesModel(**settings).state_dict()
    key = "net.classifier.0.weight"
    assert before[key].shape == after[key].shape and not torch.equal(after[key], before[key])


WRONG = {
    "--lrr=1": (2, "unknown flag --lrr"),
    "--net=foo": (2, "choose from"),
    "--batch_size=x": (2, "--batch_size: expected int, not x"),
    "--batch_size=0": (2, "batch_size 0: expected at least 1"),
    "--weight_sharing=2": (2, "expected 0 or 1"),
    "--n_classes=2": (2, "have 3 shapes"),
    "--timesteps=40": (1, "take smaller --timesteps"),
    "--dataset_filter=nothing": (1, "matches 'nothing'"),
    "--ckpt_path=nowhere.ckpt": (1, "no such file"),
    "--resolution=300 300": (1, "expected 3 in 300 x 300"),
    "--lr=1e30": (1, "the loss is"),
    "--accelerator=abacus": (2, "abacus"),
}


@pytest.mark.parametrize("flag", WRONG)
def test_a_users_mistake_is_told_in_one_line(data, tmp_path, capsys, flag):
    code, words = WRONG[flag]
    try:
        returned = learn_shapes.main([str(data), str(tmp_path), *TINY, *flag.replace("=", " ", 1).split(" ")])
    except SystemExit as end:
        returned = end.code
    error = capsys.readouterr().err.strip().splitlines()
    assert returned == code and words in error[-1], error


@pytest.mark.parametrize(
    ("where", "told"), [("open_data", "stopped before training"), ("setup", "stopped by SIGINT")]
)
def test_ctrl_c_before_training_is_told_in_one_line(data, tmp_path, monkeypatch, capsys, where, told):
    place = run_module if where == "open_data" else module.ShapesModel
    before = getattr(place, where)

    def interrupted(*arguments, **named):
        os.kill(os.getpid(), signal.SIGINT)
        return before(*arguments, **named)

    monkeypatch.setattr(place, where, interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's workers ignore it
    try:
        assert learn_shapes.main([str(data), str(tmp_path), *TINY]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    output = capsys.readouterr()
    assert told in output.err + output.out and "Traceback" not in output.err
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_labels_are_never_rounded(data, tmp_path, monkeypatch, precision):
    seen, terms = [], module.ShapesModel.terms

    def watched(self, tracking, labels_px):
        seen.append(labels_px)
        return terms(self, tracking, labels_px)

    monkeypatch.setattr(module.ShapesModel, "terms", watched)
    assert learn_shapes.main([str(data), str(tmp_path), *TINY, f"--precision={precision}"]) == 0
    assert all(labels.dtype == torch.float32 for labels in seen)
    validated = torch.stack([sample.labels for sample in ShapeDataset(data, 3, split="val")], dim=1)
    last = torch.cat(seen, dim=1)[:, -validated.shape[1] :]
    assert len(seen) > 1 and torch.equal(last, validated)


def test_no_data_is_told_before_anything_is_written(tmp_path, capsys):
    assert learn_shapes.main([str(tmp_path / "none"), str(tmp_path / "logs"), *TINY]) == 1
    assert "none: no such folder; render recordings" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_dp_is_accepted_with_a_notice_and_one_shape_is_enough(tmp_path, capsys):
    root = render(tmp_path / "one", shapes=1)
    assert learn_shapes.main([str(root), str(tmp_path / "logs"), *TINY, "--strategy=dp", "--devices=1"]) == 0
    assert "--strategy=dp is gone" in capsys.readouterr().err
    assert (
        weights(next(tmp_path.glob("logs/*/*/checkpoints/last.ckpt")))["net.classifier.0.weight"].shape[0]
        == 1
    )


def test_flags_may_come_from_a_file(data, tmp_path):
    (tmp_path / "run.yaml").write_text("net: ann\ncoordinate: dsnt\nmax_epochs: 1\n")
    flags = [flag for flag in TINY if not flag.startswith("--max_epochs")]
    assert learn_shapes.main([str(data), str(tmp_path), *flags, "--config", str(tmp_path / "run.yaml")]) == 0
    assert (tmp_path / "ann_rf-rf_1_s1_d0.05_n0_(shapes)" / "version_0").is_dir()


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as end:
        learn_shapes.main(["--help"])
    printed = capsys.readouterr().out
    assert end.value.code == 0 and "--max_epochs" in printed and "--precision" in printed
    for setting in Config.__dataclass_fields__:
        assert f"--{setting}" in printed
