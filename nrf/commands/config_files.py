"""What a `config_*.txt` holds: a run a line, the flags of learn_shapes.py."""

import shlex
from collections.abc import Iterator
from pathlib import Path


def config_lines(path: str | Path) -> Iterator[tuple[int, list[str], str | None]]:
    """What a `config_*.txt` holds, line by line: (number in the file, command-line words, problem).

    Blank lines and # comments are skipped.  The words are data: no shell reads them.  problem: in words
    where a line's quotes do not close, else None.  ValueError for a file that is no text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # splitlines cuts at form feeds, too
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text ({error}); expected flags, a run a line") from None
    for number, line in enumerate(lines, start=1):
        try:
            words, problem = shlex.split(line, comments=True), None
        except ValueError as error:
            words, problem = [], f"{error}; expected flags of learn_shapes.py"
        if "\0" in line:
            words, problem = [], "a NUL character; expected flags of learn_shapes.py"
        if words or problem:
            yield number, words, problem


def read_config_lines(path: str | Path) -> list[list[str]]:
    """The runs of a `config_*.txt`: a list of words each.  ValueError naming file and line for a bad one."""
    runs = []
    for number, words, problem in config_lines(path):
        if problem:
            raise ValueError(f"{path}, line {number}: {problem}")
        runs.append(words)
    return runs
