"""The scripts in examples/ do what they say."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_learn_shapes import TINY, render

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("net", "least"), [("li", 0.7), ("lif", 0.5)])
def test_fields_and_neurons_learn_in_a_network_of_ones_own(net, least):
    spec = importlib.util.spec_from_file_location("own_network", ROOT / "examples" / "own_network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.train(net=net) > least  # chance is a quarter


def test_the_search_of_the_docs_trains(tmp_path, monkeypatch):
    """With a study that asks once."""
    render(tmp_path / "data" / "mine")
    trial = SimpleNamespace(
        suggest_float=lambda name, low, high, log: low, suggest_int=lambda name, low, high: low
    )
    found = []
    study = SimpleNamespace(optimize=lambda objective, n_trials: found.append(objective(trial)))
    monkeypatch.setitem(sys.modules, "optuna", SimpleNamespace(create_study=lambda direction: study))
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "docs" / "sweeping.md").read_text().split("```python")[1].split("```")[0]
    small = [word for word in TINY if "n_spatial_scales" not in word]
    exec(code.replace('"--max_epochs=10"]', f"*{small!r}]"), {})
    assert 0 < found[0] < 100
