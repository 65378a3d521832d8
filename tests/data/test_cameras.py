"""Event cameras' files, written by the libraries of their formats, as frames of 1 ms."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nrf.data.cameras import read_any
from nrf.data.dataset import DataError, write_recording

AEDAT4 = Path(__file__).parents[1] / "fixtures" / "camera.aedat4"  # 40 events, written by dv-processing 2.0.4
EVENTS = np.array(
    [(5000, 0, 0, 0), (5999, 39, 0, 1), (6000, 20, 10, 1), (6001, 21, 10, 1), (9000, 39, 19, 0)],
    dtype=[("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")],
)
HALF = [[0, 0, 0, 0], [0, 1, 0, 19], [1, 1, 5, 10], [4, 0, 9, 19]]  # in a field of half the size


def prophesee(path, encoding, header=b""):
    library = pytest.importorskip("expelliarmus", reason="needs expelliarmus, of requirements-dev.txt")
    library.Wizard(encoding=encoding).save(path, EVENTS)
    path.write_bytes(header + path.read_bytes())
    return path


@pytest.mark.parametrize(("encoding", "name"), [("dat", "a.dat"), ("evt2", "a.raw"), ("evt3", "a.raw")])
def test_prophesee(tmp_path, encoding, name):
    recording = read_any(prophesee(tmp_path / name, encoding), (10, 20))
    assert recording.shape == (5, 2, 10, 20) and recording.labels is None
    assert recording.events.tolist() == HALF  # two events of one cell and millisecond are one


@pytest.mark.parametrize("header", [b"% Width 80\n% Height 40\n", b"% geometry 80x40\n"])
def test_the_sensors_size_comes_from_the_header(tmp_path, header):
    recording = read_any(prophesee(tmp_path / "a.raw", "evt3", header), (20, 40))
    assert recording.shape == (5, 2, 20, 40) and recording.events.tolist() == HALF


def test_a_sensor_too_small_for_its_events_is_refused(tmp_path):
    with pytest.raises(DataError, match="outside its sensor of 30 x 40 pixels"):
        read_any(prophesee(tmp_path / "a.raw", "evt3", b"% geometry 30x40\n"), (20, 40))


def test_aedat4():
    pytest.importorskip("aedat", reason="needs aedat, of requirements-dev.txt")
    recording = read_any(AEDAT4, (32, 48))
    rng = np.random.default_rng(0)  # what the file was written with: an event every 250 us, 96 x 64 pixels
    wanted = {
        (i // 4, i % 2, int(y) // 2, int(x) // 2)
        for i, (x, y) in enumerate((rng.integers(0, 96), rng.integers(0, 64)) for _ in range(40))
    }
    assert recording.shape == (10, 2, 32, 48) and recording.labels is None
    assert set(map(tuple, recording.events.tolist())) == wanted


def test_gerds_recordings_are_told_apart_and_cut(tmp_path):
    write_recording(tmp_path / "a.dat", [[0, 0, 1, 2], [3, 1, 4, 5]], torch.ones(5, 1, 2), (5, 2, 8, 8))
    assert read_any(tmp_path / "a.dat", (1, 1)).shape == (5, 2, 8, 8)
    cut = read_any(tmp_path / "a.dat", (1, 1), max_frames=3)
    assert cut.shape == (3, 2, 8, 8) and cut.events.tolist() == [[0, 0, 1, 2]] and len(cut.labels) == 3


def test_what_cannot_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.raw").write_bytes(b"% evt 21\n")
    (tmp_path / "a.aedat4").write_bytes(b"#!AER-DAT4.0\r\nnonsense")
    (tmp_path / "a.txt").write_text("")
    for name, message in [
        ("none.raw", "no such file"),
        ("a.raw", "encoding unknown; expected EVT2, EVT3 or DAT"),
        ("a.aedat4", r"a\.aedat4: damaged or foreign"),
        ("a.txt", r"no reader for \.txt; expected \.dat, \.raw"),
    ]:
        with pytest.raises(DataError, match=message):
            read_any(tmp_path / name, (8, 8))
    monkeypatch.setitem(sys.modules, "aedat", None)  # as if it was not installed
    with pytest.raises(DataError, match="needs a reader: pip install aedat"):
        read_any(AEDAT4, (8, 8))
