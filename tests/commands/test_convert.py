"""Cameras' files to recordings to train on: events and labels in their places, and the README's whole way."""

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from camera_writers import draw, evt3, named

from nrf.__main__ import main
from nrf.commands import convert
from nrf.data.conversion import centroids
from nrf.data.dataset import ShapeDataset
from nrf.data.recordings import read_recording

README = Path(__file__).resolve().parents[2] / "README.md"
SENSOR = (36, 64)


def moving(n_ms=700, objects=1, sensor=SENSOR):
    """Events of dots that move in circles, the labels of them, and the noise around, in a 16:9 sensor."""
    rng = np.random.default_rng(0)
    t = np.arange(n_ms * 4) * 250 + 5_000_000
    phase = 2 * np.pi * (t[:, None] / 400_000 + np.arange(objects) / objects)
    x, y = sensor[1] / 2 + 20 * np.cos(phase), sensor[0] / 2 + 12 * np.sin(phase)
    dots = [np.stack([t, x[:, k].astype(int), y[:, k].astype(int), t // 250 % 2], 1) for k in range(objects)]
    noise = draw(n_ms, 1, sensor, n_ms * 1000)
    noise[:, 0] += 800_000  # to the same clock
    events = np.concatenate([*dots, noise])
    rng.shuffle(events)
    return events[np.argsort(events[:, 0], kind="stable")], (t, x, y)


def labels_csv(path, t, x, y, first="t,x,y,object"):
    rows = [f"{t[i]},{x[i, k]:.4f},{y[i, k]:.4f},{k}" for i in range(0, len(t), 8) for k in range(x.shape[1])]
    path.write_text("\n".join([first, *rows]) + "\n")


def test_events_and_labels_land_in_their_places(tmp_path, capsys):
    events, (t, x, y) = moving(objects=2)
    (tmp_path / "a.raw").write_bytes(evt3(events, SENSOR))
    np.save(tmp_path / "b.npy", named(events))
    labels_csv(tmp_path / "a.csv", t, x, y)
    np.savez(tmp_path / "b.npz", t=t.repeat(2), x=x.ravel(), y=y.ravel(), object=np.tile(["p", "q"], len(t)))
    out = tmp_path / "out"
    words = [str(tmp_path / name) for name in ("a.raw", "b.npy")] + [str(out), "--resolution", "40", "40"]
    words += ["--sensor", *map(str, SENSOR), "--frames", "50", "--bin_us", "2000"]
    words += ["--labels", str(tmp_path / "a.csv"), str(tmp_path / "b.npz")]
    assert main(["convert", *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        said[0] == f"{out / 'a'}: 6 recordings, 4 to train on; left out: 1 not labelled"
    )  # no label at the end
    assert said[1].startswith(f"{out / 'b'}: 7 recordings") and "learn_shapes.py" in said[2]
    for k in range(6):
        one, other = (read_recording(out / name / f"{k:04d}.dat") for name in "ab")
        assert torch.equal(one.events, other.events) and one.shape == (50, 2, 40, 40)
        scale = 40 / 64  # letterbox: the width fills the field, bars above and below
        at = np.interp((k * 50 + np.arange(50) + 0.5) * 2000 + events[0, 0], t, x[:, 1])
        assert np.abs(one.labels[:, 1, 1].numpy() - at * scale).max() < 0.01
        rows = one.events[:, 2]
        assert rows.min() >= 20 - 18 * scale - 1 and rows.max() <= 20 + 18 * scale
        frames, cells = one.events[:, 0], one.events[:, 2:].double() + 0.5
        near = torch.cdist(cells, one.labels[frames].double().flatten(0, 1))  # dots are where labels say
        own = near.view(len(cells), len(cells), 2)[torch.arange(len(cells)), torch.arange(len(cells))]
        assert (own.amin(1) < 2.5).double().mean() > 0.6
    data = ShapeDataset(out, timesteps=20)
    assert data.n_classes == 2 and len(data) == 9 and data.resolution == (40, 40)


def test_without_labels_centroids_of_events_are_learnt(tmp_path, capsys):
    events, _ = moving()
    np.save(tmp_path / "a.npy", events)
    flags = ["--sensor", "36", "64", "--resolution", "36", "64"]
    assert main(["convert", str(tmp_path / "a.npy"), str(tmp_path / "out"), *flags]) == 0
    said = capsys.readouterr().out
    assert "5 recordings, 4 to train on; left out: 1 too short" in said and "no --labels: " in said
    recording = read_recording(tmp_path / "out" / "a" / "0003.dat")
    expected = np.array([18.0, 32.0])
    for t in range(128):
        own = recording.events[recording.events[:, 0] == t, 2:].numpy()
        expected = own.mean(0) + 0.5 if len(own) else expected
        assert np.abs(recording.labels[t, 0].numpy() - expected).max() < 1e-4
    assert len(ShapeDataset(tmp_path / "out", timesteps=20)) == 12
    silent = torch.tensor([[1, 0, 2, 3], [3, 1, 4, 4], [3, 1, 4, 6]])
    assert centroids(silent, (5, 2, 8, 10))[:, 0].tolist() == [
        [4, 5],
        [2.5, 3.5],
        [2.5, 3.5],
        [4.5, 5.5],
        [4.5, 5.5],
    ]


def test_tonics_data_sets(tmp_path, monkeypatch, capsys):
    class Gestures:
        sensor_size = (64, 36, 2)

        def __init__(self, save_to):
            self.samples = [(named(moving(n)[0]), 3) for n in (100, 300)]
            assert save_to == "here"

        def __len__(self):
            return 2

        def __getitem__(self, i):
            return self.samples[i]

    tonic = SimpleNamespace(Gestures=Gestures)
    monkeypatch.setitem(sys.modules, "tonic", SimpleNamespace(datasets=tonic))
    monkeypatch.setitem(sys.modules, "tonic.datasets", tonic)
    words = ["--resolution", "36", "64"]
    assert main(["convert", "tonic:Gestures=here", str(tmp_path), *words]) == 0
    assert "Gestures: 2 recordings, 1 to train on; left out: 2 too short" in capsys.readouterr().out
    recording = read_recording(tmp_path / "Gestures" / "0000.dat")
    first = moving(300)[0]
    first = first[first[:, 0] < first[0, 0] + 128_000]
    cells = {((t - first[0, 0]) // 1000, p, y, x) for t, x, y, p in first.tolist()}
    assert recording.events.tolist() == [list(cell) for cell in sorted(cells)]

    def offline(save_to):
        raise OSError("Name or service not known")

    tonic.Gestures = offline
    assert main(["convert", "tonic:Gestures", str(tmp_path / "other")]) == 1
    assert "tonic:Gestures: tonic cannot fetch it: Name or service" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tonic.datasets", None)
    assert main(["convert", "tonic:Gestures", str(tmp_path / "other")]) == 1
    assert "pip install tonic" in capsys.readouterr().err


def test_what_cannot_be_is_one_line(tmp_path, capsys):
    events, (t, x, y) = moving(200)
    recording, out = str(tmp_path / "a.npy"), str(tmp_path / "out")
    np.save(recording, events)
    labels_csv(tmp_path / "late.csv", t + 10**9, x, y)
    labels_csv(tmp_path / "names.csv", t, x, y, "t,column,row,object")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "noise.npz").write_bytes(b"PK\3\4noise")
    sensor = ["--sensor", "36", "64"]

    def label(name):
        return [recording, out, *sensor, "--labels", str(tmp_path / name)]

    cases = [
        (1, [recording, out], "does not state the size of its sensor; give it with --sensor HEIGHT WIDTH"),
        (1, [recording, out, *sensor, "--frames", "500"], "no recording of 500 frames in it (1 too short"),
        (2, [recording, recording, out, *sensor], "both would become"),
        (2, [recording, out, "--frames", "0"], "--frames 0: expected 1 or more"),
        (2, [recording, out, "--resolution", "0", "5"], "--resolution: expected"),
        (2, [recording, recording[:-4] + ".csv", out, "--labels", "a.csv"], "--labels: 1 for 2 recordings"),
        (1, label("late.csv"), "1 not labelled"),
        (1, label("names.csv"), "no labels of t, x, y and object ('x')"),
        (1, label("empty.csv"), "no labels of t, x, y and object"),
        (1, label("noise.npz"), "no labels of t, x, y and object"),
        (1, label("none.txt"), "expected labels as .csv or .npz"),
        (1, [str(tmp_path / "none.raw"), out], "no such file"),
    ]
    for code, words, message in cases:
        assert main(["convert", *words]) == code, words
        err = capsys.readouterr().err
        assert message in err and err.startswith("nrf convert: ") and err.count("\n") == 1, err
        assert not list(tmp_path.rglob("*.dat"))


def test_the_readmes_way_from_a_cameras_file_to_a_film(tmp_path, monkeypatch, capsys):
    pytest.importorskip("faery", reason="needs faery, of requirements-dev.txt")
    events, (t, x, y) = moving(1200)
    (tmp_path / "camera.raw").write_bytes(evt3(events, SENSOR))
    labels_csv(tmp_path / "positions.csv", t, x, y)
    section = README.read_text().split("## Your own recordings")[1]
    commands = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].splitlines()
    monkeypatch.chdir(tmp_path)
    small = (
        "--max_epochs 1 --n_spatial_scales 1 --n_angles 1 --n_ratios 1 --n_temporal_scales 2 --num_workers 0"
    )
    seen = []
    for line in commands:
        words = shlex.split(line, comments=True)
        if words[:2] == ["pip", "install"]:
            continue
        assert words.pop(0) == "python3"
        words = ["learn_shapes" if word == "learn_shapes.py" else word for word in words]
        name, *words = [word for word in words if word not in ("-m", "nrf")]
        words = [str(next(tmp_path.glob(word))) if "*" in word else word for word in words]
        assert main([name, *words, *(small.split() if name == "learn_shapes" else ())]) == 0
        seen.append(name)
    assert seen == ["convert", "learn_shapes", "track"]
    assert (tmp_path / "tracked.gif").read_bytes()[:4] == b"GIF8"
    assert "200 frames of 96 x 128 pixels from camera.raw" in capsys.readouterr().out
    assert convert.command_line().prog == "nrf convert"
