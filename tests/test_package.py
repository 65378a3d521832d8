"""`pip install .`: one name at top level, native.cpp and types with it, every command from anywhere."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAPERS_NAMES = ("learn_shapes.py", "model.py", "dataset.py", "receptive_fields.py")  # not to be installed
EVERY_COMMAND = """
import contextlib, io, sys
import nrf
from nrf.__main__ import COMMANDS, main
from nrf.fast import native
assert nrf.__file__.startswith(sys.argv[1])
assert all(native.source_file(name).is_file() for name in native.CONTRACTION)
for name in COMMANDS:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([name, "--help"])
    assert out.getvalue().startswith("usage: "), name
print("all", len(COMMANDS))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "nrf", source / "nrf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", *PAPERS_NAMES):
        shutil.copy(ROOT / name, source)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    subprocess.run(pip, check=True, timeout=120)
    (path,) = folder.glob("nrf-*.whl")
    return path


def test_the_wheel_holds_the_package_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"nrf"}
    assert {"nrf/py.typed", "nrf/fast/native.cpp", "nrf/fast/spectral.cpp", "nrf/__main__.py"} <= set(names)


def test_every_command_runs_from_another_folder(wheel, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel]
    subprocess.run(pip, check=True, timeout=120)
    run = subprocess.run(
        [sys.executable, "-c", EVERY_COMMAND, str(target)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0 and run.stdout.startswith("all "), run.stderr
    assert (target / "bin" / "nrf").is_file()
