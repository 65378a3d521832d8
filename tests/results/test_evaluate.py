"""Errors of checkpoints: computed by hand on small cases, and the very numbers that training logged."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_learn_shapes import TINY, render, scalars

from nrf.commands import evaluate as evaluate_command
from nrf.commands import learn_shapes
from nrf.data.dataset import ShapeDataset, collate
from nrf.data.recordings import write_recording
from nrf.network.coordinates import pixel_to_unit
from nrf.results import evaluate
from nrf.results.evaluate import CENTRE, CENTROID, condition_of
from nrf.training.checkpoints import Trained, find_checkpoints, load_trained
from nrf.training.persistence import CheckpointError


class Guess(torch.nn.Module):
    """Finds every shape at (8, 8) pixels."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(resolution=(32, 32))

    def track(self, batch):
        labels_px = batch.labels.transpose(0, 1)
        guess = pixel_to_unit(torch.full_like(labels_px, 8.0), (32, 32))
        return SimpleNamespace(coordinates=guess), None, labels_px


SETTINGS = {
    "net": "li",
    "stack_frames": 1,
    "init_scheme_spatial": "rf",
    "init_scheme_temporal": "rf",
    "seed": 3,
    "batch_size": 2,
    "num_workers": 3,
}


@pytest.fixture
def four(tmp_path):
    """One window of four steps in each of three recordings of two sizes; a shape 3, 6 and 9 pixels from
    (8, 8) along W, and one event at frame 1, at the pixel around (20.5, 8.5)."""
    distances = {"v0.20-p1.00-s10.0_1000": (3, 6), "v0.20-p1.00-s0.0_1000": (9,)}
    for folder, values in distances.items():
        (tmp_path / folder).mkdir()
        for i, distance in enumerate(values):
            labels = np.full((9, 1, 2), [8.0, 8 + distance])
            write_recording(tmp_path / folder / f"{i}.dat", [[1, 0, 20, 8]], labels, (9, 2, 32, 32))
    return ShapeDataset(tmp_path, timesteps=4, split="all")


def test_errors_by_hand(four):
    seen = []
    trained = Trained("a.ckpt", Guess(), SETTINGS, None)
    own, _ = evaluate.evaluate(trained, four, each=lambda i, errors_px: seen.append((i, errors_px)))
    assert (own.network, own.initialisation, own.seed) == ("LI", "rf", 3)
    assert "num_workers" not in own.settings  # how it was computed makes no other run
    spread = own.errors["all", "all"]
    assert (spread.n, spread.mean) == (3, pytest.approx(6))
    assert [spread.quantile(q) for q in (0.25, 0.5, 0.75)] == pytest.approx([4.5, 6, 7.5], rel=1e-3)
    assert own.errors["size", 10.0].mean == pytest.approx(4.5) and own.errors["size", 10.0].n == 2
    assert own.errors["size", "random"].mean == pytest.approx(9)
    assert own.errors["velocity", 0.2].n == 3 and own.errors["shape", 0].mean == pytest.approx(6)
    assert [own.errors["time", step].mean for step in (1, 2, 3, 4)] == pytest.approx([6] * 4)
    assert [i for i, _ in seen] == [0, 1, 2] and seen[0][1].shape == (4, 1)
    assert [e.mean().item() for _, e in seen] == pytest.approx([9, 3, 6])  # folders sorted as text


def test_baselines_by_hand(four):
    _, others = evaluate.evaluate(Trained("a.ckpt", Guess(), SETTINGS, None), four, baselines=True)
    means = {other.network: other.errors["all", "all"].mean for other in others}
    assert means[CENTRE] == pytest.approx(np.mean([math.hypot(8, 16 - 8 - d) for d in (9, 3, 6)]))
    assert means[CENTROID] == pytest.approx(np.mean([math.hypot(12.5, 8.5 - 8 - d) for d in (9, 3, 6)]))


def test_the_centroid_looks_at_no_later_event(tmp_path):
    (tmp_path / "a").mkdir()
    labels = np.full((9, 1, 2), [16.0, 16.0])
    events = [[6, 0, 2, 30], [7, 1, 4, 30]]  # steps 3 and 4 of a window that warms up for 4
    write_recording(tmp_path / "a" / "0.dat", events, labels, (9, 2, 32, 32))
    data = ShapeDataset(tmp_path, timesteps=4, split="all")
    errors = evaluate.baseline_errors_px(collate([data[0]]), data)[CENTROID][:, 0, 0]
    wanted = [0, 0, math.hypot(13.5, 14.5), math.hypot(12.5, 14.5)]
    assert errors.tolist() == pytest.approx(wanted)


def test_a_network_that_predicts_nothing_is_told(four):
    model = Guess()
    model.track = lambda batch: (SimpleNamespace(coordinates=torch.full((4, 2, 1, 2), math.nan)), None, 0)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: predicts positions that are not finite"):
        evaluate.evaluate(Trained("a.ckpt", model, SETTINGS, None), four, batch_size=2)


@pytest.mark.parametrize(
    ("folder", "wanted"),
    [
        ("v0.20-p1.00-s10.0_1000", {"size": 10.0, "velocity": 0.2, "density": 1.0}),
        ("v1.28-p0.50-s0.0_1000", {"size": "random", "velocity": 1.28, "density": 0.5}),
        ("v0.16-p1.00-s1.0_1100", {"size": "changing", "velocity": 0.16, "density": 1.0}),
        ("mine", {"folder": "mine"}),
    ],
)
def test_conditions_come_from_folders(folder, wanted):
    assert condition_of(f"data/{folder}/3.dat") == wanted


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A data set and the logs of three runs over it: LI with two seeds, and stacked ReLU from noise."""
    root = tmp_path_factory.mktemp("runs")
    data, logs = render(root / "shapes", recordings=10), root / "logs"
    for flags in (
        ["--seed=1"],
        ["--seed=2"],
        "--net=ann --stack_frames=2 --init_scheme_spatial=uniform".split(),
    ):
        assert learn_shapes.main([str(data), str(logs), *TINY, "--log_every_n_steps=1", *flags]) == 0
    return data, logs


def test_the_error_is_the_one_that_training_logged(runs):
    data, logs = runs
    for checkpoint in find_checkpoints([logs]):
        trained = load_trained(checkpoint)
        logged = scalars(checkpoint.parents[1])[1]["val/error_px"][-1][1]
        assert trained.error_px == pytest.approx(logged, rel=1e-6)
        results = evaluate.run(data, [checkpoint])
        own = results[0]
        assert own.errors["all", "all"].mean == pytest.approx(logged, rel=1e-6)
        shapes = [own.errors["shape", s].mean for s in ("circle", "square", "triangle")]
        assert np.mean(shapes) == pytest.approx(logged, rel=1e-6)


def test_the_command_prints_and_writes_the_same(runs, tmp_path, capsys):
    data, logs = runs
    out = str(tmp_path / "out")
    assert evaluate_command.main([str(data), str(logs), "--out", out, "--batch_size", "3"]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert content["split"] == "val" and content["unit"] == "px"
    total = [row for row in content["errors"] if row["by"] == "all"]
    assert [(row["network"], row["initialisation"], row["seed"]) for row in total[:3]] == [
        ("ReLU-MF", "uniform", 0),
        ("LI", "rf", 1),
        ("LI", "rf", 2),
    ]
    pair = [row["mean"] for row in total[1:3]]
    line = next(line for line in printed.splitlines() if line.startswith("| LI "))
    cells = [text.strip() for text in line.split("|")[1:-1]]
    assert cells[:5] == ["LI", "rf", "2", f"{np.mean(pair):.2f}", f"{np.std(pair, ddof=1):.2f}"]
    assert printed.count(CENTRE) >= 2 and printed.count(CENTROID) >= 2  # of both lengths of window
    table = list(csv.DictReader((tmp_path / "out" / "errors.csv").open()))
    assert [float(row["mean"]) for row in table] == [row["mean"] for row in content["errors"]]
    header, *windows = csv.reader((tmp_path / "out" / "windows.csv").open())
    first = [float(row[3]) for row in windows if row[0] == total[1]["checkpoint"]]
    assert len(first) == total[1]["n"] and np.mean(first) == pytest.approx(pair[0], abs=1e-6)
    assert (tmp_path / "out" / "errors.png").stat().st_size > 1000


def test_a_folder_stands_for_its_runs_best_checkpoints(runs, tmp_path):
    _, logs = runs
    names = {path.parents[2].name.split("_")[0] for path in find_checkpoints([logs])}
    assert names == {"li", "ann"} and len(find_checkpoints([logs])) == 3
    assert all(path.name != "last.ckpt" for path in find_checkpoints([logs]))
    with pytest.raises(CheckpointError, match=r"no \.ckpt file in this folder"):
        find_checkpoints([tmp_path])


def test_what_cannot_be_is_one_line(runs, tmp_path, capsys):
    data, logs = runs
    good = str(find_checkpoints([logs])[0])
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(open(good, "rb").read()[:1000])
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    other = render(tmp_path / "other", recordings=5, shapes=1)
    cases = [
        (1, [str(data), "nowhere.ckpt"], "nowhere.ckpt: no such file; expected a .ckpt file"),
        (1, [str(data), str(damaged)], "damaged or foreign"),
        (1, [str(data), str(foreign)], "damaged or foreign (no hyper_parameters)"),
        (1, ["nowhere", good], "nowhere: no such folder"),
        (2, [str(other), good], "tracks 3 shapes, recordings in"),
        (2, [str(data), good, "--device", "tpu9"], "expected auto, cpu, cuda"),
        (2, [str(data), good, "--batch_size", "0"], "--batch_size"),
    ]
    for code, words, message in cases:
        assert evaluate_command.main(words) == code
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.startswith("nrf evaluate: ")
        assert err.strip().splitlines()[-1].startswith("nrf evaluate: ")
