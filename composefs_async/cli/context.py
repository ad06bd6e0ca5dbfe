"""What the commands made with click share: the choice of repository and event loop, arguments with a syntax, JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..digest import Algorithm, ObjectId, check_content_digest
from ..errors import FormatError, RepositoryNotFoundError
from .output import print_bytes

if TYPE_CHECKING:
    from ..repository import Repository

__all__ = ["REPO_VARIABLE", "ContentDigest", "ObjectIdType", "Settings", "as_json", "print_json"]

REPO_VARIABLE = "COMPOSEFS_ASYNC_REPO"
"""In the environment: the repository where no option names one."""

T = TypeVar("T")


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
    version: int | None = None
    """Of the layout of images, in place of those that the repository wants."""
    no_repo: bool = False
    """No repository may be opened; only commands that can do without one work."""
    named: str | None = None
    """By the environment, where no option says which repository."""
    quiet: bool = False
    """No progress, no notes, no account of what was done."""

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> Settings:
        """What the options of the program say, by their names in Python, and the environment where they say nothing."""
        repo, no_repo, algorithm = options["repo"], options["no_repo"], options["algorithm"]
        place = "user" if options["user"] else "system" if options["system"] else None
        named = os.environ.get(REPO_VARIABLE) if repo is None and place is None and not no_repo else None
        return cls(
            repo,
            place,
            Algorithm(algorithm) if algorithm else None,
            options["insecure"],
            options["require_verity"],
            options["loop"],
            options["erofs_version"],
            no_repo,
            named or None,
            options["quiet"],
        )

    @property
    def chosen(self) -> bool:
        """Whether an option, or the environment, says which repository."""
        return self.repo is not None or self.place is not None or self.named is not None

    def path(self) -> str:
        """The path of the chosen repository, whether it is there or not."""
        from .._repo import opening

        if self.repo is not None or self.named is not None:
            return self.repo or self.named or ""
        place = self.place or ("system" if os.geteuid() == 0 else "user")
        return opening.user_path() if place == "user" else opening.system_path()

    def open(self) -> Repository:
        """The chosen repository; the caller closes it."""
        from ..repository import Repository

        if self.no_repo:
            raise click.UsageError("this command needs a repository, so that --no-repo cannot be used with it")
        try:
            repository = Repository.open_path(self.path(), algorithm=self.algorithm)
        except RepositoryNotFoundError as error:
            self._add_ways_out(error)
            raise
        try:
            if self.require_verity:
                repository.require_verity()
            if self.insecure:
                repository.set_insecure()
            if self.version is not None:
                repository.set_erofs_version(self.version)
        except BaseException:
            repository.close()
            raise
        return repository

    def _add_ways_out(self, error: RepositoryNotFoundError) -> None:
        """Say how to choose another repository, and the command that makes this one."""
        if self.named is not None:
            error.add_note(f"{REPO_VARIABLE} names it")
        elif not self.chosen:
            error.add_note(f"--repo or {REPO_VARIABLE} chooses another")
        if "upgrade" not in error.reason:  # which is what an old one needs
            option = f" --{self.place}" if self.place else ""
            path = f" {shlex.quote(error.path)}" if self.repo is not None else ""
            error.add_note(f"to make one: composefs-async{option} init{path}")

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run *work* on the chosen event loop."""
        import anyio

        from .interrupts import plain, second_ends_all

        async def main() -> T:
            with second_ends_all():
                return await work()

        if self.loop == "trio":
            if importlib.util.find_spec("trio") is None:
                raise click.UsageError("--loop trio: trio is not installed")
            with plain():
                return anyio.run(main, backend="trio")
        uvloop = importlib.util.find_spec("uvloop") is not None
        if self.loop == "uvloop" and not uvloop:
            raise click.UsageError("--loop uvloop: uvloop is not installed; install composefs-async[uvloop]")
        try:
            with plain():
                return anyio.run(main, backend_options={"use_uvloop": uvloop and self.loop != "asyncio"})
        except RuntimeError as error:
            # A loop that could not begin cannot be closed either.
            cause = error.__context__
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            raise cause from None


class ContentDigest(click.ParamType[str]):
    """An argument like ``sha256:…``."""

    name = "digest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return *value* if it is a content digest, else fail as a usage error."""
        try:
            return check_content_digest(str(value))
        except FormatError as error:
            self.fail(str(error), param, ctx)


class ObjectIdType(click.ParamType[ObjectId]):
    """An argument that is the id of an object or image."""

    name = "digest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ObjectId:
        """Return *value* as an object id, else fail as a usage error."""
        try:
            return value if isinstance(value, ObjectId) else ObjectId.from_hex(str(value))
        except FormatError as error:
            self.fail(str(error), param, ctx)


def as_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--json`` of a command."""
    return click.option("--json", "json_output", is_flag=True, help="Print JSON.")(function)


def print_json(value: object) -> None:
    """Indented, as cfsctl has it.  What a terminal might act on is escaped; so is what is not UTF-8 in a name."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    escaped = "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
    print_bytes([f"{escaped}\n".encode()])
