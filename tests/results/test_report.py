"""Reports of logs that are written here by hand: what is read, which state it is in, and the page."""

import dataclasses
import json
import os
import platform
import re
import struct
import subprocess
import sys
import time

import chromium
import hypothesis
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from nrf.commands import report as report_command
from nrf.config import Config
from nrf.results import report
from nrf.results.logs import read_scalars
from nrf.results.report import (
    SILENT_S,
    differing,
    find_runs,
    group_table,
    groups_of,
    process_lives,
    read_run,
    table,
)


def log(folder, errors_px, data="spatial", state="finished", host=None, pid=None, times=None, **settings):
    """A run as learn_shapes.py leaves it; state None: without run.json."""
    folder.mkdir(parents=True)
    config = dataclasses.asdict(Config(**settings))
    (folder / "hparams.yaml").write_text(yaml.safe_dump(config | {"resolution": [300, 300]}))
    writer = SummaryWriter(folder)
    for epoch, error_px in enumerate(errors_px):
        wall = (times or [1000.0 + 10 * e for e in range(len(errors_px))])[epoch]
        writer.add_scalar("val/error_px", error_px, 100 * (epoch + 1), wall)
        writer.add_scalar("epoch", epoch, 100 * (epoch + 1), wall)
    writer.close()
    if state:
        record = {"state": state, "data": f"/somewhere/{data}", "pid": pid or os.getpid()}
        record["host"] = host or platform.node()
        record["logged_bytes"] = sum(path.stat().st_size for path in folder.glob("events.*"))
        (folder / "run.json").write_text(json.dumps(record))
    return folder


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_is_read(tmp_path):
    folder = log(tmp_path / "a" / "version_0", [30.0, 2.5, 4.0], net="li", seed=3)
    run = read_run(folder, tmp_path)
    assert (run.name, run.data, run.state) == ("a/version_0", "spatial", "finished")
    assert run.epochs == [1, 2, 3] and run.errors_px == [30.0, 2.5, 4.0] and run.best_px == 2.5
    assert run.group == ("LI", "rf") and run.settings["seed"] == 3


def test_seconds_leave_pauses_out_and_what_was_logged_anew_counts(tmp_path):
    folder = log(tmp_path / "a", [9.0, 8.0], times=[1000.0, 1030.0])
    for path in folder.glob("events*"):  # files are read in the order of their names, which count seconds
        path.rename(path.with_name("events.out.tfevents.1"))
    writer = SummaryWriter(folder, filename_suffix=".second")  # a day later, from step 100 on
    for step, error_px, wall in ((200, 7.0, 90000.0), (300, 6.0, 90012.0)):
        writer.add_scalar("val/error_px", error_px, step, wall)
    writer.close()
    for path in folder.glob("events*"):  # the writer's own first entry has the time of now
        raw = [e for e in EventFileLoader(str(path)).Load() if e.HasField("summary")]
        assert len(raw) in (2, 4)
    run = read_run(folder, tmp_path)
    assert run.errors_px == [9.0, 7.0, 6.0] and run.seconds == pytest.approx(42)


def test_scalars_are_those_that_tensorboard_reads(tmp_path):
    """Also behind pictures, of a run that went on from an earlier step, and without the end of the file."""
    for first, suffix in ((1, ".first"), (3, ".second")):
        writer = SummaryWriter(tmp_path, purge_step=first, filename_suffix=suffix)
        for step in range(first, first + 4):
            writer.add_image("kernels", torch.rand(3, 8, 8), step)
            writer.add_scalar("a", 10.0 * first + step, step)
            writer.add_scalar("b", -step, step, new_style=True)
        writer.close()
        (path,) = tmp_path.glob(f"*{suffix}")
        path.rename(path.with_name(f"events.out.tfevents.{first}"))
    expected = EventAccumulator(str(tmp_path)).Reload()
    scalars = read_scalars(tmp_path, ("a", "b", "missing"))
    assert list(scalars["a"].items()) == [(e.step, e.value) for e in expected.Scalars("a")]
    assert scalars["a"] == {1: 11.0, 2: 12.0, 3: 33.0, 4: 34.0, 5: 35.0, 6: 36.0} and not scalars["missing"]
    assert scalars["b"] == {step: -step for step in range(1, 7)}
    path = tmp_path / "events.out.tfevents.3"
    for damaged in (path.read_bytes()[:-10], path.read_bytes() + bytes(range(40, 80))):
        path.write_bytes(damaged)
        assert read_scalars(tmp_path, ("a",))["a"] == scalars["a"]
    path.write_bytes(damaged[: len(damaged) // 2])
    assert 3 <= len(read_scalars(tmp_path, ("a",))["a"]) < 6


@pytest.mark.parametrize(
    ("record", "age_s", "wanted"),
    [
        ({"state": "finished"}, 0, "finished"),
        ({"state": "stopped"}, 0, "stopped"),
        ({"state": "failed"}, 0, "failed"),
        ({"state": "running", "pid": os.getpid()}, 2 * SILENT_S, "running"),
        ({"state": "running", "pid": ended_process()}, 0, "crashed"),
        ({"state": "running", "pid": 1, "host": "elsewhere"}, SILENT_S - 60, "running"),
        ({"state": "running", "pid": 1, "host": "elsewhere"}, SILENT_S + 60, "crashed"),
        ({}, SILENT_S - 60, "running"),
        ({}, SILENT_S + 60, "over"),
    ],
)
def test_states(tmp_path, record, age_s, wanted):
    (tmp_path / "events.out.tfevents.1").touch()
    record = {"host": platform.node()} | record if record else record
    assert report.state_of(tmp_path, record, now=time.time() + age_s) == wanted


def test_files_that_vanish_meanwhile_have_no_say(tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.1").touch()
    monkeypatch.setattr(report.os, "walk", lambda folder: [(folder, [], ["gone", "events.out.tfevents.1"])])
    assert report.state_of(tmp_path, {}) == "running"
    monkeypatch.undo()
    assert report.state_of(tmp_path / "gone", {}) == "over"


def test_processes():
    assert process_lives(os.getpid()) and process_lives(1) and not process_lives(ended_process())


@pytest.fixture
def logs(tmp_path):
    """Two data sets; of LI with fields on the first, two finished seeds and a crashed one; a run without
    error yet; a foreign one."""
    root = tmp_path / "logs"
    log(root / "a" / "version_0", [9.0, 1.5], seed=0)
    log(root / "a" / "version_1", [9.0, 2.5], seed=1, lr=1e-3)
    log(root / "a" / "version_2", [9.0], seed=2, state="running", pid=ended_process())
    log(root / "b" / "version_0", [20.0, 12.0], data="temporal", net="lif", init_scheme_spatial="uniform")
    log(root / "c" / "version_0", [], net="ann", stack_frames=8)
    writer = SummaryWriter(root / "theirs (x)" / "version_5")
    writer.add_scalar("val/error_px", 3.0, 1)
    writer.close()
    return root


def test_the_tables(logs):
    runs = [read_run(folder, logs) for folder in find_runs(logs)]
    assert len(runs) == 6 and differing(runs[:3]) == ["lr", "seed"]
    header, rows = table(runs)
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert by_name["a/version_2"]["state"] == "crashed" and by_name["a/version_2"]["best px"] == 9.0
    assert by_name["c/version_0"]["best px"] is None and by_name["c/version_0"]["network"] == "ReLU-MF"
    assert (
        by_name["theirs (x)/version_5"]["state"] == "running"
        and by_name["theirs (x)/version_5"]["data"] == "x"
    )
    assert by_name["a/version_1"]["lr"] == "0.001" and by_name["theirs (x)/version_5"]["lr"] is None
    assert [row[5] for row in rows if row[3] == "spatial"] == [1.5, 2.5, 9.0, None]
    _, rows = group_table(runs)
    assert rows[0] == ["spatial", "LI", "rf", 2, 3, 2.0, pytest.approx(0.5**0.5), 2.0, 1.1]
    assert rows[1][:6] == ["temporal", "LIF", "uniform-rf", 1, 1, 12.0] and rows[1][-1] is None
    assert list(groups_of(runs)) == ["spatial", "temporal", "x"]


def test_the_command(logs, tmp_path, capsys):
    out = tmp_path / "report"
    assert report_command.main([str(logs), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| a/version_0 " in printed and "crashed" in printed and f"see {out}/index.html" in printed
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"errors.png", "curves-spatial.png", "curves-temporal.png", "curves-x.png"}
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "6 runs: 4 finished, 1 crashed" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # all is in the one file
    assert "<td>crashed</td>" in page and "theirs (x)" in page


def test_boxes_are_of_finished_runs_with_the_published_medians(logs, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(report, "error_boxes", lambda panels, path: path.touch() or seen.update(panels))
    report.draw([read_run(folder, logs) for folder in find_runs(logs)], tmp_path)
    assert seen["spatial"] == [("LI", "rf", [1.5, 2.5], 1.1)]
    assert seen["temporal"] == [("LIF", "uniform-rf", [12.0], None)] and "x" not in seen


def test_what_cannot_be_is_one_line(tmp_path, capsys):
    assert report_command.main([str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err
        == f"nrf report: {tmp_path}: no TensorBoard files under it; expected a folder of logs\n"
    )
    (tmp_path / "hparams.yaml").write_text("a: !!python/object:torch.device {}")
    assert report._settings(tmp_path) == {}
    for foreign in ('{"a": 1}', "[]", "{"):
        (tmp_path / "run.json").write_text(foreign)
        assert report._record(tmp_path) == {}


@pytest.mark.slow
@pytest.mark.skipif(not chromium.find(), reason="needs Chromium: apt-get install chromium")
def test_the_page_in_a_browser(logs, tmp_path):
    pytest.importorskip("websocket", reason="needs websocket-client, of requirements-dev.txt")
    assert report_command.main([str(logs), "--out", str(tmp_path / "report")]) == 0
    (tmp_path / "report" / "index.html").rename(tmp_path / "alone.html")
    with chromium.Chromium() as browser:
        browser.open(f"file://{tmp_path}/alone.html")
        drawn = "[...document.images].filter(i => i.complete && i.naturalWidth > 300).length"
        browser.until(lambda: browser.evaluate(drawn) == 4, "four pictures")
        assert "crashed" in browser.text() and "6 runs" in browser.text()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
GOOD_RECORD = {"state": "finished", "data": "/x/spatial", "host": "h", "pid": 7}
ODD_RECORDS = [
    *(
        json.dumps(GOOD_RECORD | {name: odd})
        for name in GOOD_RECORD
        for odd in (None, [], {}, -1, 2**70, "\ud800\n")
    ),
    *("[" * 100_000, "null", "", "{", "\udcff", json.dumps([GOOD_RECORD])),
]
ODD_SETTINGS = [
    "a: &a [1]\nb: *a\n",
    "net: [li]\nseed: {}\n",
    "1: 2\nnet: 3\n",
    'net: "\\e[31m"\nstack_frames: x\n',
    "- 1\n",
]


@given(
    record=st.sampled_from(ODD_RECORDS) | JSON.map(json.dumps),
    settings=st.sampled_from(ODD_SETTINGS) | JSON.map(json.dumps),
    events=st.binary(max_size=60) | st.just(struct.pack("<QI", 2**60, 0)) | st.just(bytes(64)),
)
@hypothesis.settings(max_examples=60)
def test_one_odd_run_never_takes_down_the_others(odd_logs, record, settings, events):
    logs, good = odd_logs
    for name, content in (("run.json", record), ("hparams.yaml", settings)):
        (logs / "odd" / name).write_text(content, errors="surrogateescape")
    (logs / "odd/events.out.tfevents.2").write_bytes(events)
    runs = [read_run(folder, logs) for folder in find_runs(logs)]
    assert runs[0] == good and len(runs) == 2
    header, rows = table(runs)
    text = report.page(runs, logs, []) + str(rows) + str(group_table(runs)) + str(groups_of(runs))
    assert "spatial" in text and "\x1b" not in text
    text.encode()


@pytest.fixture(scope="module")
def odd_logs(tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    log(logs / "good", [5.0, 3.0], seed=1)
    log(logs / "odd", [4.0, 2.0])
    return logs, read_run(logs / "good", logs)


def test_a_finished_run_whose_logs_are_cut_is_damaged(tmp_path):
    """At every length, and with a bit turned or the tail zeroed; while it runs, the end of a file may be half
    an entry."""
    folder = log(tmp_path / "run", [5.0, 3.0, 4.0])
    (path,) = folder.glob("events.*")
    whole = path.read_bytes()
    assert read_run(folder, tmp_path).state == "finished"
    for end in [len(whole) - 1, *range(0, len(whole), 7)]:
        path.write_bytes(whole[:end])
        assert read_run(folder, tmp_path).state == "damaged", end
    path.write_bytes(whole[:-40] + bytes(40))
    assert read_run(folder, tmp_path).state == "damaged"
    flipped = bytearray(whole)
    flipped[-20] ^= 4
    path.write_bytes(flipped)
    assert read_run(folder, tmp_path).state == "damaged"
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"state": "running"}))
    assert read_run(folder, tmp_path).state == "running"


def test_a_named_pipe_among_the_logs_is_left_alone(tmp_path):
    log(tmp_path / "run", [5.0])
    for name in ("events.out.tfevents.9", "hparams2.yaml"):
        os.mkfifo(tmp_path / "run" / name)
    (tmp_path / "run/run.json").unlink()
    os.mkfifo(tmp_path / "run/run.json")
    assert read_run(tmp_path / "run", tmp_path).errors_px == [5.0]
