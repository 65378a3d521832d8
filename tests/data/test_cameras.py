"""Event cameras' files against a numpy reference, by writers that follow the formats' definitions."""

import multiprocessing
import random
import resource
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from camera_writers import SENSOR, dat, draw, es, evt2, evt3, named, text
from hypothesis import given, settings
from hypothesis import strategies as st

from nrf.data import event_tables
from nrf.data.cameras import FITS, Placement, View, read_any, stretches
from nrf.data.dataset import ShapeDataset
from nrf.data.recordings import DataError, write_recording

faery = pytest.importorskip("faery", reason="needs faery, of requirements-dev.txt")
h5py = pytest.importorskip("h5py", reason="needs h5py, of requirements-dev.txt")
AEDAT4 = Path(__file__).parents[1] / "fixtures" / "camera.aedat4"  # 40 events, written by dv-processing 2.0.4
EVENTS = draw()
FIELD = (20, 30)


def reference(events, sensor=SENSOR, resolution=FIELD, fit="letterbox", bin_us=1000, start=0, frames=None):
    """Cells of the frames [start, start + frames), event by event in exact fractions."""
    scales = [Fraction(size, length) for size, length in zip(resolution, sensor, strict=True)]
    scales = {"stretch": scales, "letterbox": [min(scales)] * 2, "crop": [max(scales)] * 2}[fit]
    cells = set()
    for t, x, y, p in events.tolist():
        frame = (t - int(events[0, 0])) // bin_us - start
        h, w = (
            (at - Fraction(length, 2)) * scale + Fraction(size, 2)
            for at, length, scale, size in zip((y, x), sensor, scales, resolution, strict=True)
        )
        if 0 <= frame < (frames or 2**60) and 0 <= h < resolution[0] and 0 <= w < resolution[1]:
            cells.add((frame, int(p > 0), int(h // 1), int(w // 1)))
    return sorted(cells)


def hdf5(layout, events=EVENTS):
    def write(path):
        with h5py.File(path, "w") as file:
            t, x, y, p = events.T
            if layout == "Metavision":
                file.create_dataset("CD/events", data=named(events), chunks=(512,), compression="gzip")
                file.attrs["geometry"] = f"{SENSOR[1]}x{SENSOR[0]}"
            else:
                names = ("t", "x", "y", "p") if layout == "DSEC" else ("ts", "xs", "ys", "ps")
                for name, column in zip(names, (t - 4_000_000, x, y, p), strict=True):
                    file[f"events/{name}"] = column.astype(np.uint32)
                if layout == "DSEC":
                    file["t_offset"] = 4_000_000
                else:
                    file.attrs["sensor_resolution"] = SENSOR

    return write


def arrays(**content):
    return lambda path: np.savez_compressed(path, **content)


def array(content):
    return lambda path: np.save(path, content)


T, X, Y, P = EVENTS.T
FORMATS = {  # name: (suffix, what writes it, flags)
    "EVT2": (".raw", evt2(EVENTS), {}),
    "EVT3": (".raw", evt3(EVENTS), {}),
    "EVT3 without geometry": (".raw", evt3(EVENTS, None), {"sensor": SENSOR}),
    "DAT": (".dat", dat(EVENTS), {}),
    "Event Stream": (".es", es(EVENTS), {}),
    "AEDAT4": (".aedat4", lambda path: faery_writes(path), {}),
    "DSEC": (".h5", hdf5("DSEC"), {"sensor": SENSOR}),
    "Metavision": (".hdf5", hdf5("Metavision"), {}),
    "event_utils": (".h5", hdf5("event_utils"), {}),
    "names": (".csv", text(EVENTS), {"sensor": SENSOR}),
    "faery's names": (".csv", text(EVENTS, f"t,x@{SENSOR[1]},y@{SENSOR[0]},on"), {}),
    "other order": (".csv", text(EVENTS, "x;pol;y;n;time", "xpyxt", ";"), {"sensor": SENSOR}),
    "columns": (".txt", text(EVENTS, "", "ypxt", " "), {"sensor": SENSOR, "columns": tuple("ypxt")}),
    "seconds": (".txt", text(EVENTS, f"{SENSOR[1]} {SENSOR[0]}", "txyp", " ", 1e6), {"time_unit": "s"}),
    "comments": (".txt", text(EVENTS, "# made by hand\n# t x y p", "txyp", "\t"), {"sensor": SENSOR}),
    "npz": (".npz", arrays(t=T, x=X, y=Y, p=2 * P - 1), {"sensor": SENSOR}),
    "npz of fields": (".npz", arrays(events=named(EVENTS)), {"sensor": SENSOR}),
    "npz by columns": (".npz", arrays(events=np.asfortranarray(EVENTS)), {"sensor": SENSOR}),
    "npy": (".npy", array(EVENTS.astype(np.float64)), {"sensor": SENSOR}),
    "npy by columns": (".npy", array(np.asfortranarray(EVENTS)), {"sensor": SENSOR}),
    "npy of fields": (".npy", array(named(EVENTS)), {"sensor": SENSOR}),
}


def faery_writes(path):
    columns = [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), (("p", "on"), "?")]
    events = np.empty(len(EVENTS), columns)
    for name, column in zip("txyp", EVENTS.T, strict=True):
        events[name] = column
    faery.events_stream_from_array(events, SENSOR[::-1]).to_file(path)


def written(folder, name):
    suffix, content, flags = FORMATS[name]
    path = folder / f"a{suffix}"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    return path, flags


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_its_definition_says(tmp_path, monkeypatch, name):
    path, flags = written(tmp_path, name)
    for chunk in (2**18, 333):
        monkeypatch.setattr(event_tables, "CHUNK", chunk)
        monkeypatch.setattr("nrf.data.event_files.CHUNK", chunk)
        recording = read_any(path, View(SENSOR, **flags))
        assert recording.labels is None and recording.shape == (60, 2, *SENSOR)
        assert list(map(tuple, recording.events.tolist())) == reference(EVENTS, resolution=SENSOR)
    part = {"start": 7, "frames": 11, "bin_us": 700, "fit": "crop"}
    recording = read_any(path, View(FIELD, **flags, **part))
    assert recording.shape == (11, 2, *FIELD)
    assert list(map(tuple, recording.events.tolist())) == reference(EVENTS, **part)


def test_dv_processings_aedat4():
    """A file that another program has written."""
    recording = read_any(AEDAT4, View((32, 48)))
    rng = np.random.default_rng(0)  # what the file was written with: an event every 250 us, 96 x 64 pixels
    expected = {
        (i // 4, i % 2, int(y) // 2, int(x) // 2)
        for i, (x, y) in enumerate((rng.integers(0, 96), rng.integers(0, 64)) for _ in range(40))
    }
    assert recording.shape == (10, 2, 32, 48) and set(map(tuple, recording.events.tolist())) == expected


SIDE = st.integers(1, 90)


@given(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE), st.sampled_from(FITS))
def test_every_fit_is_the_exact_map(sensor, resolution, fit):
    placement = Placement.of(sensor, resolution, fit)
    events = draw(60, 1, sensor)
    h, w, inside = placement.cells(events[:, 2], events[:, 1])
    cells = {
        (int(p), int(a), int(b)) for p, a, b in zip(events[inside, 3], h[inside], w[inside], strict=True)
    }
    assert cells == {cell[1:] for cell in reference(events, sensor, resolution, fit, bin_us=2**40)}
    assert inside.all() or fit == "crop"
    ends = placement.positions(np.array([0.0, sensor[0]]), np.array([0.0, sensor[1]]))
    over = ends - np.array([[0, 0], resolution])
    bars = {
        "stretch": abs(over) < 1e-9,
        "crop": over * [[-1], [1]] > -1e-9,
        "letterbox": over * [[1], [-1]] > -1e-9,
    }
    assert bars[fit].all()
    if fit != "stretch":
        assert (abs(over) < 1e-9).all(0).any()  # one axis is filled to the border


@given(st.integers(1, 40), st.integers(0, 30), st.sampled_from((300, 1000, 2500)))
@settings(max_examples=20)
def test_stretches_together_are_the_whole(frames, start, bin_us):
    path = SCRATCH / "a.npy"
    view = View(FIELD, SENSOR, bin_us=bin_us, start=start)
    whole = reference(EVENTS, bin_us=bin_us, start=start)
    joined, ends = [], []
    for stretch in stretches(path, view._replace(frames=frames)):
        events = stretch.recording.events.clone()
        assert (events[:, 0] >= 0).all() and (events[:, 0] < stretch.recording.shape[0]).all()
        events[:, 0] += stretch.first - start
        joined += map(tuple, events.tolist())
        ends.append((stretch.first, stretch.recording.shape[0]))
    assert joined == whole
    assert all(n == frames for _, n in ends[:-1]) and all((first - start) % frames == 0 for first, _ in ends)


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory):
    global SCRATCH
    SCRATCH = tmp_path_factory.mktemp("scratch")
    np.save(SCRATCH / "a.npy", EVENTS)


def test_late_events_count_when_they_come_and_long_silence_costs_nothing(tmp_path):
    late = np.array([[5000, 1, 1, 0], [6100, 2, 1, 0], [5900, 3, 1, 0], [4 * 10**12, 4, 1, 1]])
    np.save(tmp_path / "a.npy", late)
    found = list(stretches(tmp_path / "a.npy", View((8, 8), (8, 8), frames=10)))
    assert [s.recording.events.tolist() for s in found] == [
        [[0, 0, 1, 1], [1, 0, 1, 2], [1, 0, 1, 3]],
        [[(4 * 10**12 - 5000) // 1000 % 10, 1, 1, 4]],
    ]
    late[2, 0] = 4000
    np.save(tmp_path / "a.npy", late)
    with pytest.raises(DataError, match="time runs back by 2100 us; sort the events"):
        read_any(tmp_path / "a.npy", View((8, 8), (8, 8), frames=10))


def test_gerds_recordings_are_recognised_and_cut(tmp_path):
    write_recording(tmp_path / "a.dat", [[0, 0, 1, 2], [3, 1, 4, 5]], torch.ones(5, 1, 2), (5, 2, 8, 8))
    assert read_any(tmp_path / "a.dat", View((1, 1))).shape == (5, 2, 8, 8)
    cut = read_any(tmp_path / "a.dat", View((1, 1), start=1, frames=3))
    assert cut.shape == (3, 2, 8, 8) and cut.events.tolist() == [[2, 1, 4, 5]] and len(cut.labels) == 3


def test_of_a_long_file_only_what_is_asked_for_is_read(tmp_path):
    """100 of 30,000 frames of a 72 MB file, in a tenth of the memory and time of all of it."""
    one = draw(3_000_000, 2, SENSOR, 30_000_000)
    (tmp_path / "a.dat").write_bytes(dat(one))
    np.savez(tmp_path / "a.npz", t=one[:, 0], x=one[:, 1], y=one[:, 2], p=one[:, 3])
    for name, flags in (("a.dat", {}), ("a.npz", {"sensor": SENSOR})):
        for start in (0, 29_000):
            used, seconds = apart(read_any, tmp_path / name, View(FIELD, frames=100, start=start, **flags))
            assert used < 60 * 2**20, (name, start, used)
            assert seconds < 5, (name, start, seconds)


def apart(function, *arguments):
    """Bytes of memory and seconds that a call takes in a process of its own."""
    receive, send = multiprocessing.get_context("fork").Pipe(False)
    process = multiprocessing.get_context("fork").Process(target=_measure, args=(send, function, *arguments))
    process.start()
    found = receive.recv()
    process.join()
    return found


def _measure(send, function, *arguments):
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    start = time.perf_counter()
    function(*arguments)
    seconds = time.perf_counter() - start
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    send.send((int(peak.split()[1]) * 1024 - before, seconds))


BAD = {
    "none.raw": (None, {}, "no such file"),
    "a.bag": (b"", {}, r"no reader for \.bag; expected \.raw, \.dat"),
    "a.raw": (b"% evt 21\n", {}, "encoding EVT2.1; expected EVT2.0 or EVT3.0"),
    "b.raw": (b"\0\0", {}, "encoding not stated in its header"),
    "c.raw": (b"% evt 3.0\n% geometry 1280x720\n% end\n", {}, "no events in it"),
    "d.raw": (evt3(EVENTS, None), {}, "does not state the size of its sensor; give it with --sensor"),
    "e.raw": (evt3(EVENTS), {"sensor": (64, 48)}, "states a sensor of 48 x 64 pixels, --sensor 64 x 48"),
    "f.raw": (evt3(EVENTS), {"start": 60}, "no event from frame 60 on"),
    "g.raw": (evt3(EVENTS, None), {"sensor": (20, 30)}, "lies outside its sensor of 20 rows, 30 columns"),
    "a.dat": (b"%", {}, "no header"),
    "a.aedat4": (b"#!AER-DAT4.0\r\nnonsense", {}, "damaged or foreign"),
    "a.txt": (b"", {"sensor": SENSOR}, "no events in it"),
    "b.txt": (b"0.5 1 1 1\n", {"sensor": SENSOR}, "t 0.5, expected whole microseconds; give .* --time_unit"),
    "c.txt": (b"1 2 3\n", {"sensor": SENSOR}, "3 columns, --columns t x y p"),
    "d.txt": (b"1 2 3 1\n1 2 x 1\n", {"sensor": SENSOR}, "damaged or foreign"),
    "a.csv": (b"t,row,col,p\n1,2,3,1\n", {"sensor": SENSOR}, "columns t, row, col, p; expected t, x, y, p"),
    "a.npy": (array(np.array([object()])), {"sensor": SENSOR}, "expected numbers"),
    "b.npy": (array(np.full((3, 4), np.nan)), {"sensor": SENSOR}, "expected finite"),
    "a.npz": (arrays(t=T, x=X, y=Y, p=P[:-1]), {"sensor": SENSOR}, "of lengths"),
    "b.npz": (arrays(a=T, b=X), {"sensor": SENSOR}, "arrays a, b; expected t, x, y, p"),
    "a.h5": (b"\x89HDF\r\n\x1a\n", {}, "damaged or foreign"),
    "b.h5": (lambda path: h5py.File(path, "w").close(), {}, "no events in an HDF5 layout known here"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_line(tmp_path, name):
    content, flags, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content) if isinstance(content, bytes) else content(tmp_path / name)
    with pytest.raises(DataError, match=message) as raised:
        read_any(tmp_path / name, View(FIELD, **flags))
    assert "\n" not in str(raised.value) and name in str(raised.value)


@pytest.mark.parametrize(("name", "package"), [("EVT3", "faery"), ("DSEC", "h5py")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package):
    path, flags = written(tmp_path, name)
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"needs a reader: pip install {package}"):
        read_any(path, View(FIELD, **flags))


def test_views_that_cannot_be_are_refused():
    for flags in (
        {"start": -1},
        {"frames": 0},
        {"bin_us": 0},
        {"sensor": (0, 5)},
        {"fit": "x"},
        {"time_unit": "h"},
    ):
        with pytest.raises(ValueError, match=f"--{next(iter(flags))} .*expected"):
            View(FIELD, **flags).check()


def test_a_cameras_dat_among_training_data_is_called_what_it_is(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.dat").write_bytes(dat(EVENTS))
    with pytest.raises(DataError, match="0.dat: an event camera's; .* nrf convert"):
        ShapeDataset(tmp_path, split="all")


def damaged(whole, n, seed=0):
    rng = random.Random(seed)
    for _ in range(n):
        yield whole[: rng.randrange(len(whole))]
    for bits in (1, 1, 9):
        for _ in range(n):
            flipped = bytearray(whole)
            for _ in range(bits):
                flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            yield bytes(flipped)


def read_damaged(send, folder, name, n):
    torch.set_num_threads(1)
    path, flags = written(folder, name)
    whole, refused = path.read_bytes(), 0
    for content in damaged(whole, n):
        path.write_bytes(content)
        try:
            recording = read_any(path, View(FIELD, **flags, frames=500))
            assert (recording.events >= 0).all() and (recording.events < torch.tensor(recording.shape)).all()
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
    send.send(refused)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_or_read_and_never_hang(tmp_path, name, capfd):
    receive, send = multiprocessing.get_context("fork").Pipe(False)
    arguments = send, tmp_path, name, 25
    process = multiprocessing.get_context("fork").Process(target=read_damaged, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0, f"ended with {process.exitcode}"
    assert receive.poll() and receive.recv() > 0
    assert capfd.readouterr().err == ""  # Rust's panics write a page
