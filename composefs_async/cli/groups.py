"""Groups of commands: which module has which command, in sections of the help, and what a wrong word may mean.

A group knows the names and one line for each of its commands; the module of a command is imported when it is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import click
from click.exceptions import NoSuchCommand

from .command_help import complete

__all__ = ["PROGRAM", "LazyGroup"]

PROGRAM = "composefs-async"

_ATTRIBUTES = {"help": "help_", "list": "list_"}
"""Commands that Python has another use for the name of."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called.

    Args:
        sections: by title of the section in the help, for each command its module and one line of help.
    """

    def __init__(self, *args: Any, sections: dict[str, dict[str, tuple[str, str]]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._sections = sections
        self._commands_in = {name: each for listed in sections.values() for name, each in listed.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the table."""
        return list(self._commands_in)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by its name; None if the group has none of that name."""
        if cmd_name not in self._commands_in:
            return None
        module, _ = self._commands_in[cmd_name]
        attribute = _ATTRIBUTES.get(cmd_name, cmd_name.replace("-", "_"))
        command: click.Command = getattr(importlib.import_module(f".{module}", __package__), attribute)
        complete(command, f"{group_of(ctx)} {cmd_name}".strip(), PROGRAM)
        return command

    def paths(self, ctx: click.Context, above: str = "") -> Iterator[str]:
        """The commands below this group as they are typed; those of commands with subcommands are left out."""
        for name, (module, _) in self._commands_in.items():
            yield above + name
            if module == "app" and isinstance(group := self.get_command(ctx, name), LazyGroup):
                yield from group.paths(ctx, f"{above}{name} ")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that *args* begin with, and fail with a hint if there is none."""
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:  # which knows no names to suggest
            raise NoSuchCommand(error.command_name, self._suggestion(ctx, args, error.message), ctx=ctx) from None

    def _suggestion(self, ctx: click.Context, args: list[str], message: str) -> str:
        from .hints import meant_commands

        top = ctx.find_root()
        everywhere = list(top.command.paths(top)) if isinstance(top.command, LazyGroup) else []
        found = meant_commands(group_of(ctx), args, self._commands_in, everywhere)
        return f"{message} Did you mean {' or '.join(map(repr, found))}?" if found else message

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an OSError that names no file is made to name the command."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.strerror and not error.filename and not _is_of_output(error):
                # The least that must be said is what was being done.
                error.filename = f"{group_of(ctx)} {ctx.invoked_subcommand}".strip()
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands by sections, without importing them."""
        width = max(map(len, self._commands_in))
        for title, listed in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, (_, text) in listed.items()])


def group_of(ctx: click.Context) -> str:
    """The words of the group's command path behind the program's name."""
    return ctx.command_path.removeprefix(PROGRAM).strip()


def _is_of_output(error: OSError) -> bool:
    """Whether printing failed: what could not be written is no matter of the command."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is click.echo.__code__
