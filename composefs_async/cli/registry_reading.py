"""Commands that look into registries and need no repository: ``oci tags``, ``oci manifest``, ``oci blob``."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .context import Settings, as_json, print_json
from .output import print_bytes, printable
from .progress import showing
from .registry_options import RegistryCommand, access_of, access_options, run_within, transfer_of, transfer_options

if TYPE_CHECKING:
    from ..oci.documents import Descriptor
    from ..registry.client import RegistryClient

__all__ = ["RemoteReference", "blob", "catalog", "manifest", "ping", "ratelimit", "referrers", "tags"]

T = TypeVar("T")


class RemoteReference(click.ParamType[str]):
    """``docker://HOST/NAME[:TAG][@DIGEST]``."""

    name = "image"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return *value* if it names an image in a registry, else fail as a usage error."""
        from ..errors import InvalidNameError
        from ..registry.reference import parse_reference

        try:
            parse_reference(str(value))
        except InvalidNameError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def _registry_options(function: Any) -> Any:
    return access_options()(transfer_options(function))


def with_client(settings: Settings, options: dict[str, Any], work: Callable[[RegistryClient], Awaitable[T]]) -> T:
    """Run *work* with a client as the options say."""
    from ..registry.client import RegistryClient

    access, transfer = access_of(options, settings=settings), transfer_of(options)

    async def run() -> T:
        with showing("plain") as show:
            async with RegistryClient(access, transfer, show) as client:
                return await work(client)

    return run_within(settings, options["timeout"], run)


async def _all(found: AsyncIterator[T]) -> list[T]:
    return [each async for each in found]


def _host_of(text: str) -> str:
    return text.removeprefix("docker://").partition("/")[0]


@click.command(cls=RegistryCommand)
@click.argument("image", type=RemoteReference())
@_registry_options
@as_json
@click.pass_obj
def tags(settings: Settings, /, *, image: str, json_output: bool, **options: Any) -> None:
    """List the tags of the repository docker://HOST/NAME."""
    found = with_client(settings, options, lambda client: _all(client.tags(image)))
    if json_output:
        from ..registry.reference import parse_reference

        print_json({"Repository": parse_reference(image).name, "Tags": found})
    else:
        print_bytes(f"{printable(tag)}\n".encode() for tag in found)


@click.command(cls=RegistryCommand)
@click.argument("host")
@_registry_options
@as_json
@click.pass_obj
def catalog(settings: Settings, /, *, host: str, json_output: bool, **options: Any) -> None:
    """List the repositories of the registry HOST, if it tells."""
    found = with_client(settings, options, lambda client: _all(client.catalog(_host_of(host))))
    if json_output:
        print_json({"repositories": found})
    else:
        print_bytes(f"{printable(name)}\n".encode() for name in found)


@click.command(cls=RegistryCommand)
@click.argument("host")
@_registry_options
@as_json
@click.pass_obj
def ping(settings: Settings, /, *, host: str, json_output: bool, **options: Any) -> None:
    """Ask whether there is a registry on HOST that lets us in."""
    version = with_client(settings, options, lambda client: client.ping(_host_of(host)))
    if json_output:
        print_json({"host": _host_of(host), "version": version})
    else:
        click.echo(f"{printable(_host_of(host))}: {printable(version)}")


@click.command(cls=RegistryCommand)
@click.argument("image", type=RemoteReference())
@_registry_options
@as_json
@click.pass_obj
def ratelimit(settings: Settings, /, *, image: str, json_output: bool, **options: Any) -> None:
    """Print how often the registry of IMAGE may be asked; that is not counted as a pull."""
    found = with_client(settings, options, lambda client: client.rate_limit(image))
    if json_output:
        names = ("limit", "remaining", "window", "source")
        print_json({name: getattr(found, name) for name in names} if found else None)
    else:
        click.echo(str(found) if found else "the registry tells no limit")


@click.command(cls=RegistryCommand)
@click.argument("image", type=RemoteReference())
@click.option("--artifact-type", metavar="TYPE", help="Only those of this type.")
@_registry_options
@as_json
@click.pass_obj
def referrers(
    settings: Settings, /, *, image: str, artifact_type: str | None, json_output: bool, **options: Any
) -> None:
    """List what refers to IMAGE: signatures, bills of materials."""
    found = with_client(settings, options, lambda client: _all(client.referrers(image, artifact_type)))
    if json_output:
        print_json([_descriptor(each) for each in found])
    else:
        for each in found:
            click.echo(f"{each.digest} {printable(each.artifact_type or each.media_type)}")


def _descriptor(each: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": each.media_type,
        "digest": each.digest,
        "size": each.size,
        **({"artifactType": each.artifact_type} if each.artifact_type else {}),
        **({"annotations": dict(each.annotations)} if each.annotations else {}),
    }


# -- manifests and blobs -----------------------------------------------------------------------


@click.group
def manifest() -> None:
    """Manifests and indexes in registries."""


@manifest.command("get", cls=RegistryCommand)
@click.argument("image", type=RemoteReference())
@click.option("--raw", is_flag=True, help="Print the bytes as they are, which is what is printed anyway.")
@click.option("--output", "-o", type=click.Path(), help="Write to this file.")
@_registry_options
@click.pass_obj
def manifest_get(settings: Settings, /, *, image: str, raw: bool, output: str | None, **options: Any) -> None:
    """Print the manifest or index of IMAGE, byte for byte."""
    found = with_client(settings, options, lambda client: client.manifest(image))
    _write(found.raw, output)


@manifest.command("head", cls=RegistryCommand)
@click.argument("image", type=RemoteReference())
@_registry_options
@as_json
@click.pass_obj
def manifest_head(settings: Settings, /, *, image: str, json_output: bool, **options: Any) -> None:
    """Print digest, type and size of what IMAGE names, without reading it."""
    found = with_client(settings, options, lambda client: client.resolve(image))
    if json_output:
        print_json({"digest": found.digest, "mediaType": found.media_type, "size": found.size, "host": found.host})
    else:
        click.echo(f"digest {found.digest}\ntype   {printable(found.media_type)}")
        click.echo(f"size   {'unknown' if found.size is None else found.size}")


@manifest.command("digest", cls=RegistryCommand)
@click.argument("image", type=RemoteReference())
@_registry_options
@click.pass_obj
def manifest_digest(settings: Settings, /, *, image: str, **options: Any) -> None:
    """Print the digest of what IMAGE names."""
    click.echo(with_client(settings, options, lambda client: client.resolve(image)).digest)


@click.group
def blob() -> None:
    """Blobs in registries."""


class BlobReference(RemoteReference):
    """``docker://HOST/NAME@DIGEST``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = super().convert(value, param, ctx)
        if "@" not in text:
            self.fail("name the blob by its digest: docker://HOST/NAME@DIGEST", param, ctx)
        return text


@blob.command("get", cls=RegistryCommand)
@click.argument("reference", type=BlobReference())
@click.option("--output", "-o", type=click.Path(), help="Write to this file.")
@_registry_options
@click.pass_obj
def blob_get(settings: Settings, /, *, reference: str, output: str | None, **options: Any) -> None:
    """Print the blob docker://HOST/NAME@DIGEST, compared with its digest.

    What has been printed when this fails is not to be used.
    """
    with_client(settings, options, lambda client: _copy_blob(client, reference, output))


async def _copy_blob(client: RegistryClient, reference: str, output: str | None) -> None:
    from .._aio.to_thread import in_thread
    from ..errors import ImageNotFoundError
    from ..oci.documents import Descriptor

    digest = reference.partition("@")[2]
    size = await client.blob_size(reference, digest)
    if size is None:
        raise ImageNotFoundError(f"blob {digest}", kind="blob")
    if size < 0:
        content = await client.blob(reference, digest, limit=1 << 30)
        await in_thread(lambda: _write(content, output))
        return
    temporary = f"{output}.part" if output else ""
    file = await in_thread(lambda: open(temporary, "wb") if output else sys.stdout.buffer)  # noqa: SIM115
    try:
        async with client.open_blob(reference, Descriptor("", digest, size)) as chunks:
            async for chunk in chunks:
                await in_thread(lambda chunk=chunk: file.write(chunk))  # type: ignore[misc]
        await in_thread(file.flush)
    finally:
        if output:
            file.close()
    if output:
        os.replace(temporary, output)


@blob.command("head", cls=RegistryCommand)
@click.argument("reference", type=BlobReference())
@_registry_options
@click.pass_obj
def blob_head(settings: Settings, /, *, reference: str, **options: Any) -> None:
    """Print the size of the blob docker://HOST/NAME@DIGEST in bytes."""
    from ..errors import ImageNotFoundError

    digest = reference.partition("@")[2]
    size = with_client(settings, options, lambda client: client.blob_size(reference, digest))
    if size is None:
        raise ImageNotFoundError(f"blob {digest}", kind="blob")
    click.echo("unknown" if size < 0 else str(size))


def _write(content: bytes, output: str | None) -> None:
    if output is None:
        print_bytes([content])
        return
    with open(output, "wb") as file:
        file.write(content)
