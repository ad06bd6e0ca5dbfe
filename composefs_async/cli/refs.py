"""Commands on references: ``refs list``, ``refs add``, ``refs rename``, ``refs remove``, ``refs prune``.

A reference is named as ``refs list`` prints it, ``streams/NAME`` or ``images/NAME``; ``streams/refs/NAME``, the path
that fsck prints, is the same one.  With ``--category`` it is NAME alone, whatever that looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import ImageNotFoundError, StreamNotFoundError
from .account import tell
from .context import Settings, as_json, print_json
from .output import printable

if TYPE_CHECKING:
    from .._repo.publish import Category
    from ..results import NamedReference

__all__ = ["add", "list_", "prune", "remove", "rename"]

_CATEGORIES = ("streams", "images")


def _category(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--category", type=click.Choice(_CATEGORIES), help="Of the reference, whose NAME is then given without it."
    )(function)


def _replace(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--replace", is_flag=True, help="Take the place of another reference of that name.")(function)


def _parse(reference: str, category: str | None) -> tuple[Category, str]:
    """Category and name; a path relative to the repository is taken, too."""
    if category is not None:
        return cast("Category", category), reference
    first, _, name = reference.partition("/")
    if first not in _CATEGORIES:
        what = f"{printable(reference)!r} does not begin with streams/ or images/, as 'refs list' prints it"
        raise click.UsageError(f"{what}: use --category")
    return cast("Category", first), name.removeprefix("refs/")


@contextmanager
def _no_replacing() -> Iterator[None]:
    """Say how a reference that is there is replaced."""
    try:
        yield
    except FileExistsError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}; --replace takes its place") from error


def _named(category: Category, name: str) -> str:
    return printable(f"{category}/{name}")


@click.command("list")
@_category
@as_json
@click.pass_obj
def list_(settings: Settings, category: str | None, json_output: bool) -> None:
    """List the references, what they lead to, and the tags of images that they stand for."""
    with settings.open() as repo:
        found = [each for each in repo.references() if category in (None, each.category)]
    if json_output:
        print_json({"references": [_document(each) for each in found]})
        return
    width = max((len(_named(each.category, each.name)) for each in found), default=0)
    for each in found:
        line = f"{_named(each.category, each.name):{width}}  {printable(each.target)}"
        tag = _tag(each)
        line += f"  tag {printable(tag)}" if tag is not None else ""
        click.echo(line + ("  dangling" if each.dangling else ""))


def _document(reference: NamedReference) -> dict[str, object]:
    return {
        "category": reference.category,
        "name": reference.name,
        "target": reference.target,
        "dangling": reference.dangling,
        "tag": _tag(reference),
    }


def _tag(reference: NamedReference) -> str | None:
    """The tag of an OCI image that the reference stands for."""
    from ..naming import TAGS, decode_tag

    directory, slash, name = reference.name.partition("/")
    is_tag = reference.category == "streams" and directory == TAGS and slash and "/" not in name
    return decode_tag(name) if is_tag else None


@click.command
@click.argument("reference")
@click.argument("target")
@_category
@_replace
@click.pass_obj
def add(settings: Settings, reference: str, target: str, category: str | None, replace: bool) -> None:
    """Let REFERENCE lead to TARGET, the name of a stream, or the id or a reference of an image."""
    kind, name = _parse(reference, category)
    with settings.open() as repo, _no_replacing():
        repo.add_reference(kind, name, target, replace=replace)
    tell(f"Added {_named(kind, name)}")


@click.command
@click.argument("reference")
@click.argument("new")
@_category
@_replace
@click.pass_obj
def rename(settings: Settings, reference: str, new: str, category: str | None, replace: bool) -> None:
    """Give REFERENCE the name NEW, which may have the category before it, too.  What it leads to is kept throughout."""
    kind, name = _parse(reference, category)
    if category is None and new.partition("/")[0] in _CATEGORIES:
        other, new = _parse(new, None)
        if other != kind:
            raise click.UsageError("a reference cannot change between streams and images")
    with settings.open() as repo, _no_replacing():
        repo.rename_reference(kind, name, new, replace=replace)
    tell(f"Renamed {_named(kind, name)} to {_named(kind, new)}")


@click.command
@click.argument("references", nargs=-1, required=True)
@_category
@click.pass_obj
def remove(settings: Settings, references: tuple[str, ...], category: str | None) -> None:
    """Remove REFERENCES; what they lead to stays until garbage is collected."""
    parsed = [_parse(reference, category) for reference in references]
    with settings.open() as repo:
        for kind, name in parsed:
            if not repo.remove_reference(kind, name):
                raise (StreamNotFoundError if kind == "streams" else ImageNotFoundError)(f"refs/{name}")
            tell(f"Removed {_named(kind, name)}")


@click.command
@click.option("--dangling", is_flag=True, help="Remove every other reference that leads nowhere, too.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell which.")
@as_json
@click.pass_obj
def prune(settings: Settings, dangling: bool, dry_run: bool, json_output: bool) -> None:
    """Remove what is recorded as referring to an image that is gone, or is gone itself."""
    with settings.open() as repo:
        found = repo.prune_references(dangling=dangling, dry_run=dry_run)
    if json_output:
        print_json({"dry_run": dry_run, "pruned": [_document(each) for each in found]})
        return
    for each in found:
        tell(f"{'Would remove' if dry_run else 'Removed'} {_named(each.category, each.name)}")
