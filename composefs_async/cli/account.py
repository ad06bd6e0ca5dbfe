"""What a command says besides its results: the account of what it did, and notes.  ``--quiet`` keeps both back."""

from __future__ import annotations

import click

from .output import printable, say

__all__ = ["is_quiet", "note", "tell"]


def is_quiet() -> bool:
    """Whether the user wants no progress, no notes and no account."""
    context = click.get_current_context(silent=True)
    return context is not None and getattr(context.find_root().obj, "quiet", False)


def tell(text: str, *, err: bool = False) -> None:
    """Print a line of the account."""
    if not is_quiet():
        click.echo(text, err=err)


def note(text: str) -> None:
    """Write a note to standard error."""
    if not is_quiet():
        say(f"note: {printable(text)}")
