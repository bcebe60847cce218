"""Tables and figures on a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WHOLE = 1000
"""Columns for a table, which takes what it needs: a terminal shows the rest of a long line below it."""


def hours_in_words(hours: float | None) -> str:
    """GPU hours; a dash where the GPU isn't known."""
    return "-" if hours is None else f"{hours:,.4g}"


def print_table(out: "Console", headings: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> None:
    """Columns side by side, whole also where the terminal has no room; the first `words` are words, the others
    figures.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=True, justify="left" if number < words else "right")
    for row in rows:
        table.add_row(*row)
    out.width = WHOLE
    out.print(table)
