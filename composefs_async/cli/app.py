"""The root of the command line: global options, which module has which command, and errors."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from .context import Settings
from .exit_codes import INTERRUPTED, TABLE, describe, exit_code

__all__ = ["app", "run"]

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in TABLE)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; the help is told here."""

    def __init__(self, *args: Any, commands_in: dict[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._commands_in = commands_in

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._commands_in)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._commands_in:
            return None
        module, _ = self._commands_in[cmd_name]
        command: click.Command = getattr(importlib.import_module(f".{module}", __package__), cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._commands_in.items()])


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"composefs-async {version('composefs-async')}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    commands_in={
        "init": ("repository", "Create a repository."),
        "oci": ("app", "Images and layers in the form of OCI."),
        "cat": ("repository", "Print the content of a stream."),
        "demo": ("demo", "Import an image made of this machine's files, and verify it."),
        "doctor": ("doctor", "What this directory, file system and kernel can do."),
    },
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--repo", type=click.Path(), help="The repository's directory.")
@click.option("--user", is_flag=True, help="The repository of this user, ~/.var/lib/composefs.")
@click.option("--system", is_flag=True, help="The repository of the system, /sysroot/composefs.")
@click.option("--insecure", is_flag=True, help="Tolerate objects that fs-verity does not protect.")
@click.option("--require-verity", is_flag=True, help="Refuse a repository that is insecure.")
@click.option(
    "--loop",
    type=click.Choice(["auto", "asyncio", "uvloop", "trio"]),
    default="auto",
    show_default=True,
    help="Which event loop; auto is uvloop where it is installed.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def app(
    ctx: click.Context, repo: str | None, user: bool, system: bool, insecure: bool, require_verity: bool, loop: str
) -> None:
    """composefs repositories: content-addressed files, OCI layers, EROFS images.

    Without --repo, --user or --system it is the system's repository for root and the user's for others.
    """
    if (repo is not None) + user + system > 1:
        raise click.UsageError("--repo, --user and --system exclude each other")
    if user:
        place: str | None = "user"
    elif system or (repo is None and os.geteuid() == 0):
        place = "system"
    else:
        place = "user" if repo is None else None
    ctx.obj = Settings(repo, place, insecure, require_verity, loop)


@click.command(
    cls=LazyGroup,
    commands_in={
        "pull": ("pull", "Import an image."),
        "images": ("images", "List the images."),
        "inspect": ("images", "Print manifest and config of an image."),
        "tag": ("images", "Name an image."),
        "untag": ("images", "Remove the name of an image."),
        "layer": ("layers", "Print a layer as the tar that it was."),
        "ls-layer": ("layers", "List the members of a layer."),
        "import-layer": ("layers", "Import a layer from standard input."),
    },
)
def oci() -> None:
    """Images and layers in the form of OCI."""


def run(arguments: list[str]) -> int:
    """Run a command; returns its exit code, and prints at most one line for an error."""
    try:
        app.main(arguments, prog_name="composefs-async", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("composefs-async: interrupted", err=True)
        return INTERRUPTED
    except Exception as error:
        return _failed(error)
    return 0


def _failed(error: BaseException) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    code = exit_code(error)
    if isinstance(error, BrokenPipeError):
        # Python would try to flush once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    if code == 1 and not isinstance(error, OSError) and os.environ.get("COMPOSEFS_ASYNC_TRACEBACK"):
        raise error
    click.echo(f"composefs-async: {describe(error)}", err=True)
    return code
