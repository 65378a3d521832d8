"""The house holds: the import contracts of pyproject.toml, short files, and the paper's names at the root."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 350
PAPER = {
    "learn_shapes": {"ShapesModel", "main"},
    "model": {"SpatioTemporalModel", "SpatioTemporalChannel", "SpatioTemporalRF", "SpatialRF", "TemporalRF"},
    "dataset": {"ShapeDataset", "EventBatch", "read_recording", "write_recording", "loader"},
    "receptive_fields": {"spatial_parameters", "spatial_kernels", "temporal_rates_hz"},
}


def lint_imports(folder):
    words = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as c; c()",
        "--no-cache",
    ]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)


def test_import_contracts_hold():
    done = lint_imports(ROOT)
    assert done.returncode == 0 and ", 0 broken" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nrf/theory/cascades.py", "import nrf.network"),
        ("nrf/network/losses.py", "import pytorch_lightning"),
        ("nrf/fast/pooling.py", "from nrf import theory"),
        ("nrf/results/tables.py", "from matplotlib import figure"),
        ("nrf/training/run.py", "from nrf.commands import parser"),
    ],
)
def test_a_broken_contract_is_found(tmp_path, file, line):
    for path in [*ROOT.glob("nrf/**/*.py"), ROOT / "pyproject.toml"]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    with (tmp_path / file).open("a") as source:
        source.write(f"{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1 and "BROKEN" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("nrf/**/*.py")) + sorted(ROOT.glob("benchmarks/*.py")), ids=str
)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_names_stay_at_the_root(name):
    module = importlib.import_module(name)
    assert set(module.__all__) == PAPER[name] and all(hasattr(module, public) for public in PAPER[name])
    assert Path(module.__file__) == ROOT / f"{name}.py"
    assert len(Path(module.__file__).read_text().splitlines()) <= 15
