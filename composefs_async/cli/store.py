"""The commands ``store …``: making stores, looking into them, and looking after them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..digest import Algorithm
from .account import tell
from .context import Settings, as_json, print_json
from .output import printable
from .output import table as drawn
from .progress import progress_option, showing, size_text

if TYPE_CHECKING:
    from ..exchange.store import Store

__all__ = [
    "StoreUrl",
    "du",
    "endpoint_option",
    "fsck",
    "gc",
    "hash_option",
    "index",
    "init",
    "ls",
    "mirror",
    "remove",
    "table",
    "using",
]

T = TypeVar("T")


class StoreUrl(click.ParamType[str]):
    """The URL of a store, or the path of a directory that is one."""

    name = "store"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the URL of a store; a path becomes a ``file:`` URL."""
        text = str(value)
        if "://" in text:
            return text
        if not text:
            self.fail("it is empty", param, ctx)
        from urllib.parse import quote

        return f"file://{quote(os.path.abspath(text))}"


def hash_option(function: Any) -> Any:
    """The option ``--hash`` of a command."""
    return click.option(
        "--hash",
        "algorithm",
        type=click.Choice([each.value for each in Algorithm]),
        default="sha512",
        show_default=True,
        help="Of the objects in the store.",
    )(function)


def endpoint_option(function: Any) -> Any:
    """The option ``--endpoint`` of a command."""
    return click.option("--endpoint", metavar="URL", help="Of an object store that is not the cloud's own.")(function)


def using(
    settings: Settings, url: str, endpoint: str | None, work: Callable[[Store], Awaitable[T]], **options: Any
) -> T:
    """Open a store, do *work* with it on the chosen event loop, and close it."""
    from ..exchange import open_store

    async def main() -> T:
        async with open_store(url, endpoint=endpoint, **options) as store:
            return await work(store)

    return settings.run(main)


@click.command
@click.argument("url", type=StoreUrl())
@hash_option
@click.option(
    "--grace",
    type=click.IntRange(min=60),
    default=86400,
    show_default=True,
    help="Seconds until garbage is deleted.",
)
@click.option("--single-writer", is_flag=True, help="Do without conditional writes.")
@endpoint_option
@as_json
@click.pass_obj
def init(
    settings: Settings,
    /,
    url: str,
    algorithm: str,
    grace: int,
    single_writer: bool,
    endpoint: str | None,
    json_output: bool,
) -> None:
    """Make a store at URL, unless there is one.

    That writes can have conditions is tried once; a store that ignores them is refused.
    """

    def make(store: Store) -> Awaitable[Any]:
        return store.init(algorithm=Algorithm(algorithm), grace=grace, single_writer=single_writer)

    description, created = using(settings, url, endpoint, make)
    if json_output:
        found = {"id": description.id, "algorithm": description.algorithm.text, "grace": description.grace}
        print_json({**found, "cas": description.cas, "created": created})
    else:
        tell(f"{'created' if created else 'present'}  {printable(description.id)}")


@click.command
@click.argument("url", type=StoreUrl())
@endpoint_option
@as_json
@click.pass_obj
def ls(settings: Settings, /, url: str, endpoint: str | None, json_output: bool) -> None:
    """List the names in a store."""

    async def work(store: Store) -> list[Any]:
        await store.describe()
        return [ref async for ref in store.refs()]

    refs = using(settings, url, endpoint, work)
    if json_output:
        print_json(
            [
                {"name": ref.name, "manifest": ref.manifest_digest, "created": ref.created, "size": ref.size}
                for ref in refs
            ]
        )
    elif refs:
        rows = [[ref.name, ref.manifest_digest[7:19], ref.created, size_text(ref.size)] for ref in refs]
        click.echo(drawn([["NAME", "MANIFEST", "CREATED", "SIZE"], *rows]))


@click.command
@click.argument("url", type=StoreUrl())
@endpoint_option
@as_json
@click.pass_obj
def du(settings: Settings, /, url: str, endpoint: str | None, json_output: bool) -> None:
    """Tell what each name costs: alone, which removing it would free, and together with others."""
    from ..exchange import collect

    report = using(settings, url, endpoint, partial(collect, dry_run=True))
    if json_output:
        refs = [{"name": cost.name, "exclusive": cost.exclusive, "shared": cost.shared} for cost in report.refs]
        print_json({"refs": refs, "size": report.live_bytes, "blobs": report.live_blobs})
        return
    rows = [[cost.name, size_text(cost.exclusive), size_text(cost.shared)] for cost in report.refs]
    if rows:
        click.echo(drawn([["NAME", "EXCLUSIVE", "SHARED"], *rows]))
    click.echo(f"{report.live_blobs} blobs, {size_text(report.live_bytes)}")


@click.command
@click.argument("url", type=StoreUrl())
@click.option("--dry-run", "-n", is_flag=True, help="Only tell what is garbage.")
@endpoint_option
@as_json
@click.pass_obj
def gc(settings: Settings, /, url: str, dry_run: bool, endpoint: str | None, json_output: bool) -> None:
    """Delete what no name has needed for the grace time of the store; safe beside publishers.

    What is garbage now is put on a list, and deleted by a run after the grace time.
    """
    from ..exchange import collect

    report = using(settings, url, endpoint, partial(collect, dry_run=dry_run))
    if json_output:
        keys = ("live", "young", "condemned", "deleted")
        print_json(
            {
                **{f"{key}_blobs": getattr(report, f"{key}_blobs") for key in keys},
                **{f"{key}_bytes": getattr(report, f"{key}_bytes") for key in keys if key != "young"},
                "dry_run": dry_run,
            }
        )
        return
    click.echo(f"deleted    {report.deleted_blobs} blobs, {size_text(report.deleted_bytes)}")
    click.echo(f"condemned  {report.condemned_blobs} blobs, {size_text(report.condemned_bytes)}")
    click.echo(f"young      {report.young_blobs} blobs")
    click.echo(f"live       {report.live_blobs} blobs, {size_text(report.live_bytes)}")


@click.command
@click.argument("url", type=StoreUrl())
@click.option("--sample", type=click.FloatRange(0, 1), default=1.0, help="The share of packs that are read.")
@endpoint_option
@progress_option
@as_json
@click.pass_obj
def fsck(settings: Settings, /, url: str, sample: float, endpoint: str | None, progress: str, json_output: bool) -> int:
    """Check a store: blobs, the objects in them, and that names are complete.  Exits with 1 if something is damaged."""
    from ..exchange.storecheck import check_store

    with showing(progress) as show:
        result = using(settings, url, endpoint, partial(check_store, sample=sample, progress=show))
    if json_output:
        findings = [
            {"kind": each.kind, "key": each.key, "detail": each.detail, "names": list(each.names)}
            for each in result.findings
        ]
        counts = {key: getattr(result, key) for key in ("names", "blobs", "members", "bytes")}
        print_json({**counts, "ok": result.ok, "findings": findings})
    else:
        for each in result.findings:
            click.echo(printable(f"{each.kind}: {each.key}: {each.detail} (needed by {', '.join(each.names)})"))
        click.echo(
            f"{result.names} names, {result.blobs} blobs, {result.members} objects, {size_text(result.bytes)} read"
        )
        click.echo("status: ok" if result.ok else "status: damaged")
    return 0 if result.ok else 1


@click.command
@click.argument("url", type=StoreUrl())
@endpoint_option
@click.pass_obj
def index(settings: Settings, /, url: str, endpoint: str | None) -> None:
    """Write index.json, by which tools that read OCI image directories find the names."""
    from ..exchange.maintenance import write_index

    tell(f"{using(settings, url, endpoint, write_index)} names")


@click.command
@click.argument("url", type=StoreUrl())
@click.argument("name")
@endpoint_option
@as_json
@click.pass_obj
def table(settings: Settings, /, url: str, name: str, endpoint: str | None, json_output: bool) -> None:
    """Print which member of which blob holds each object of NAME."""
    from .._aio.hops import hop

    async def work(store: Store) -> list[Any]:
        await store.describe()
        manifest = await store.resolve(name)
        config = await hop(store.read_config, manifest)
        found = await hop(store.read_table, manifest, config)
        return [(manifest.blobs[entry.blob].digest, entry) for entry in map(found.entry, range(len(found)))]

    kinds, codings = ("file", "stream", "image", "document"), ("raw", "zstd")
    rows = [
        {
            "key": entry.key.hex(),
            "kind": kinds[entry.kind],
            "size": entry.size,
            "stored": entry.stored,
            "coding": codings[entry.coding],
            "offset": entry.offset,
            "blob": digest,
        }
        for digest, entry in using(settings, url, endpoint, work)
    ]
    if json_output:
        print_json(rows)
    else:
        for row in rows:
            click.echo("  ".join(str(value) for value in row.values()))


@click.command
@click.argument("source", type=StoreUrl())
@click.argument("target", type=StoreUrl())
@endpoint_option
@progress_option
@as_json
@click.pass_obj
def mirror(
    settings: Settings, /, source: str, target: str, endpoint: str | None, progress: str, json_output: bool
) -> None:
    """Make the store TARGET a copy of SOURCE."""
    from ..exchange import open_store
    from ..exchange.maintenance import mirror as copy_store

    with showing(progress) as show:

        async def main() -> Any:
            async with (
                open_store(source, endpoint=endpoint) as original,
                open_store(target, endpoint=endpoint) as copy,
            ):
                return await copy_store(original, copy, progress=show)

        result = settings.run(main)
    if json_output:
        print_json({key: getattr(result, key) for key in ("names", "blobs", "bytes", "removed")})
    else:
        tell(f"{result.names} names, {result.blobs} blobs, {size_text(result.bytes)}; {result.removed} removed")


@click.command
@click.argument("url", type=StoreUrl())
@click.argument("names", nargs=-1, required=True)
@endpoint_option
@click.pass_obj
def remove(settings: Settings, /, url: str, names: tuple[str, ...], endpoint: str | None) -> None:
    """Remove names; what they mean stays until gc."""
    from ..errors import ImageNotFoundError
    from ..exchange.maintenance import remove as remove_name

    async def work(store: Store) -> None:
        for name in names:
            if not await remove_name(store, name):
                raise ImageNotFoundError(name, "name", f"{store.url} has none")

    using(settings, url, endpoint, work)
