"""nrf generate_data and data_generation.sh as a user meets them: files, going on, refusing, failing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gerd
import numpy as np
import pytest

from nrf.commands import generate_data
from nrf.data import generation
from nrf.data.recordings import read_recording, write_recording
from nrf.gerd.render import RenderParameters, render

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = Path(__file__).parents[1] / "fixtures" / "v0.50-p1.00-s14.0_1000" / "0.dat"
SMALL = "--resolution 40 40 --scales 14 --velocities 0.5 --frames 48 --shapes circle"
SUB = "v0.50-p1.00-s14.0_1000"


def command(text):
    return generate_data.main(text.split())


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def test_data_set_of_two_sizes_and_velocities(tmp_path, capsys):
    sizes = "--resolution 48 48 --scales 8 random --velocities 0.2 1.28 --frames 9"
    assert command(f"2 {tmp_path}/d {sizes} --workers 1") == 0
    names = [
        "v0.20-p1.00-s0.0_1000",
        "v0.20-p1.00-s8.0_1000",
        "v1.28-p1.00-s0.0_1000",
        "v1.28-p1.00-s8.0_1000",
    ]
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == names
    for name in names:
        assert sorted(p.name for p in (tmp_path / "d" / name).iterdir()) == [
            "0.dat",
            "1.dat",
            "parameters.json",
        ]
    assert "8 recordings rendered" in capsys.readouterr().out
    described = json.loads((tmp_path / "d" / names[1] / "parameters.json").read_text())
    assert described["scale"] == 8.0 and described["generator"] == "clean" and described["seed"] == 0
    first, second = (read_recording(tmp_path / "d" / names[1] / f"{i}.dat") for i in (0, 1))
    assert first.shape == (9, 2, 48, 48) and first.labels.shape == (9, 3, 2)
    assert not np.array_equal(first.labels, second.labels)


@pytest.mark.parametrize(
    "flags,name",
    [
        (dict(), "v0.20-p1.00-s20.0_1000"),
        (dict(scale=10.0, event_density=0.25), "v0.20-p0.25-s10.0_1000"),
        (dict(scale="random", velocity=0.16), "v0.16-p1.00-s0.0_1000"),
        (dict(scale="changing", rotate=True, shear=True), "v0.20-p1.00-s1.0_1111"),
        (dict(translate=False, shear=True), "v0.20-p1.00-s20.0_0001"),
    ],
)
def test_folder_names_as_published(flags, name):
    assert generation.folder_name(RenderParameters(**flags)) == name


def test_one_recording_can_be_made_again_alone(tmp_path):
    assert command(f"2 {tmp_path} {SMALL} --seed 5 --workers 1") == 0
    folders, _ = generation.plan(generate_data.parse(f"1 {tmp_path} {SMALL} --seed 5".split()))
    before = contents(tmp_path)
    (tmp_path / SUB / "1.dat").unlink()
    generation.render_one(folders[0], 1, [])
    assert contents(tmp_path) == before


def test_resumes_where_it_stopped(tmp_path, capsys):
    assert command(f"3 {tmp_path}/whole {SMALL} --workers 1") == 0
    assert command(f"2 {tmp_path}/parts {SMALL} --workers 1") == 0
    kept = tmp_path / "parts" / SUB / "1.dat"
    (tmp_path / "parts" / SUB / "0.dat").unlink()
    stamp = kept.stat().st_mtime_ns
    assert command(f"3 {tmp_path}/parts {SMALL} --workers 1") == 0
    assert "2 recordings rendered" in (out := capsys.readouterr().out) and "1 were there" in out
    assert kept.stat().st_mtime_ns == stamp
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_workers_change_nothing(tmp_path, monkeypatch):
    assert command(f"6 {tmp_path}/one {SMALL} --workers 1") == 0
    monkeypatch.setattr(generation, "ALONE_S", -1.0)
    monkeypatch.setattr(generation, "WORTH_S", -1.0)
    assert command(f"6 {tmp_path}/two {SMALL} --workers 2") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    "change,words",
    [
        ("--seed 1", "seed 0, not 1"),
        ("--generator gerd-0.5.1", "generator clean, not gerd-0.5.1"),
        ("--frames 9", "length 48, not 9"),
        ("--resolution 48 40", "resolution [40, 40], not [48, 40]"),
        ("--bg_density 0.5", "bg_density 0.001, not 0.5"),
    ],
)
def test_refuses_to_mix(tmp_path, capsys, change, words):
    assert command(f"1 {tmp_path} {SMALL} --workers 1") == 0
    before = contents(tmp_path)
    assert command(f"2 {tmp_path} {SMALL} {change}") == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and SUB in error
    assert contents(tmp_path) == before


def test_refuses_foreign_recordings(tmp_path, capsys):
    folder = tmp_path / SUB
    folder.mkdir()
    (folder / "0.dat").write_bytes(b"not ours")
    assert command(f"1 {tmp_path} {SMALL}") == 2
    assert "has recordings but no parameters.json" in capsys.readouterr().err
    (folder / "parameters.json").write_text("[")
    assert command(f"1 {tmp_path} {SMALL}") == 2
    assert "not readable as JSON" in capsys.readouterr().err
    (folder / "parameters.json").unlink()
    (folder / "parameters.json").mkdir()
    assert command(f"1 {tmp_path} {SMALL}") == 1
    assert capsys.readouterr().err.endswith("parameters.json: Is a directory\n")


@pytest.mark.parametrize(
    "arguments,words",
    [
        ("0 out", "expected a whole number >= 1"),
        ("1 out --scales big", "expected a size in pixels, random or changing"),
        ("1 out --generator gerd", "invalid choice"),
        ("1 out --shapes star", "invalid choice"),
        ("1 out --seed -1", "expected one argument|expected a whole number >= 0"),
        ("1 out --unknown", "unknown flag --unknown"),
        ("1 out more", "one argument too many: more; see --help"),
        ("1 out --scales 0.5", "expected at least 1 pixel"),
        ("1 out --scales 20 20", "two conditions would share this name"),
        ("1 out --resolution 40 40 --scales 80", "expected at least 80 pixels a side"),
        ("1 out --event_densities 1.5", r"expected a number in \(0, 1\]"),
        ("1 out --bg_files nowhere", "no .dat recordings there"),
    ],
)
def test_wrong_usage_is_exit_2_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    try:
        code = command(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert any(word in last.replace("\\", "") for word in words.replace("\\", "").split("|"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_recording_ends_the_command_and_is_named(tmp_path, monkeypatch, capsys, workers):
    """A background of another size cannot lie under: it fails in the recording, here or in a worker."""
    monkeypatch.setattr(generation, "ALONE_S", -1.0)
    monkeypatch.setattr(generation, "WORTH_S", -1.0)
    background = tmp_path / "backgrounds" / "b.dat"
    background.parent.mkdir()
    write_recording(background, np.array([[0, 1, 2, 3]]), np.zeros((60, 1, 2), np.float32), (60, 2, 40, 40))
    out = tmp_path / "out"
    rendering = f"{SMALL} --bg_files {background.parent} --workers {workers}"
    assert command(f"1 {out} {rendering}") == 0
    assert (0, 1, 2, 3) in set(map(tuple, read_recording(out / SUB / "0.dat").events.tolist()))
    write_recording(background, np.array([[0, 1, 2, 3]]), np.zeros((60, 1, 2), np.float32), (60, 2, 41, 40))
    (out / SUB / "0.dat").unlink() if workers == 1 else None
    assert command(f"3 {out} {rendering}") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ".dat: ValueError: the background has 60 frames of 41 x 40 pixels" in error and SUB in error
    assert {p.name for p in (out / SUB).iterdir()} <= {"0.dat", "parameters.json"}


def start(tmp_path, patch=""):
    """nrf generate_data in a process of its own, with many recordings to render."""
    imports = "import sys; from nrf.commands import generate_data; from nrf.data import generation"
    code = f"if __name__ == '__main__': {imports}; {patch or 'pass'}; sys.exit(generate_data.main())"
    script = tmp_path / "run.py"
    script.write_text(code)
    arguments = f"5000 {tmp_path}/out {SMALL} --workers 2".split()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"env": environment, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # a shell's background job ignores Ctrl-C and hands that on: also to these tests
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, script, *arguments], **options)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


IN_PROCESSES = "generation.ALONE_S = generation.WORTH_S = -1.0"


@pytest.mark.parametrize("patch", ["", IN_PROCESSES])
def test_ctrl_c_leaves_whole_files_only(tmp_path, patch):
    process = start(tmp_path, patch)
    folder = tmp_path / "out" / SUB
    wait_for(lambda: (folder / "8.dat").exists())
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers, too
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in error
    assert error.strip().splitlines()[-1].endswith("the same command resumes from here")
    names = {p.name for p in folder.iterdir()}
    assert all(n.endswith(".dat") and n[0] != "." for n in names - {"parameters.json"})
    for name in names - {"parameters.json"}:
        assert read_recording(folder / name).shape == (48, 2, 40, 40)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds worker processes by Linux's /proc")
def test_workers_end_with_their_parent(tmp_path):
    process = start(tmp_path, IN_PROCESSES)
    folder = tmp_path / "out" / SUB
    wait_for(lambda: (folder / "8.dat").exists())  # the parent itself renders the first only
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    process.communicate()

    def alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    wait_for(lambda: not any(map(alive, children)), 20)


def test_gerds_own_data_set_class_loads_what_we_write(tmp_path):
    assert command(f"3 {tmp_path} --resolution 48 48 --scales 8 --frames 128 --workers 1") == 0
    data = gerd.GerdDataset(str(tmp_path), t=40, train=True)
    assert len(data) == 2
    warmup, frames, labels = data[0]
    ours = read_recording(tmp_path / "v0.20-p1.00-s8.0_1000" / "0.dat")
    dense = np.zeros(ours.shape, np.float32)
    dense[tuple(ours.events.T.numpy())] = 1
    assert np.array_equal(warmup, dense[:40]) and np.array_equal(frames, dense[40:80])
    assert np.array_equal(np.asarray(labels).reshape(-1, 3, 2), ours.labels[40:80].numpy())


def test_fixture_is_what_the_command_renders():
    """The stream of random numbers is fixed; whoever changes it changes FORMAT too.  The fixture was made by
    nrf generate_data 1 tests/fixtures  and the flags in SMALL."""
    folders, _ = generation.plan(generate_data.parse(f"1 {FIXTURE.parents[1]} {SMALL}".split()))
    kept = read_recording(FIXTURE)
    seed = (0, generation.zlib.crc32(SUB.encode()), 0)
    again = render(folders[0].parameters, seed)
    assert np.array_equal(kept.events.numpy(), again.events) and np.array_equal(
        kept.labels.numpy(),
        again.labels,
    )


def test_data_generation_sh_makes_both_data_sets(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "SPATIAL_N": "1", "TEMPORAL_N": "1"}
    environment["OPTIONS"] = "--frames 2 --workers 1"
    script = ["sh", str(ROOT / "data_generation.sh")]
    subprocess.run(
        [*script, tmp_path / "s", tmp_path / "t"], env=environment, check=True, capture_output=True
    )
    spatial = [f"v0.20-p1.00-s{size}.0_1000" for size in (10, 20, 40, 80)]
    temporal = [f"v{v}-p1.00-s0.0_1000" for v in ("0.16", "0.32", "0.64", "1.28")]
    for root, names in (("s", spatial), ("t", temporal)):
        assert sorted(p.name for p in (tmp_path / root).iterdir()) == names
        for name in names:
            description = json.loads((tmp_path / root / name / "parameters.json").read_text())
            assert description["generator"] == "published" and (tmp_path / root / name / "0.dat").exists()
    wrong = subprocess.run([*script, "one"], env=environment, capture_output=True, text=True)
    assert wrong.returncode == 2 and "usage" in wrong.stderr
