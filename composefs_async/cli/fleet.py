"""The commands ``fleet …``: many images into a store."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..digest import Algorithm
from .context import Settings, as_json, print_json
from .oci_pull import PlatformType
from .output import printable
from .store import StoreUrl, endpoint_option, hash_option

if TYPE_CHECKING:
    from ..fleet import Converted, Engine

__all__ = ["convert", "status"]


class ShardType(click.ParamType[Any]):
    """``I/N``, counted from 0."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(value))
        shard = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 0 <= shard[0] < shard[1]:
            self.fail(f"{value!r} is no shard, like 0/100", param, ctx)
        return shard


def _references(file: TextIO) -> list[str]:
    """One for each line; what follows ``#`` is a comment."""
    lines = (line.partition("#")[0].strip() for line in file)
    return list(dict.fromkeys(line for line in lines if line))


@contextmanager
def _engine(text: str) -> Iterator[Engine]:
    from ..fleet import ThreadEngine

    kind, _, rest = text.partition(":")
    if kind == "threads" and (not rest or rest.isdecimal()):
        yield ThreadEngine(int(rest) if rest else None)
    elif kind == "dask" and rest:
        from ..fleet.dask import DaskEngine, connect

        with connect(rest) as client:
            yield DaskEngine(client)
    else:
        raise click.BadParameter(f"{text!r} is neither threads[:N] nor dask:tcp://HOST:PORT", param_hint="--engine")


@click.command
@click.argument("references", type=click.File())
@click.option("--store", "url", type=StoreUrl(), required=True, help="The store, which must exist.")
@click.option("--engine", default="threads", show_default=True, help="threads[:N], or dask:tcp://HOST:PORT.")
@click.option("--shard", type=ShardType(), help="I/N: one part of N of the list, counted from 0.")
@hash_option
@click.option("--in-flight", type=click.IntRange(min=1), default=200, show_default=True, help="Images at once.")
@click.option("--platform", type=PlatformType(), help="OS/ARCH[/VARIANT] to take.")
@endpoint_option
@as_json
@click.pass_obj
def convert(
    settings: Settings,
    /,
    *,
    references: TextIO,
    url: str,
    engine: str,
    shard: tuple[int, int] | None,
    algorithm: str,
    in_flight: int,
    platform: Any,
    endpoint: str | None,
    json_output: bool,
) -> int:
    """Convert the images of a list (one reference a line) into a store.  Exits with 1 if some have failed.

    What is there is not converted again: a run that was stopped is simply started again.
    """
    from contextlib import aclosing

    from ..fleet import convert as convert_images

    wanted = _references(references)
    done: list[Converted] = []

    with _engine(engine) as chosen:

        async def main() -> None:
            images = convert_images(
                wanted,
                url,
                engine=chosen,
                algorithm=Algorithm(algorithm),
                in_flight=in_flight,
                shard=shard,
                platform=platform,
                endpoint=endpoint,
            )
            async with aclosing(images) as each:
                async for image in each:
                    done.append(image)
                    if not json_output:
                        click.echo(printable(f"{image.reference}  {image.error or image.image_id}"))
                        sys.stdout.flush()

        settings.run(main)
    if json_output:
        print_json([{key: getattr(image, key) for key in image.__dataclass_fields__} for image in done])
    return 1 if any(image.error for image in done) else 0


@click.command
@click.argument("references", type=click.File())
@click.option("--store", "url", type=StoreUrl(), required=True, help="The store.")
@endpoint_option
@as_json
@click.pass_obj
def status(settings: Settings, /, *, references: TextIO, url: str, endpoint: str | None, json_output: bool) -> None:
    """Tell which images of a list are in a store, whoever has converted them."""
    from ..fleet import status as status_of

    wanted = _references(references)

    async def main() -> list[Any]:
        return [each async for each in status_of(wanted, url, endpoint=endpoint)]

    found = settings.run(main)
    if json_output:
        print_json(
            [{"reference": each.reference, "name": each.name, "manifest": each.manifest_digest} for each in found]
        )
        return
    there = sum(each.manifest_digest is not None for each in found)
    for each in found:
        if each.manifest_digest is None:
            click.echo(printable(f"missing  {each.reference}"))
    click.echo(f"{there} of {len(found)} images")
