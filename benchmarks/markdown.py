"""Tables and numbers as the documents have them: what a benchmark prints is pasted there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["rounded", "table"]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join([_line(columns), f"|{'---|' * len(columns)}", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def rounded(value: float, digits: int = 2) -> str:
    """With so many digits, but all those before the point."""
    return f"{float(f'{value:.{digits - 1}e}'):,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{float(f'{value:.{digits - 1}e}'):g}"
