"""The house holds: imports go downward only, two packages stay in their places, no file grows too long."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 350
LEVELS = {
    0: {"config", "receptive_fields", "temporal", "coordinates", "losses", "visualization", "films"}
    | {"render", "motion", "outlines", "gerd_pictures", "gerd_masks", "affine_gaussian", "cascades"}
    | {"convolution", "pooling", "temporal_scan", "temporal_triton", "field_weights"}
    | {"native", "temporal_native", "pooling_triton"}
    | {"results", "archive", "files", "processes", "ranks", "slurm", "sampling", "theory_figures"}
    | {"frame_memory"},
    1: {"model", "response", "dataset", "event_files", "persistence", "training", "callbacks", "board"},
    2: {"generate_data", "learn_shapes", "checkpoints", "family_distance"}
    | {"spatial_covariance", "temporal_covariance"},
    3: {"evaluate", "track", "covariance", "report", "sweep"},
    4: {"demo"},
}
LEVEL = {module: level for level, modules in LEVELS.items() for module in modules}
# rendering is one idea, split for its length
RENDER = ("outlines", "gerd_masks", "gerd_pictures", "motion", "render")  # each may import those before it
SAME_LEVEL = {(later, earlier) for i, later in enumerate(RENDER) for earlier in RENDER[:i]}
SAME_LEVEL |= {("model", "response"), ("temporal", "temporal_scan"), ("temporal", "temporal_triton")}
SAME_LEVEL |= {("temporal", "temporal_native"), ("temporal", "native")}
SAME_LEVEL |= {("temporal_native", "native"), ("pooling", "native")}
SAME_LEVEL |= {("pooling", "temporal_native"), ("pooling", "pooling_triton")}
SAME_LEVEL |= {("films", "visualization"), ("theory_figures", "visualization")}  # so are pictures
SPACE = ("affine_gaussian", "receptive_fields", "field_weights")  # so is the theory over space
SAME_LEVEL |= {(later, earlier) for i, later in enumerate(SPACE) for earlier in SPACE[:i]}
SAME_LEVEL |= {("temporal_covariance", "spatial_covariance")}
SAME_LEVEL |= {("checkpoints", "learn_shapes"), ("event_files", "dataset")}  # and files,
SAME_LEVEL |= {("callbacks", "persistence"), ("training", "persistence")}  # and what outlives a run
SAME_LEVEL |= {("board", "callbacks")}
STANDARD = {"files", "processes", "slurm"}  # level 0, the standard library only: all others may import it
PLOTTERS = {"visualization", "theory_figures"}
# learn_shapes.py, split for its length, and what starts from its checkpoints
TRAINERS = {"learn_shapes", "training", "callbacks", "board", "persistence"} | LEVELS[3] | LEVELS[4]


def imported(tree):
    """The top-level packages of all imports, at any depth of the file; "." for a relative one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module.split(".")[0]


def level_violations(module, tree):
    """What is wrong with a top-level module by its imports of ours."""
    if module not in LEVEL:
        return [f"{module}.py has no level: give it one in tests/test_design.py"]
    return [
        f"{module} (level {LEVEL[module]}) imports {name} (level {LEVEL[name]}): imports go downward only"
        for name in imported(tree)
        if name in LEVEL and LEVEL[name] >= LEVEL[module] and (module, name) not in SAME_LEVEL
        if name not in STANDARD or module in STANDARD
    ]


def violations(path, source):
    """What is wrong with the file `path`, relative to the repository, one line each."""
    path = Path(path)
    module, folder = path.stem, path.parent.name
    tree = ast.parse(source)
    names = set(imported(tree))
    found = level_violations(module, tree) if not folder else []
    if module == "utils":
        found.append(f"{path}: name it after what it holds")
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree)):
        found.append(f"{path}: import * hides where names come from")
    if folder == "tests":
        return found
    if module in STANDARD and not names <= {*sys.stdlib_module_names, *STANDARD}:
        found.append(f"{path}: only the standard library is imported here")
    if "." in names:
        found.append(f"{path}: relative import")
    if "matplotlib" in names and module not in PLOTTERS:
        found.append(f"{path}: only visualization.py imports matplotlib")
    if names & {"pytorch_lightning", "lightning"} and not folder and module not in TRAINERS:
        found.append(f"{path}: only learn_shapes.py, its parts and the leaves import Lightning")
    if len(source.splitlines()) > MAX_LINES:
        found.append(f"{path}: {len(source.splitlines())} lines, want at most {MAX_LINES}")
    return found


def python_files():
    folders = (ROOT, ROOT / "benchmarks", ROOT / "tests")
    return [path.relative_to(ROOT) for folder in folders for path in folder.glob("*.py")]


@pytest.mark.parametrize("path", sorted(python_files()), ids=str)
def test_file(path):
    assert violations(path, (ROOT / path).read_text()) == []


def test_every_level_is_reached():
    """The table is about this repository: most of what it names is there, and none shadows a package."""
    names = {path.stem for path in python_files() if path.parent == Path()}
    assert {"config", "receptive_fields", "temporal", "visualization", "model", "learn_shapes"} <= names
    assert not set(LEVEL) & set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("losses.py", "import model", "losses (level 0) imports model (level 1)"),
        ("losses.py", "from coordinates import DSNT", "losses (level 0) imports coordinates (level 0)"),
        ("model.py", "def f():\n    import learn_shapes", "model (level 1) imports learn_shapes (level 2)"),
        ("motion.py", "import render", "motion (level 0) imports render (level 0)"),
        ("track.py", "import evaluate as e", "track (level 3) imports evaluate (level 3)"),
        ("helpers.py", "", "helpers.py has no level: give it one in tests/test_design.py"),
        ("utils.py", "", "name it after what it holds"),
        ("tests/utils.py", "", "name it after what it holds"),
        ("tests/test_model.py", "from model import *", "import * hides"),
        ("model.py", "from .config import Config", "relative import"),
        ("demo.py", "import matplotlib.pyplot as plt", "only visualization.py imports matplotlib"),
        ("benchmarks/render.py", "from matplotlib import figure", "only visualization.py imports matplotlib"),
        ("dataset.py", "import pytorch_lightning as pl", "import Lightning"),
        ("generate_data.py", "from lightning.pytorch import Trainer", "import Lightning"),
        ("files.py", "import torch", "only the standard library"),
        ("losses.py", "x = 1\n" * 351, "losses.py: 351 lines, want at most 350"),
    ],
)
def test_a_violation_is_found(path, source, message):
    assert any(message in line for line in violations(path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("dataset.py", "import torch\nfrom render import Recording"),
        ("losses.py", "from files import write_whole"),
        ("render.py", "import numpy as np\nfrom outlines import Poses"),
        ("evaluate.py", "import pytorch_lightning\nfrom learn_shapes import ShapesModel\nimport losses"),
        ("visualization.py", "from matplotlib.figure import Figure"),
        ("benchmarks/render.py", "from render import render\nimport generate_data"),
        ("tests/test_all.py", "import matplotlib, lightning, demo\n" + "x = 1\n" * 400),
        ("losses.py", "x = 1\n" * 350),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(path, source) == []
