"""Tables of numbers as Markdown and HTML."""

import html
import math
from collections.abc import Iterable, Sequence


def cell(value: object, digits: int = 2) -> str:
    """A table's cell: floats to `digits`, nothing for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, its columns aligned; cells as `cell` writes them."""
    lines = [[cell(value).replace("|", "\\|") for value in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def html_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """The same table in HTML."""
    head, *body = (
        "<tr>" + "".join(f"<{tag}>{html.escape(cell(value))}</{tag}>" for value in line) + "</tr>"
        for tag, line in (("th", header), *(("td", row) for row in rows))
    )
    return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"
