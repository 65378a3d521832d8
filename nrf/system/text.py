"""Texts that others chose, such as names of files, as they may be printed; the standard library only."""

import io
import os
import sys
from typing import Any


def printable(text: object) -> str:
    """The text with line breaks, escape codes and whatever else is not printable spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def one_line(text: object) -> str:
    """A message of several lines as one, printable."""
    return printable(" ".join(str(text).split()))


class _Unread(io.FileIO):
    """A file descriptor to which a program may write although nobody reads any more."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            return len(content)


def open_output() -> None:
    """Let stdout and stderr take every text, whether they are closed or their reader has gone (`| head -1`):
    neither ends a program that still has something to save."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        if before is None:  # closed before the start: keep the next file that is opened from taking its place
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        else:
            before.flush()
        raw = io.BufferedWriter(_Unread(number, "w", closefd=False))
        encoding = getattr(before, "encoding", "utf-8")
        # as before, which for stderr is line by line always
        stream = io.TextIOWrapper(
            raw, encoding, "backslashreplace", line_buffering=number == 2 or os.isatty(number)
        )
        setattr(sys, name, stream)
