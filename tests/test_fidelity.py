"""FIDELITY.md names tests for each line, and all of them exist; so do the lines that the code points to."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = dict(re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", (ROOT / "FIDELITY.md").read_text(), re.MULTILINE))
TESTS = {path.name: path for path in ROOT.glob("tests/**/test_*.py")}


def functions(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_rows_are_found_and_files_have_names_of_their_own():
    lines = (ROOT / "FIDELITY.md").read_text().splitlines()
    assert len(ROWS) == sum(bool(re.match(r"\| \d", line)) for line in lines) > 50
    assert len(TESTS) == len(list(ROOT.glob("tests/**/test_*.py")))


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_tests_that_exist(row):
    """`test_x.py` or `test_x.py::test_y`; `none: reason` where no machine of ours can run one."""
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", ROWS[row])
    assert named or re.match(r"none: .{10}", ROWS[row]), ROWS[row]
    for file, function in named:
        assert file in TESTS, file
        assert not function or function in functions(TESTS[file]), f"{file}::{function}"


def test_every_line_that_the_code_points_to_exists():
    wrong = []
    for path in [*ROOT.glob("*.py"), *ROOT.glob("nrf/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        for numbers in re.findall(r"FIDELITY\s+((?:\d+(?:-|, )?)+)", path.read_text()):
            wrong += [(path.name, n) for n in re.findall(r"\d+", numbers) if n not in ROWS]
    assert not wrong
