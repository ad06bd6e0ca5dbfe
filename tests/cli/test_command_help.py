"""Every page of help lists the arguments and has examples that the command line takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from composefs_async.cli.app import app
from composefs_async.cli.command_help import COMMANDS, argument_name
from composefs_async.cli.groups import PROGRAM


def commands() -> dict[str, tuple[click.Command, click.Context]]:
    """All that can be called, by the words behind the program's name, as the command line finds them."""
    found: dict[str, tuple[click.Command, click.Context]] = {}

    def walk(context: click.Context, path: tuple[str, ...]) -> None:
        command = context.command
        if not isinstance(command, click.Group):
            found[" ".join(path)] = command, context
            return
        for name in command.list_commands(context):
            each = command.get_command(context, name)
            assert each is not None
            walk(click.Context(each, info_name=name, parent=context), (*path, name))

    walk(click.Context(app, info_name=PROGRAM, **app.context_settings), ())
    return found


ALL = commands()
EXAMPLES = [(path, line) for path, each in COMMANDS.items() for line in each.examples]


def test_every_command_has_its_help() -> None:
    assert ALL.keys() == COMMANDS.keys()


@pytest.mark.parametrize("path", ALL)
def test_arguments_and_examples_are_in_the_help(path: str) -> None:
    command, context = ALL[path]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    assert {argument_name(each) for each in arguments} == COMMANDS[path].arguments.keys()
    assert COMMANDS[path].examples
    text = command.get_help(context)
    assert ("Positional arguments:" in text) == bool(arguments)
    for line in COMMANDS[path].examples:
        assert f"  {line}\n" in f"{text}\n" if f"{PROGRAM} " in line else f"  {PROGRAM} {line}\n" in f"{text}\n"
    assert [
        each.opts for each in command.params if isinstance(each, click.Option) and not (each.help or each.hidden)
    ] == []
    for each in COMMANDS[path].arguments.values():
        assert re.match(r"[A-Z]|docker://", each)
        assert each.endswith(".")


def calls(line: str) -> Iterator[list[str]]:
    """The arguments of each call of the program in a line of shell."""
    for part in (line if f"{PROGRAM} " in line else f"{PROGRAM} {line}").split(" | "):
        words = shlex.split(re.sub(r" [<>] \S+", "", part))
        if words[0] == PROGRAM:
            yield words[1:]


@pytest.mark.parametrize(("path", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_the_command_line_takes_the_examples(
    path: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    for name in ("images.txt", "os.efi"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    taken: list[str] = []
    for arguments in calls(line):
        contexts = [context := app.make_context(PROGRAM, arguments)]
        while isinstance(context.command, click.Group):
            name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
            assert (name, command) != (None, None)
            assert command is not None
            contexts.append(context := command.make_context(name, rest, parent=context))
        taken.append(context.command_path.removeprefix(f"{PROGRAM} "))
        for each in reversed(contexts):
            each.close()
    assert path in taken
