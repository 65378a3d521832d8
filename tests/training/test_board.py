"""What a run tells about itself: its record, and TensorBoard's pages, from their files and in a browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import chromium
import numpy as np
import pytest
import torch
from tensorboard.plugins.custom_scalar import layout_pb2
from test_learn_shapes import TINY, Interrupt, render, scalars

from nrf import __version__
from nrf.commands import learn_shapes
from nrf.data.dataset import EventBatch
from nrf.system.files import write_whole
from nrf.theory.receptive_fields import spatial_parameters
from nrf.training import board as record
from nrf.training import module
from nrf.training import run as run_module
from nrf.training.board import RECORD, Board, commit, named_fields
from nrf.training.persistence import read_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def logs(data, tmp_path_factory):
    """Two runs, of leaky integrators and of spiking neurons."""
    root = tmp_path_factory.mktemp("logs")
    for flags in (["--net=li", "--seed=7"], ["--net=lif", "--seed=8"]):
        assert learn_shapes.main([str(data), str(root), *TINY, "--log_every_n_steps=1", *flags]) == 0
    return root


def versions(logs):
    return sorted(logs.glob("*/version_0"))


def test_a_run_says_what_it_is(logs, data):
    record = json.loads((versions(logs)[0] / RECORD).read_text())
    assert (record["state"], record["epochs"], record["max_epochs"]) == ("finished", 1, 1)
    assert record["logged_bytes"] == sum(path.stat().st_size for path in versions(logs)[0].glob("events.*"))
    assert record["data"] == str(data) and record["pid"] == os.getpid() and record["device"] == "cpu"
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["versions"]["nrf"] == __version__
    events, _ = scalars(versions(logs)[0])
    page = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    for part in (str(data), record["commit"] or "unknown", f"torch {record['versions']['torch']}"):
        assert part in page


def test_the_commit_is_gits_and_marked_where_files_differ(tmp_path, monkeypatch):
    git = shutil.which("git") or pytest.skip("needs git")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "callbacks.py"))
    assert commit() is None
    (tmp_path / "a").write_text("a")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "a"], [*who, "commit", "-qm", "a"]):
        subprocess.run([git, "-C", str(tmp_path), *words], check=True)
    clean = commit()
    assert len(clean) == 40
    (tmp_path / "a").write_text("b")
    assert commit() == clean + "+"


def test_stopped_and_failed_runs_say_so(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "Published", Interrupt)
    monkeypatch.setattr(Interrupt, "at", 2)
    assert learn_shapes.main([str(data), str(tmp_path / "a"), *TINY]) == 128 + 15
    assert json.loads((versions(tmp_path / "a")[0] / RECORD).read_text())["state"] == "stopped"
    monkeypatch.setattr(Interrupt, "at", 8)  # in the second epoch, behind a validation
    assert learn_shapes.main([str(data), str(tmp_path / "c"), *TINY, "--max_epochs=2"]) == 128 + 15
    *validated, last = sorted((versions(tmp_path / "c")[0] / "checkpoints").glob("*.ckpt"))
    errors_px = [read_checkpoint(p)["callbacks"]["Interrupt"]["error_px"] for p in (last, *validated)]
    assert errors_px[0] is None and errors_px[1] > 0  # the last weights were never validated
    monkeypatch.setattr(Interrupt, "at", None)
    assert learn_shapes.main([str(data), str(tmp_path / "b"), *TINY, "--lr=1e30"]) == 1
    record = json.loads((versions(tmp_path / "b")[0] / RECORD).read_text())
    assert record["state"] == "failed" and "try a smaller --lr" in record["reason"]


def test_a_record_that_cannot_be_written_hides_no_cause(data, tmp_path, monkeypatch, capsys):
    def full(path, content):
        if b"failed" in content:
            raise OSError("no space left")
        write_whole(path, content)

    monkeypatch.setattr(record, "write_whole", full)
    assert learn_shapes.main([str(data), str(tmp_path), *TINY, "--lr=1e30"]) == 1
    err = capsys.readouterr().err
    assert "try a smaller --lr" in err and "no space left" not in err


def test_time_constants_are_logged_in_milliseconds(logs):
    events, values = scalars(versions(logs)[0])
    channels = [values[f"tau_ms/channel_{k}"] for k in (0, 1)]
    assert [channel[0] for channel in channels] == [
        (0, pytest.approx(np.sqrt(30))),
        (0, pytest.approx(2 * np.sqrt(30))),
    ]
    assert channels[0][-1][0] == 5 and values["tau_ms/read-out"][0][1] == pytest.approx(np.sqrt(30))
    assert {"weights/layer_0", "weights/layer_2"} <= set(events.Tags()["histograms"])
    tags = {f"fields/{p}/order_{o}" for p in ("off", "on") for o in ("0_0", "0_1", "1_0", "1_1")}
    assert tags | {"image/validation"} <= set(events.Tags()["images"])
    assert [picture.step for picture in events.Images("fields/on/order_1_0")] == [0, 5]  # a slider over steps
    assert [picture.step for picture in events.Images("image/validation")] == [5]


def test_every_chart_of_the_layout_finds_a_tag(logs):
    import re

    found = {}
    for folder in versions(logs):  # li and lif
        events, values = scalars(folder)
        content = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
        layout = layout_pb2.Layout.FromString(content)
        for category in layout.category:
            for chart in category.chart:
                patterns = chart.multiline.tag
                hits = [tag for tag in values if any(re.match(pattern, tag) for pattern in patterns)]
                found.setdefault((category.title, chart.title), []).extend(hits)
    assert len(found) == 8 and all(found.values()), found


def test_fields_go_with_their_kernels():
    rows = spatial_parameters(2, 2, 2).numpy()
    weight = np.arange(len(rows))[:, None, None, None] * np.ones((1, 4, 3, 3))
    weight[:, 1::2] *= -1  # two frames; the second polarity is the negative
    weight[:, 2:] *= 3
    pictures = {tag: (kernels, rows) for tag, kernels, rows in named_fields(weight, rows)}
    assert set(pictures) == {f"{p}/order_{x}_{y}" for p in ("off", "on") for x in (0, 1) for y in (0, 1)}
    kernels, found = pictures["on/order_1_0"]
    assert (found[:, 3] == 1).all() and (found[:, 4] == 0).all()
    numbers = [np.flatnonzero((rows == row).all(1))[0] for row in found]
    assert (kernels[:, 0, 0] == -2 * np.array(numbers)).all()  # the mean over frames
    twice = np.concatenate([rows, rows])
    doubled = dict((tag, len(k)) for tag, k, _ in named_fields(np.concatenate([weight, weight]), twice))
    assert doubled == {tag: len(kernels) for tag, (kernels, _) in pictures.items()}


@pytest.mark.filterwarnings("ignore:You are trying to")
def test_the_prediction_is_shown_with_the_last_ten_frames(data):
    model = module.ShapesModel(timesteps=12, resolution=(32, 32), n_spatial_scales=1, n_angles=1)
    events = torch.tensor([0, 13, 14, 23]) * 2 * 32 * 32 + torch.tensor([0, 5, 1024 + 5, 1024 + 7])
    batch = EventBatch(events.int(), torch.tensor([4]), torch.full((1, 12, 3, 2), 16.0))
    seen, heatmap, target = model.training_step(batch, 0)["panel"]
    assert seen.shape == (32, 32) and seen[0, 5] == 1 and seen[0, 7] == 1  # frames 14 to 23, both polarities
    assert seen.sum() == 2 and heatmap.shape == target.shape


def test_a_picture_that_fails_is_told_once_and_stops_nothing(data, tmp_path, monkeypatch, capsys):
    def fail(*arrays):
        raise MemoryError("no room to draw")

    monkeypatch.setattr(record, "bank_picture", fail)
    assert learn_shapes.main([str(data), str(tmp_path), *TINY]) == 0
    err = capsys.readouterr().err
    assert err.count("no picture") == 1
    assert "no picture fields/off/order_0_0 at step 0: MemoryError('no room to draw')" in err


def test_rendering_catches_no_request_to_stop():
    def stop(*arrays):
        raise KeyboardInterrupt

    writer = SimpleNamespace(add_image=lambda *arguments, **options: None)
    trainer = SimpleNamespace(logger=SimpleNamespace(experiment=writer))
    with pytest.raises(KeyboardInterrupt):
        Board().picture(trainer, "a", 0, stop)


@pytest.fixture(scope="module")
def board(logs):
    """The address of a TensorBoard on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < end, "TensorBoard does not answer"
            time.sleep(0.2)
    yield address
    process.terminate()
    process.wait(20)


@pytest.mark.slow
@pytest.mark.skipif(not chromium.find(), reason="needs Chromium: apt-get install chromium")
def test_tensorboard_in_a_browser(logs, board):
    pytest.importorskip("websocket", reason="needs websocket-client, of requirements-dev.txt")
    names = [str(folder.relative_to(logs)) for folder in versions(logs)]
    images = "[...deep(document)].filter(e => e.tagName == 'IMG' && e.naturalWidth > {0}).length"
    with chromium.Chromium() as browser:

        def shows(page, *texts):
            def there():
                text = browser.text()
                return all(part in text for part in texts)

            browser.open(f"{board}/#{page}")
            browser.until(there, (page, texts))

        shows("scalars&tagFilter=train/error_px", *names, "train/error_px", "tau_ms")
        curve = "e.classList.contains('line') && (e.getAttribute('d') || '').length > 50"
        lines = f"[...deep(document)].filter(e => {curve}).length"
        browser.until(lambda: browser.evaluate(lines) >= 2, "a curve of each run")
        shows("custom_scalars", "Error in pixels", "time constants in ms, by temporal channel")
        shows("text", *names, "versions", __version__)
        shows("images&tagFilter=order_1_0", *names, "fields/off/order_1_0")
        browser.until(lambda: browser.evaluate(images.format(150)) >= 4, "two polarities of two runs")
        shows("hparams", "init_scheme_spatial", "hp_metric", "li", "lif", "7.0000", "8.0000")
