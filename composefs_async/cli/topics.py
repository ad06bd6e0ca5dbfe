"""``help``, which shows the pages of the documentation, and ``completion``, which prints what shells need."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

import click

from ..errors import NotFoundError
from .output import print_bytes

__all__ = ["completion", "help_"]

_PAGES = Path(__file__).parent.parent / "docs"
_FIRST = ("index", "getting-started", "concepts", "command-line")
_SHELLS = ("bash", "zsh", "fish")


@click.command("help")
@click.argument("topic", nargs=-1)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of what the command TOPIC prints with --json.")
def help_(topic: tuple[str, ...], schema: bool) -> None:
    """Show the page TOPIC of the documentation; without it, list the topics.

    The options and arguments of a command are shown by its --help.  With --schema and no TOPIC, all schemas are printed
    as one object, by command.
    """
    if schema:
        _print_schema(" ".join(topic))
    elif len(topic) > 1:
        raise click.UsageError(f"one topic at a time; '{' '.join(topic)} --help' tells of a command")
    else:
        _print_page(topic[0] if topic else None)


def _print_schema(command: str) -> None:
    from .json_schemas import SHAPES
    from .json_schemas import schema as schema_of

    if not command:
        print_bytes([json.dumps({name: schema_of(name) for name in SHAPES}, indent=2).encode(), b"\n"])
    elif command in SHAPES:
        print_bytes([json.dumps(schema_of(command), indent=2).encode(), b"\n"])
    else:
        raise NotFoundError(command, "schema", _meant(command, SHAPES))


def _print_page(topic: str | None) -> None:
    pages = _pages()
    if topic is None:
        width = max(map(len, pages))
        click.echo("\n".join(f"{name:{width}}  {_title(path)}" for name, path in pages.items()))
    elif topic in pages:
        _show(pages[topic].read_text(encoding="utf-8"))
    else:
        raise NotFoundError(topic, "page", _meant(topic, pages))


def _meant(name: str, names: Iterable[str]) -> str:
    close = get_close_matches(name, list(names), cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(names)}"


def _pages() -> Mapping[str, Path]:
    found = {path.stem: path for path in sorted(_PAGES.glob("*.md"))}
    return {name: found[name] for name in (*_FIRST, *found) if name in found}


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def _show(text: str) -> None:
    """The page as it is where it is piped, and drawn in a pager on a terminal."""
    if not sys.stdout.isatty():
        print_bytes([text.encode()])
        return
    from rich.console import Console
    from rich.markdown import Markdown

    columns = min(100, os.get_terminal_size(sys.stdout.fileno()).columns or 80)
    console = Console(width=columns)
    with console.capture() as drawn:
        console.print(Markdown(re.sub(r"\]\(([a-z-]+)\.md\)", r"](composefs-async help \1)", text), hyperlinks=False))
    click.echo_via_pager(drawn.get())


@click.command
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands, options, tags and paths in SHELL."""
    print_bytes([script(shell).encode()])


def script(shell: str) -> str:
    """What a shell reads to complete the words of this program.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.
    """
    from click.shell_completion import get_completion_class

    from .app import app
    from .groups import PROGRAM

    made = get_completion_class(shell)
    assert made is not None
    return made(app, {}, PROGRAM, "_COMPOSEFS_ASYNC_COMPLETE").source()
