"""What all commands share: the choice of repository and event loop, arguments with a syntax, and output.

Everything that came from outside passes through `printable` or `print_json` on its way to a terminal: a tag, or
the architecture in somebody's config, may contain escape sequences.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..digest import Algorithm, check_content_digest
from ..errors import FormatError, RepositoryNotFoundError

if TYPE_CHECKING:
    from ..repository import Repository

__all__ = ["ContentDigest", "Settings", "as_json", "drop_output", "print_bytes", "print_json", "printable"]

T = TypeVar("T")

_OUTPUT = "standard output"


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options."""

    repo: str | None
    place: str | None
    """``user`` or ``system``, if that was asked for."""
    algorithm: Algorithm | None
    """Refuse a repository of any other."""
    insecure: bool
    require_verity: bool
    loop: str

    @property
    def chosen(self) -> bool:
        """Whether an option says which repository."""
        return self.repo is not None or self.place is not None

    def path(self) -> str:
        """Of the chosen repository, whether it is there or not."""
        from .._repo import opening

        if self.repo is not None:
            return self.repo
        place = self.place or ("system" if os.geteuid() == 0 else "user")
        return opening.user_path() if place == "user" else opening.system_path()

    def open(self) -> Repository:
        """The chosen repository; the caller closes it."""
        from ..repository import Repository

        try:
            repository = Repository.open_path(self.path(), algorithm=self.algorithm)
        except RepositoryNotFoundError as error:
            if self.chosen:
                raise
            raise RepositoryNotFoundError(error.path, f"{error.reason}; --repo chooses another") from None
        try:
            if self.require_verity:
                repository.require_verity()
            if self.insecure:
                repository.set_insecure()
        except BaseException:
            repository.close()
            raise
        return repository

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run *main* on the chosen event loop."""
        import anyio

        if self.loop == "trio":
            if importlib.util.find_spec("trio") is None:
                raise click.UsageError("--loop trio: trio is not installed")
            return anyio.run(main, backend="trio")
        uvloop = importlib.util.find_spec("uvloop") is not None
        if self.loop == "uvloop" and not uvloop:
            raise click.UsageError("--loop uvloop: uvloop is not installed; install composefs-async[uvloop]")
        return anyio.run(main, backend_options={"use_uvloop": uvloop and self.loop != "asyncio"})


class ContentDigest(click.ParamType[str]):
    """An argument like ``sha256:…``."""

    name = "digest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_content_digest(str(value))
        except FormatError as error:
            self.fail(str(error), param, ctx)


def as_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--json`` of a command."""
    return click.option("--json", "json_output", is_flag=True, help="Print JSON.")(function)


def print_json(value: object) -> None:
    """Indented, as cfsctl has it.  What is not UTF-8 in a name becomes the escape of half a surrogate pair."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    print_bytes([text.encode(errors="backslashreplace")])


def print_bytes(pieces: Iterable[bytes]) -> None:
    """Write to standard output, byte for byte."""
    out = sys.stdout.buffer
    for piece in pieces:
        with _writing():
            out.write(piece)
    with _writing():
        out.flush()


def drop_output() -> None:
    """Nobody gets what is still in the buffer of standard output: it could not be written, or is half of it."""
    with suppress(OSError, ValueError, AttributeError):
        output = sys.stdout.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, output)
        os.close(null)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        drop_output()
        error.filename = _OUTPUT
        raise


def printable(text: str) -> str:
    """*text* for one line on a terminal: whatever is not printable as an escape of Python's."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
