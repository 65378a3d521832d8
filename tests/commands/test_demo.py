"""The demo, on a few recordings: its pictures are there, and what it prints is what it measured."""

import csv
import re

import pytest
from PIL import Image

from nrf.commands import demo
from nrf.results.reproduction import SIZES


@pytest.mark.slow
def test_the_demo_leaves_what_it_promises(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SIZE", SIZES["tiny"])
    monkeypatch.setattr(demo, "FILM_FRAMES", 4)
    assert demo.main(["--out", str(tmp_path)]) == 0
    for name in ("film.gif", "kernels.png", "learning.png", "errors/errors.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert Image.open(tmp_path / "film.gif").n_frames == 4
    printed = capsys.readouterr().out
    trained = [float(px) for px in re.findall(r"best error ([\d.]+) px", printed)]
    table = {
        (row["network"], row["initialisation"]): float(row["mean"])
        for row in csv.DictReader((tmp_path / "errors" / "errors.csv").open())
        if row["by"] == "all"
    }
    kinds = [("ReLU-SF", "uniform"), ("ReLU-SF", "rf"), ("LI", "uniform"), ("LI", "rf")]
    assert [round(table[kind], 2) for kind in kinds] == trained
    assert f"| {table['always the centre', '']:.2f} " in printed
