"""The recipes of CONTRIBUTING.md, as they stand there: parts from outside train, resume, evaluate, track."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_learn_shapes import TINY, render

from nrf.__main__ import main
from nrf.config import TABLES, Config
from nrf.fast import bands
from nrf.network import layers
from nrf.network.neurons import respond
from nrf.training.checkpoints import find_checkpoints, load_trained
from nrf.training.module import ShapesModel

ROOT = Path(__file__).resolve().parents[2]
RECIPES = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S))
PARTS = {"net": "alif", "receptive_fields": "gabor", "regularization": "l2", "coordinate": "smoothed"}
FLAGS = [f"--{name}={value}" for name, value in PARTS.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("data") / "shapes", recordings=5)


@pytest.fixture
def mine():
    """Adds the recipes' rows, for one test."""
    before = {setting: dict(TABLES[setting]) for setting in PARTS}
    exec(compile(RECIPES, "mine.py", "exec"), {"__name__": "mine"})
    yield
    for setting, rows in before.items():
        TABLES[setting].clear()
        TABLES[setting].update(rows)


@pytest.fixture(params=["whole", "bands"])
def used(request, monkeypatch):
    """Layers as a whole, or in bands and channel after channel; the rows of each band."""
    rows = []
    if request.param == "bands":
        monkeypatch.setitem(bands.BAND, "cpu", 2**9)
        monkeypatch.setattr(layers, "APART", 0)
    monkeypatch.setattr(layers, "by_bands", lambda *args: rows.append(args[-1]) or bands.by_bands(*args))
    yield rows
    assert bool(rows) == (request.param == "bands")


def weights(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


@pytest.mark.parametrize("more", [(), ("--skip_connections=1", "--weight_sharing=0")], ids=["", "skips"])
def test_parts_from_outside_train_resume_evaluate_and_track(mine, used, data, tmp_path, capsys, more):
    flags = [*TINY, *FLAGS, *more, "--limit_train_batches=2", "--regularization_scale=1"]
    assert main(["learn_shapes", str(data), str(tmp_path / "whole"), *flags, "--max_epochs=2"]) == 0
    for _ in range(2):
        done = main(["learn_shapes", str(data), str(tmp_path / "parts"), *flags, "--ckpt_path=last"])
        assert done == 0
        flags.append("--max_epochs=2")
    whole, parts = (next((tmp_path / logs).glob("*/*/*/last.ckpt")) for logs in ("whole", "parts"))
    at_start, at_end = ShapesModel(**load_trained(parts).settings).state_dict(), weights(parts)
    for name, value in weights(whole).items():
        assert torch.equal(value, at_end[name]), name
    assert all((value != at_start[name]).any() for name, value in at_end.items() if "temporal.tau" in name)
    assert at_end["coordinate.keep"] != 0.5
    assert main(["evaluate", str(data), str(parts.parents[3])]) == 0
    assert "ALIF" in capsys.readouterr().out
    recording = str(next(data.rglob("*.dat")))
    assert main(["track", str(parts), recording, "--out", str(tmp_path / "film.gif")]) == 0
    assert find_checkpoints([tmp_path / "parts"])


def test_the_recipes_file_is_a_program(tmp_path):
    (tmp_path / "mine.py").write_text(RECIPES)
    command = [sys.executable, "mine.py", "learn_shapes", "--help"]
    shown = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "COLUMNS": "999"}, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    for setting, name in PARTS.items():
        assert re.search(rf"--{setting} \S*\b{name}\b", shown.stdout), name


def test_both_variables_of_a_state_are_carried_and_trained_through(mine):
    """Two chunks are the whole, in values and gradients."""
    current = 0.6 * torch.rand(9, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    current, rate_hz = current.requires_grad_(), torch.tensor(200.0).double().requires_grad_()
    whole, last = respond("alif", current, rate_hz)
    first, state = respond("alif", current[:4], rate_hz)
    second, state = respond("alif", current[4:], rate_hz, state)
    assert 0 < whole.mean() < 1 and state.threshold.min() > 0
    assert torch.equal(torch.cat([first, second]), whole)
    for chunk, wanted in zip(state, last, strict=True):
        assert torch.equal(chunk, wanted)
    gradients = [torch.autograd.grad(sum(x.sum() for x in end), (current, rate_hz)) for end in (state, last)]
    for chunk, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(chunk, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "run, wanted",
    [
        (lambda: respond("relu", torch.ones(2, 3)), "net 'relu': expected one of li, lif, ann, alif"),
        (
            lambda: respond("li", torch.ones(2, 3), torch.tensor(9.0), backend="lopp"),
            "temporal_backend 'lopp': expected one of auto, fused, loop, norse",
        ),
        (
            lambda: respond("alif", torch.ones(2, 3), torch.tensor(9.0), backend="norse"),
            "temporal_backend 'norse' of net 'alif': expected one of auto, loop",
        ),
        (lambda: Config(net="alfi"), "net 'alfi': expected one of li, lif, ann, alif"),
        (lambda: ShapesModel(net="alif", temporal_backend="fused"), "'fused' of net 'alif': expected one of"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(mine, run, wanted):
    with pytest.raises(ValueError, match=wanted):
        run()
