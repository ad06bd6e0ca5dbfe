"""The command ``du``: what each tag and image costs, and what would be won by removing it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .context import Settings, as_json, print_json
from .output import printable
from .progress import size_text

if TYPE_CHECKING:
    from ..results import NameUsage, Space, Usage

__all__ = ["du"]

_SORTS = ("name", "frees", "exclusive", "shared", "objects")
_TOTALS = (
    ("all", "objects"),
    ("garbage", "garbage"),
    ("leased", "leased"),
    ("leftovers", "leftovers"),
    ("quarantine", "quarantine"),
)


@click.command
@as_json
@click.option("--sort", type=click.Choice(_SORTS), default="frees", show_default=True, help="Largest first.")
@click.option("--chart", is_flag=True, help="Draw a bar of what each name keeps: alone, and with others.")
@click.option("--bytes", "in_bytes", is_flag=True, help="Print sizes in bytes.")
@click.option("--disk", is_flag=True, help="What files take on the disk instead of how long they are.")
@click.pass_obj
def du(settings: Settings, json_output: bool, sort: str, in_bytes: bool, disk: bool, *, chart: bool) -> None:
    """Print what each tag and image keeps alone (exclusive) or with others, and what removing it would free.

    With two tags of one image nothing is freed by removing one of them.  Then come all objects, those that gc would
    delete now, those that only a lease keeps, temporary files that were left, and what repairs have put aside.
    """
    with settings.open() as repo:
        usage = repo.usage()

    def size(space: Space) -> int:
        return space.disk if disk else space.size

    names = sorted(usage.names, key=lambda each: _sort_key(each, sort, disk))
    if json_output:
        totals = {key: asdict(getattr(usage, name)) for key, name in _TOTALS}
        print_json({"names": [_to_json(each) for each in names], **totals})
        return
    text = str if in_bytes else size_text
    if chart:
        _draw([(printable(_name(each)), size(each.exclusive), size(each.shared)) for each in names], text)
        return
    rows = [_row(each, [text(size(space)) for space in (each.exclusive, each.shared, each.frees)]) for each in names]
    _print(("NAME", "KIND", "EXCLUSIVE", "SHARED", "FREES", "OBJECTS"), rows)
    if rows:
        click.echo()
    _print(("TOTAL", "", "SIZE", "OBJECTS"), [_total(usage, key, name, text, size) for key, name in _TOTALS])


def _draw(names: list[tuple[str, int, int]], text: Callable[[int], str]) -> None:
    """A line for each name, as wide as the terminal: a bar for what is its own, a lighter one for what is shared."""
    from rich.cells import cell_len

    columns = shutil.get_terminal_size((80, 24)).columns
    most = max((own + shared for _, own, shared in names), default=0) or 1
    sizes = [text(own + shared) for _, own, shared in names]
    left, right = max((cell_len(name) for name, _, _ in names), default=0), max(map(len, sizes), default=0)
    room = max(10, columns - left - right - 4)
    for (name, own, shared), size in zip(names, sizes, strict=True):
        solid, whole = round(room * own / most), round(room * (own + shared) / most)
        bar = "█" * solid + "░" * (whole - solid)
        click.echo(f"{name}{' ' * (left - cell_len(name))}  {size:>{right}}  {bar}")
    click.echo(f"{'█ alone, ░ with others':>{left + right + 25}}")


def _sort_key(each: NameUsage, sort: str, disk: bool) -> tuple[int, str, str]:
    value = 0
    if sort == "objects":
        value = each.exclusive.objects + each.shared.objects
    elif sort != "name":
        space: Space = getattr(each, sort)
        value = space.disk if disk else space.size
    return -value, _name(each), each.category


def _kind(each: NameUsage) -> str:
    from ..naming import TAGS

    if each.category == "images":
        return "image"
    directory, _, rest = each.reference.partition("/")
    return "tag" if directory == TAGS and rest and "/" not in rest else "stream"


def _name(each: NameUsage) -> str:
    from ..naming import TAGS, decode_tag

    return decode_tag(each.reference.removeprefix(f"{TAGS}/")) if _kind(each) == "tag" else each.reference


def _row(each: NameUsage, sizes: list[str]) -> tuple[str, ...]:
    objects = each.exclusive.objects + each.shared.objects
    return (printable(_name(each)), _kind(each), *sizes, str(objects))


def _total(usage: Usage, key: str, name: str, text: Any, size: Any) -> tuple[str, ...]:
    space: Space = getattr(usage, name)
    return key, "", text(size(space)), str(space.objects)


def _print(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns: two of text, then numbers."""
    from rich.cells import cell_len

    if not rows:
        return
    lines = [titles, *rows]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        cells = [cell + gap if at < 2 else gap + cell for at, (cell, gap) in enumerate(zip(line, gaps, strict=True))]
        click.echo("  ".join(cell for cell, width in zip(cells, widths, strict=True) if width))


def _to_json(each: NameUsage) -> dict[str, Any]:
    spaces = {key: asdict(getattr(each, key)) for key in ("exclusive", "shared", "frees")}
    reference = f"{each.category}/refs/{each.reference}"
    return {"name": _name(each), "kind": _kind(each), "reference": reference, "target": each.name, **spaces}
