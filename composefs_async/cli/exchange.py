"""The commands ``publish``, ``fetch``, ``copy`` and ``serve``: images between repositories and stores."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .account import tell
from .context import Settings, as_json, print_json
from .output import printable
from .progress import progress_option, showing, size_text
from .store import StoreUrl, endpoint_option, using

if TYPE_CHECKING:
    from ..exchange.copying import CopyResult
    from ..exchange.fetcher import FetchResult

__all__ = ["Rate", "copy", "fetch", "publish", "serve"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Rate(click.ParamType[float]):
    """Bytes per second: ``50M``, ``800K`` or ``1000000``."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return *value*, such as ``20M``, in bytes a second, else fail as a usage error."""
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMG]?)(?:i?B)?(?:/s)?", str(value), re.IGNORECASE)
        rate = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
        if rate < 1:
            self.fail(f"{value!r} is no number of bytes per second, like 50M", param, ctx)
        return rate


ssh_option: Callable[[_Command], _Command] = click.option(
    "--ssh", default="ssh", show_default=True, metavar="COMMAND", help="The program that reaches it."
)
rate_option: Callable[[_Command], _Command] = click.option(
    "--limit-rate", type=Rate(), help="Bytes per second, like 50M."
)


@click.command
@click.argument("image")
@click.argument("url", type=StoreUrl())
@click.option("--name", help="In the store, if it is not IMAGE.")
@click.option("--base", "bases", multiple=True, metavar="NAME", help="A name in the store that shares content.")
@click.option("--level", type=click.IntRange(1, 19), default=3, show_default=True, help="Of zstd.")
@click.option("--repack", is_flag=True, help="Send everything again, in fresh packs.")
@click.option("--force", is_flag=True, help="Replace the name even if another writer changes it meanwhile.")
@rate_option
@endpoint_option
@progress_option
@as_json
@click.pass_obj
def publish(
    settings: Settings,
    /,
    *,
    image: str,
    url: str,
    name: str | None,
    bases: tuple[str, ...],
    level: int,
    repack: bool,
    force: bool,
    limit_rate: float | None,
    endpoint: str | None,
    progress: str,
    json_output: bool,
) -> None:
    """Publish IMAGE (a tag or @DIGEST, or an EROFS image) in the store URL; sends only what it has not got."""
    from ..exchange import publish as publish_image

    options: dict[str, Any] = {"name": name, "bases": bases, "level": level, "repack": repack, "force": force}
    with settings.open() as repo, showing(progress) as show:
        work = lambda store: publish_image(repo, image, store, **options, progress=show)  # noqa: E731
        result = using(settings, url, endpoint, work, limit_rate=limit_rate)
    if json_output:
        print_json({key: getattr(result, key) for key in result.__dataclass_fields__})
        return
    tell(f"name      {printable(result.name)}")
    tell(f"manifest  {result.manifest_digest}")
    if result.image_id:
        tell(f"image     {result.image_id}")
    tell(f"objects   {result.objects_sent} sent, {result.objects_shared} shared")
    tell(f"moved     {size_text(result.bytes_sent)} in {result.requests} requests")


@click.command
@click.argument("url", type=StoreUrl())
@click.argument("name")
@click.option("--tag", help="In the repository, if it is not NAME.")
@click.option(
    "--expect", metavar="ID", help="The id of the image, or the digest of a manifest, by which all is proven."
)
@click.option(
    "--mirror", "mirrors", multiple=True, type=StoreUrl(), help="Another store, for what URL has not or damaged."
)
@click.option(
    "--from", "local", multiple=True, type=click.Path(exists=True), help="A repository or directory that has content."
)
@rate_option
@endpoint_option
@ssh_option
@progress_option
@as_json
@click.pass_obj
def fetch(
    settings: Settings,
    /,
    *,
    url: str,
    name: str,
    tag: str | None,
    expect: str | None,
    mirrors: tuple[str, ...],
    local: tuple[str, ...],
    limit_rate: float | None,
    endpoint: str | None,
    ssh: str,
    progress: str,
    json_output: bool,
) -> None:
    """Fetch the image NAME from the store URL, or from the repository ssh://[USER@]HOST[:PORT]/DIRECTORY.

    Every byte is compared with its digest; what one store has not, or has damaged, comes from the next.
    """
    options = {"tag": tag, "expect": expect}
    if url.startswith("ssh://"):
        if mirrors or local or limit_rate:
            raise click.UsageError("--mirror, --from and --limit-rate are for stores")
        from ..exchange import copying

        with settings.open() as repo:
            pull = partial(copying.pull_from, repo, name, copying.ssh_command(url, ssh), **options)
            _print_copy(settings.run(pull), json_output)
        return
    with settings.open() as repo, showing(progress) as show:
        work = partial(_fetch, repo, [url, *mirrors], local, name, endpoint, limit_rate, progress=show, **options)
        result = settings.run(work)
    if json_output:
        values = {key: getattr(result, key) for key in result.__dataclass_fields__}
        print_json({**values, "image_id": result.image_id.hex() if result.image_id else None})
        return
    tell(f"root      {printable(result.root)}")
    tell(f"manifest  {result.manifest_digest}")
    if result.image_id:
        tell(f"image     {result.image_id}")
    tell(f"tagged    {printable(result.tag)}")
    tell(f"objects   {result.objects_fetched} fetched, {result.objects_present} present")
    tell(f"moved     {size_text(result.bytes_received)} in {result.requests} requests")
    for source, reason in result.failed_sources.items():
        tell(printable(f"healed    from another source: {source}: {reason}"))


async def _fetch(
    repo: Any,
    urls: list[str],
    local: tuple[str, ...],
    name: str,
    endpoint: str | None,
    limit_rate: float | None,
    **options: Any,
) -> FetchResult:
    from contextlib import AsyncExitStack

    from ..exchange import fetch as fetch_image
    from ..exchange import open_store
    from ..exchange.pacing import RateLimit

    async with AsyncExitStack() as stack:
        rate = RateLimit(limit_rate) if limit_rate else None
        stores = [
            await stack.enter_async_context(open_store(each, endpoint=endpoint, limit_rate=rate)) for each in urls
        ]
        return await fetch_image(repo, [*stores, *local], name, **options)


@click.command
@click.argument("image")
@click.option("--to", required=True, metavar="REPOSITORY", help="A directory, or ssh://[USER@]HOST[:PORT]/DIRECTORY.")
@click.option("--tag", help="In the other repository, if it is not IMAGE.")
@click.option("--link", is_flag=True, help="Hard link files, which then share owner, times and label.")
@ssh_option
@as_json
@click.pass_obj
def copy(
    settings: Settings, /, *, image: str, to: str, tag: str | None, link: bool, ssh: str, json_output: bool
) -> None:
    """Copy IMAGE to another repository, of this machine or of another one."""
    from ..exchange import copying
    from ..repository import Repository

    with settings.open() as repo:
        if to.startswith("ssh://"):
            if link:
                raise click.UsageError("--link is for repositories of this machine")
            work = partial(copying.push_to, repo, image, copying.ssh_command(to, ssh), tag=tag)
            result = settings.run(work)
        else:
            with Repository.open_path(to) as target:
                result = settings.run(partial(copying.copy, repo, target, image, tag=tag, link=link))
    _print_copy(result, json_output)


def _print_copy(result: CopyResult, json_output: bool) -> None:
    if json_output:
        print_json({key: getattr(result, key) for key in result.__dataclass_fields__})
        return
    tell(f"root      {printable(result.root)}")
    tell(f"tagged    {printable(result.tag)}")
    tell(f"objects   {result.objects_copied} copied, {result.objects_present} present")


@click.command
@click.pass_obj
def serve(settings: Settings, /) -> None:
    """Be the other side of a copy over ssh: speaks on standard input and output."""
    import os

    from ..exchange import copying

    # Nothing else may get into what is spoken.
    writer = os.dup(1)
    try:
        os.dup2(2, 1)
        with settings.open() as repo:
            settings.run(partial(copying.serve, repo, 0, writer))
    finally:
        os.close(writer)
