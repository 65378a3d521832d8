"""The networks in weights/: weights and settings alone, they track, and are as good as their card says."""

import re
from pathlib import Path

import pytest
import torch

from nrf.commands import evaluate, track
from nrf.results.shipped import ship
from nrf.results.tables import network_name
from nrf.training.checkpoints import load_trained

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
NETWORKS = ("li", "lif", "relu-mf", "relu-sf")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shipped_network_tracks_and_is_evaluated(name, tmp_path, capsys):
    path, recording = WEIGHTS / f"{name}.ckpt", next(WEIGHTS.glob("recordings/*/0.dat"))
    assert path.stat().st_size < 1_000_000
    content = torch.load(path, weights_only=True)
    assert content.keys() - {"callbacks"} == {"state_dict", "hyper_parameters"}
    assert network_name(load_trained(path).settings).lower() == name
    film = tmp_path / "a.gif"
    assert track.main([str(path), str(recording), "--frames", "20", "--out", str(film)]) == 0
    assert film.stat().st_size > 1000
    assert evaluate.main([str(WEIGHTS / "recordings"), str(path), "--split", "all"]) == 0
    assert re.search(r"\| (LI|LIF|ReLU-MF|ReLU-SF) +\|", capsys.readouterr().out)


def test_the_card_states_the_error_that_each_network_was_saved_with():
    card = (WEIGHTS / "README.md").read_text()
    for name in NETWORKS:
        stated = float(re.search(rf"\| {name}\.ckpt .*\| ([\d.]+) +\|\n", card)[1])
        assert abs(load_trained(WEIGHTS / f"{name}.ckpt").error_px - stated) < 0.01


def test_shipping_leaves_out_what_only_training_needs(tmp_path):
    model = load_trained(WEIGHTS / "li.ckpt")
    whole = {"state_dict": model.model.state_dict(), "hyper_parameters": model.settings}
    torch.save({**whole, "epoch": 3}, tmp_path / "run.ckpt")
    ship(tmp_path / "run.ckpt", tmp_path / "new" / "li.ckpt")
    assert torch.load(tmp_path / "new" / "li.ckpt", weights_only=True).keys() == whole.keys()
