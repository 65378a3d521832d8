"""One frame at a time: the batch's numbers, no look ahead, and what the command shows and refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_learn_shapes import TINY, render

from nrf.commands import learn_shapes
from nrf.commands import track as track_command
from nrf.data.dataset import ShapeDataset, collate, dense_frames
from nrf.data.recordings import read_recording
from nrf.network.coordinates import unit_to_pixel
from nrf.pictures.films import terminal_picture
from nrf.results import track
from nrf.results.track import Tracker, delayed_labels, follow, frames_of
from nrf.training.checkpoints import find_checkpoints
from nrf.training.module import ShapesModel

SMALL = {"n_spatial_scales": 1, "n_temporal_scales": 2, "n_angles": 1, "n_ratios": 1, "resolution": (32, 32)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("data") / "shapes", recordings=5)


def network(net, **settings):
    torch.manual_seed(0)
    model = ShapesModel(net=net, timesteps=3, **SMALL, **settings).eval()
    with torch.no_grad():  # spikes shall reach the read-out
        for channel in model.net.channels:
            for layer in channel.spatiotemporal:
                layer.spatial.spatial.weight.mul_(3)
    return model


@pytest.mark.parametrize("settings", [{}, {"stack_frames": 3}, {"stack_frames": 3, "sum_frames": 1}], ids=str)
@pytest.mark.parametrize("net", ["li", "lif", "ann"])
def test_frame_by_frame_equals_the_batch(data, net, settings):
    model = network(net, batch_normalization=1, **settings)
    windows = ShapeDataset(data, timesteps=3, split="all", stack_frames=settings.get("stack_frames", 1))
    batch = collate([windows[1]])
    with torch.no_grad():
        tracking, _, _ = model.track(batch)  # warm-up, then the window
    wanted = unit_to_pixel(tracking.coordinates, (32, 32))[:, 0]
    # the same frames, one by one, warmed up as a batch is: from the frames before, with the same overlap
    warmup, frames = dense_frames(batch, (32, 32), 3, **settings)
    single_warmup, single = dense_frames(batch, (32, 32), windows.window)
    tracker = Tracker(model)
    for frame in single_warmup[:, 0]:
        tracker.step(frame)
    tracker.recent.clear()  # a batch's window begins with its own frames
    steps = [tracker.step(frame) for frame in single[:, 0]]
    assert steps[: windows.window - 3] == [None] * (windows.window - 3)
    found = torch.stack([positions for positions, _ in steps[windows.window - 3 :]])
    maps = torch.stack([heatmaps for _, heatmaps in steps[windows.window - 3 :]])
    assert wanted.std() > 1e-3 and (found - wanted).abs().max() < 1e-5 * 32
    assert (maps - tracking.heatmaps[:, 0]).abs().max() < 1e-5


def test_a_whole_recording_equals_the_network_on_all_frames_at_once(data):
    recording = read_recording(next(data.glob("*/*.dat")))
    model = network("li")
    frames = torch.stack(list(frames_of(recording)))
    assert frames.sum() == len(recording.events)
    with torch.no_grad():
        tracking = model(frames[:, None])
    path = follow(model, recording)
    wanted = unit_to_pixel(tracking.coordinates, (32, 32))[:, 0].numpy()
    assert np.abs(path.predicted_px - wanted).max() < 1e-5 * 32
    assert np.abs(path.heatmaps - tracking.heatmaps[:, 0].numpy()).max() < 1e-5
    assert path.step_ms.shape == (len(frames),) and (path.step_ms > 0).all()


def test_nothing_later_is_looked_at(data):
    recording = read_recording(next(data.glob("*/*.dat")))
    model = network("li", stack_frames=2)
    before = follow(model, recording).predicted_px
    changed = recording.events.clone()
    changed[changed[:, 0] >= 9, 2:] = 0
    after = follow(model, recording._replace(events=torch.unique(changed, dim=0))).predicted_px
    assert np.isnan(before[0]).all()  # two frames are not there yet
    assert (before[1:9] == after[1:9]).all() and not (before[9:] == after[9:]).all()


def test_labels_are_those_of_the_delay(data):
    recording = read_recording(next(data.glob("*/*.dat")))
    labels = delayed_labels(recording, 2, 3)
    assert (labels[:-2] == recording.labels[2:].numpy()).all() and np.isnan(labels[-2:]).all()
    assert np.isnan(delayed_labels(recording._replace(labels=None), 2, 3)).all()


def test_errors_and_times_in_words():
    predicted = np.zeros((6, 1, 2))
    labels = np.full((6, 1, 2), [3.0, 4.0])
    labels[4:] = [0.0, 1.0]
    labels[5] = np.nan
    path = track.Track(predicted, None, np.array([2.0, 4.0, 100.0]))
    text = track.summary(path, labels, network("li").config)  # a warm-up of three
    assert text.splitlines() == [
        "error in pixels, mean of 5 frames: 4.20; after a warm-up of 3 frames 3.00",
        "4.00 ms per frame (median of 3): 250 frames per second",
    ]


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    assert learn_shapes.main([str(data), str(logs), *TINY]) == 0
    return str(find_checkpoints([logs])[0])


def test_the_command_films(data, checkpoint, tmp_path, capsys):
    recording = str(next(data.glob("*/4.dat")))
    assert track_command.main([checkpoint, recording, "--out", str(tmp_path / "a.gif"), "--frames", "9"]) == 0
    out = capsys.readouterr().out
    assert "LI, rf: 9 frames of 32 x 32 pixels" in out and "ms per frame (median of 9)" in out
    assert "error in pixels, mean of 8 frames" in out
    film = Image.open(tmp_path / "a.gif")
    assert film.n_frames == 9
    assert track_command.main([checkpoint, recording, "--out", str(tmp_path / "a.mp4"), "--frames", "5"]) == 0
    assert b"ftyp" in (tmp_path / "a.mp4").read_bytes()[:12]


def test_live_draws_every_frame_and_no_film(data, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert track_command.main([checkpoint, str(next(data.glob("*/4.dat"))), "--live", "--frames", "4"]) == 0
    out = capsys.readouterr().out
    assert [f"frame {t} / 4" in out for t in (1, 2, 3, 4, 5)] == [True] * 4 + [False]
    assert out.count("\u2580") > 4 * 16 * 16 and list(tmp_path.iterdir()) == []


def test_a_terminal_picture_has_events_and_positions_in_their_places():
    frame = np.zeros((2, 8, 8), int)
    frame[1, 6, 1] = 1
    text = terminal_picture(frame, np.array([[0.5, 7.5]]), np.array([[np.nan, 0]]), None, (80, 24))
    lines = text.replace("\x1b[0m", "").split("\n")
    assert [line.count("\u2580") for line in lines] == [8] * 4
    assert "38;2;86;180;233" in lines[3].split("\u2580")[1]  # above, of rows 6 and 7
    assert "38;2;0;0;0" in lines[0].split("\u2580")[7] and "150;20;110" not in text
    assert terminal_picture(frame, np.zeros((0, 2)), np.zeros((0, 2)), None, (4, 24)).count("\u2580") == 8


def test_what_cannot_be_is_one_line(data, checkpoint, tmp_path, capsys):
    recording = str(next(data.glob("*/4.dat")))
    small = str(next(render(tmp_path / "small", recordings=1, size=64).glob("*/0.dat")))
    one = str(next(render(tmp_path / "one", recordings=1, shapes=1).glob("*/0.dat")))
    cases = [
        (1, [recording, recording], "4.dat: damaged or foreign (no hyper_parameters, state_dict)"),
        (1, ["nowhere.ckpt", recording], "nowhere.ckpt: no such file"),
        (1, [checkpoint, "nowhere.dat"], "nowhere.dat: no such file"),
        (2, [checkpoint, small], "64 x 64 pixels; the network was trained on 32 x 32"),
        (2, [checkpoint, one], "1 shapes; the network tracks 3"),
        (2, [checkpoint, recording, "--out", "film.avi"], "expected a name that ends in .gif or .mp4"),
        (2, [checkpoint, recording, "--frames", "0"], "--frames 0: expected 1 or more"),
        (
            2,
            [checkpoint, recording, "--device", "nonsense"],
            "--device nonsense: no such device; expected auto",
        ),
        (2, [checkpoint, recording, "--fps", "99"], "fps 99: expected 1 to 50"),
    ]
    for code, words, message in cases:
        assert track_command.main(words) == code
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.startswith("nrf track: ") and err.count("\n") == 1
