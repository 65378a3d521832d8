"""The demo, on a few recordings: its pictures are there, and what it prints is what it measured."""

import re
import sys

import numpy as np
import pytest

import demo
from dataset import ShapeDataset, write_recording


def test_guessing_the_centre(tmp_path):
    (tmp_path / "a").mkdir()
    labels = np.full((9, 1, 2), [24.0 + 3, 24 - 4])  # 5 pixels off the centre
    write_recording(tmp_path / "a" / "0.dat", np.zeros((1, 4), int), labels, (9, 2, 48, 48))
    assert demo.centre_error_px(ShapeDataset(tmp_path, timesteps=4, split="val")) == pytest.approx(5)


@pytest.mark.slow
def test_the_demo_leaves_what_it_promises(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "RECORDINGS", 5)
    monkeypatch.setattr(demo, "TRAINING", demo.TRAINING.replace("max_epochs 4", "max_epochs 1"))
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path / "out")])
    demo.main()
    for name in ("track.gif", "kernels.png", "learning.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    printed = capsys.readouterr().out
    best = {float(px) for px in re.findall(r"best error ([\d.]+) px", printed)}
    table = [float(px) for px in re.findall(r"^  [a-z ]+?  +([\d.]+)", printed, re.MULTILINE)]
    assert len(table) == 3 and set(table[1:]) == best
