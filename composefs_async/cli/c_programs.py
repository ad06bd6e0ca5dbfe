"""The C programs as commands of ``composefs-async``, for its help; `cli.main` calls them without a detour."""

from __future__ import annotations

import click

__all__ = ["composefs_info", "mkcomposefs"]

_OWN_OPTIONS = {"ignore_unknown_options": True, "help_option_names": []}


@click.command(context_settings=_OWN_OPTIONS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def mkcomposefs(arguments: tuple[str, ...]) -> int:
    """Make an image as the C program of this name does."""
    from .mkcomposefs import main

    return main(list(arguments))


@click.command("composefs-info", context_settings=_OWN_OPTIONS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def composefs_info(arguments: tuple[str, ...]) -> int:
    """Look into image files as the C program of this name does."""
    from .composefs_info import main

    return main(list(arguments))
