"""What commands print: no name and no file breaks a line of it, and nobody has to read it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrf.commands.learn_shapes import parse
from nrf.data.dataset import recordings
from nrf.data.recordings import DataError, check_file
from nrf.system.text import one_line, printable
from nrf.training.persistence import CheckpointError, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
EVIL = "a\nb\x1b[31m\u2028c.dat"
SPELT = r"a\nb\x1b[31m\u2028c.dat"


@given(st.text(st.characters()))
def test_what_is_printed_is_printable_and_loses_nothing(text):
    assert printable(text).isprintable() and one_line(text).isprintable()
    assert printable(printable(text)) == printable(text)
    if text.isprintable():
        assert printable(text) == text
    elif "\\" not in text:  # what was escaped can be read back
        assert printable(text).encode("latin-1", "backslashreplace").decode("unicode_escape") == text


@pytest.mark.parametrize("name", [EVIL, os.fsdecode(b"\xff.dat")])
def test_names_of_files_are_spelt_out_and_keep_their_folder(tmp_path, name):
    (tmp_path / "v1").mkdir()
    path = tmp_path / "v1" / name
    path.write_bytes(b"nothing")
    with pytest.raises(DataError) as told:
        recordings(tmp_path, "all")
    assert str(told.value).startswith(f"{tmp_path}/v1/{printable(name)}: not a recording")
    assert printable(EVIL) == SPELT and str(told.value).isprintable()
    of_worker = f"Caught DataError in a worker.\nTraceback\n{DataError.__module__}.DataError: {told.value}"
    assert str(DataError(of_worker)) == str(told.value)
    with pytest.raises(CheckpointError) as told:
        read_checkpoint(path)
    assert str(told.value).startswith(f"{tmp_path}/v1/{printable(name)}: damaged")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_no_recording(tmp_path):
    (tmp_path / "v1").mkdir()
    os.mkfifo(tmp_path / "v1/0.dat")
    for read in (check_file, lambda path: recordings(tmp_path, "all")):
        with pytest.raises(DataError, match=r"0\.dat: not a file"):
            read(tmp_path / "v1/0.dat")


LAUGHS = "\n".join(
    f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]" for b, c in zip("abcdefghi", "bcdefghij", strict=True)
)
CONFIGS = {
    "byte-order mark": (b"\xef\xbb\xbflr: 0.5\n", None),
    "aliases": (f"a: &a [1]\n{LAUGHS}\nlr: *j\n".encode(), "anchors and aliases"),
    "no text": (b"lr: \xff\xfe", "not a text"),
    "no YAML": (b"lr: [", "node content"),
    "brackets": (b"lr: " + b"[" * 5000, "more than 20 deep"),
    "dashes": (b"lr:\n  " + b"- " * 5000, "more than 20 deep"),
    "long": (b"lr: [" + b"1, " * 10**5 + b"1]", "300007 characters; expected at most"),
    "text": (b"lr: " + b"x" * 60_000, "--lr: expected float, not xxx"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_files(tmp_path, capsys, case):
    content, told = CONFIGS[case]
    (tmp_path / "run.yaml").write_bytes(content)
    flags = ["DATA", "LOGS", "--config", str(tmp_path / "run.yaml")]
    if told is None:
        assert parse(flags)["lr"] == 0.5
        return
    with pytest.raises(SystemExit) as end:
        parse(flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("learn_shapes.py: --") and told in line and len(line) < 900


def written(program, stdout):
    """Exit code and stderr of a command that prints 100,000 lines and then a text no locale can encode."""
    script = f"from nrf.__main__ import leave; leave(lambda: {program})"
    words = [sys.executable, "-c", script]
    run = subprocess.run(
        words, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT, env=os.environ | {"LC_ALL": "C"}
    )
    return run.returncode, run.stderr


def test_nobody_has_to_read_the_output():
    """`| head -1` and a closed stdout: what a command saves after its first line is saved all the same."""
    program = "[print(i) for i in range(10**5)] and print('\\udcff') or 3"
    read, write = os.pipe()
    os.close(read)
    assert written(program, write) == (3, b"")
    os.close(write)
    closed = f"exec {sys.executable} -c 'from nrf.__main__ import leave; leave(lambda: print(1) or 3)' >&-"
    run = subprocess.run(["sh", "-c", closed], stderr=subprocess.PIPE, cwd=ROOT)
    assert (run.returncode, run.stderr) == (3, b"")
