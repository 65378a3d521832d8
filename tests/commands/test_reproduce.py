"""nrf reproduce, with two runs of two steps: figure and tables are there, and nothing runs twice."""

import re

import pytest

from nrf.commands import reproduce
from nrf.results import reproduction


@pytest.fixture
def two_runs(monkeypatch):
    starts = {name: reproduction.STARTS[name] for name in ("published", "uniform")}
    for module in (reproduction, reproduce):
        monkeypatch.setattr(module, "NEURONS", {"LI": reproduction.NEURONS["LI"]})
    monkeypatch.setattr(reproduction, "STARTS", starts)


def test_it_leaves_the_figure_and_does_nothing_twice(tmp_path, two_runs, capsys):
    words = ["spatial", "--size", "tiny", "--seeds", "3", "--jobs", "2", "--out", str(tmp_path)]
    assert reproduce.main(words) == 0
    printed = capsys.readouterr().out
    for name in ("errors.png", "curves.png", "index.html", "reproduction.md", "errors/spatial/windows.csv"):
        assert (tmp_path / name).stat().st_size > 100
    assert re.search(r"\| spatial \| LI +\| \d\.\d\d(, \d idle)? +\| \d\.\d\d", printed)
    assert "tiny-02-seed3: finished" in printed and "1 left" in printed
    assert reproduce.main(words) == 0
    again = capsys.readouterr().out
    assert again.count("finished before") == 2 and "running" not in again
    assert again.split("\n\n")[-3:] == printed.split("\n\n")[-3:]


def test_a_dry_run_says_what_it_costs_and_what_to_submit(tmp_path, two_runs, capsys):
    assert (
        reproduce.main(["--size", "tiny", "--dry-run", "--seeds", "0-4", "--out", str(tmp_path / "o")]) == 0
    )
    printed = capsys.readouterr().out
    assert re.search(r"\| LI +\| \S+ +\| 20 ", printed)  # 2 starts, 2 data sets, 5 seeds
    assert printed.count("sbatch --array=1-10 ") == 2 and "--seeds 0-4" in printed
    assert not (tmp_path / "o" / "data").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["space"], "DATA SET"),
        (["--seeds", "x"], "seeds"),
        (["--jobs", "0"], "jobs"),
        (["--size", "l"], "size"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, words, message, capsys):
    try:
        code = reproduce.main([*words, "--dry-run", "--out", str(tmp_path)])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
