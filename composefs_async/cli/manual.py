"""Manual pages in roff, made from the commands themselves.

Owns the form of a page (man-pages(7)).  The wheel installs them, which is why this needs nothing but click.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from .command_help import COMMANDS
from .exit_codes import TABLE
from .groups import PROGRAM

__all__ = ["pages"]

_VARIABLES = (
    ("COMPOSEFS_ASYNC_REPO", "The repository where no option names one."),
    ("COMPOSEFS_ASYNC_TRACEBACK", "If set, errors come with their traceback."),
    ("COMPOSEFS_ASYNC_NATIVE", "off: do without native code; require: fail where it is missing."),
    ("NO_COLOR", "If set, nothing is colored."),
)


def pages(app: click.Command, version: str) -> dict[str, str]:
    """Each page by the name of its file, such as ``composefs-async-oci-pull.1``."""
    context = click.Context(app, info_name=PROGRAM, max_content_width=78, **app.context_settings)
    return {f"{'-'.join(path)}.1": "".join(_page(path, each, version)) for path, each in _walk(context, (PROGRAM,))}


def _walk(context: click.Context, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    yield path, context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None:
                below = click.Context(command, info_name=name, parent=context, **command.context_settings)
                yield from _walk(below, (*path, name))


def _page(path: tuple[str, ...], context: click.Context, version: str) -> Iterator[str]:
    command, name = context.command, "-".join(path)
    text = (command.help or "").replace("\f", "\n").strip()
    first = text.partition("\n\n")[0]
    yield f'.TH "{name.upper()}" 1 "" "composefs_async {version}" "composefs_async"\n'
    yield f".SH NAME\n{_escaped(name)} \\- {_escaped(_joined(first).rstrip('.'))}\n"
    yield f".SH SYNOPSIS\n.B {_escaped(' '.join(path))}\n{_escaped(' '.join(command.collect_usage_pieces(context)))}\n"
    yield f".SH DESCRIPTION\n{_paragraphs(text)}"
    key = " ".join(path[1:])
    if key in COMMANDS and COMMANDS[key].arguments:
        yield ".SH ARGUMENTS\n" + "".join(_item(*each) for each in COMMANDS[key].arguments.items())
    records = [each.get_help_record(context) for each in command.get_params(context) if isinstance(each, click.Option)]
    yield ".SH OPTIONS\n" + "".join(_item(*each) for each in records if each is not None)
    if isinstance(command, click.Group):
        listed = ((each, command.get_command(context, each)) for each in command.list_commands(context))
        yield ".SH COMMANDS\n" + "".join(
            _item(each, (found.get_short_help_str(200) if found else "")) for each, found in listed
        )
    if key in COMMANDS:
        lines = (each if f"{PROGRAM} " in each else f"{PROGRAM} {each}" for each in COMMANDS[key].examples)
        yield ".SH EXAMPLES\n.nf\n" + "".join(f"{_escaped(line)}\n" for line in lines) + ".fi\n"
    if len(path) == 1:
        yield ".SH ENVIRONMENT\n" + "".join(_item(*each) for each in _VARIABLES)
        yield ".SH EXIT STATUS\n" + "".join(_item(str(code), meaning) for code, meaning in TABLE)
    else:
        yield f".SH SEE ALSO\n.BR {_escaped('-'.join(path[:-1]))} (1)\n"


def _item(name: str, text: str) -> str:
    return f".TP\n.B {_escaped(name)}\n{_escaped(_joined(text))}\n"


def _paragraphs(text: str) -> str:
    """Paragraphs as they are in help: filled, but for those that begin with ``\\b``."""
    made: list[str] = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        if paragraph.lstrip().startswith("\b"):
            lines = paragraph.strip().lstrip("\b").strip("\n").splitlines()
            made.append(".nf\n" + "".join(f"{_escaped(line)}\n" for line in lines) + ".fi\n")
        else:
            made.append(f"{_escaped(_joined(paragraph))}\n")
    return ".PP\n".join(made)


def _joined(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """A line that roff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("\u2026", "...")
    return f"\\&{text}" if text.startswith((".", "'")) else text
