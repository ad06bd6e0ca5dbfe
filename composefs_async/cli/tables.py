"""Tables in the form that cfsctl gives them."""

from __future__ import annotations

from collections.abc import Sequence

from .output import printable

__all__ = ["table"]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lines that draw *rows*, of which the first has the titles; cells are made printable."""
    from rich.cells import cell_len

    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]

    def ruler(left: str, line: str, middle: str, right: str) -> str:
        return left + middle.join(line * (width + 2) for width in widths) + right

    def drawn(row: list[str]) -> str:
        padded = (f" {cell}{' ' * (width - cell_len(cell))} " for cell, width in zip(row, widths, strict=True))
        return f"│{'┆'.join(padded)}│"

    title, *others = map(drawn, cells)
    between = f"\n{ruler('├', '╌', '┼', '┤')}\n"
    head = [ruler("┌", "─", "┬", "┐"), title, ruler("╞", "═", "╪", "╡")]
    return "\n".join([*head, between.join(others), ruler("└", "─", "┴", "┘")])
