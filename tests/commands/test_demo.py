"""The demo, on a few recordings: its pictures are there, and what it prints is what it measured."""

import csv
import re

import pytest

from nrf.commands import demo


@pytest.mark.slow
def test_the_demo_leaves_what_it_promises(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "RECORDINGS", 5)
    monkeypatch.setattr(demo, "TRAINING", demo.TRAINING.replace("max_epochs 4", "max_epochs 1"))
    out = tmp_path / "out"
    assert demo.main(["--out", str(out)]) == 0
    for name in ("track.gif", "kernels.png", "learning.png", "errors/errors.png"):
        assert (out / name).stat().st_size > 1000
    printed = capsys.readouterr().out
    trained = [float(px) for px in re.findall(r"best error ([\d.]+) px", printed)]
    table = {
        (row["network"], row["initialisation"]): float(row["mean"])
        for row in csv.DictReader((out / "errors" / "errors.csv").open())
        if row["by"] == "all"
    }
    assert [round(table["LI", scheme], 2) for scheme in ("rf", "uniform")] == trained
    assert f"| {table['always the centre', '']:.2f} " in printed
    best = min(("rf", "uniform"), key=lambda scheme: table["LI", scheme])
    assert f"LI, {best}: 128 frames of 48 x 48 pixels" in printed
