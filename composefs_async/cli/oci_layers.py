"""Commands on layers: ``oci layer``, ``oci ls-layer``, ``oci import-layer``."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import AsyncIterator
from functools import partial
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Any

import click

from ..digest import ObjectId, check_content_digest
from ..errors import FormatError, NotFoundError
from .context import ContentDigest, Settings, as_json, print_json
from .oci_pull import limit_options, limits_of
from .output import print_bytes
from .progress import progress_option, showing

if TYPE_CHECKING:
    from ..oci import ByteSource
    from ..oci.tar.members import TarEntry
    from ..repository import Repository

__all__ = ["import_layer", "layer", "ls_layer"]

_PIECE = 1 << 18
_ALGORITHMS = ("sha256", "sha384", "sha512")
_NUMBER = re.compile("[1-9][0-9]{0,5}", re.ASCII)


class LayerName(click.ParamType[str]):
    """An argument that names a layer: its diff_id, or an image and the layer's number in it."""

    name = "layer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return *value* if it has one of the two forms, else fail as a usage error."""
        text = str(value)
        image, colon, number = text.rpartition(":")
        if colon and image and _NUMBER.fullmatch(number):
            return text
        try:
            return check_content_digest(text if image in _ALGORITHMS else "")
        except FormatError:
            self.fail(f"{text!r} is neither a diff_id, sha256:HEX, nor NAME:NUMBER", param, ctx)


def _diff_id(repo: Repository, layer: str) -> str:
    """The diff_id of what a `LayerName` means.

    Raises:
        NotFoundError: the image has fewer layers.
    """
    from ..oci.catalogue import open_image

    image, _, number = layer.rpartition(":")
    if not _NUMBER.fullmatch(number):
        return layer
    names = open_image(repo, image).layer_names
    if int(number) > len(names):
        raise NotFoundError(layer, "layer", f"{image} has {len(names)}")
    return names[int(number) - 1]


@click.command
@click.argument("layer", type=LayerName())
@click.option("--dumpfile", is_flag=True, help="List the members in the form of a dump file.")
@as_json
@click.pass_obj
def layer(settings: Settings, layer: str, dumpfile: bool, json_output: bool) -> None:
    """Print LAYER as the tar that it was, bit for bit, verified at the end.

    It is a diff_id or NAME:NUMBER, as 'oci layers NAME' counts them.
    """
    if dumpfile and json_output:
        raise click.UsageError("--dumpfile and --json exclude each other")
    with settings.open() as repo:
        diff_id = _diff_id(repo, layer)
        if dumpfile:
            _print_lines(repo, diff_id)
        elif json_output:
            _describe(repo, diff_id)
        else:
            _print_tar(repo, diff_id)


def _print_tar(repo: Repository, diff_id: str) -> None:
    from ..oci import stored_layers

    if sys.stdout.isatty():
        raise click.UsageError("a tar is not for a terminal; redirect it, or use --json or --dumpfile")
    print_bytes(stored_layers.layer_content(repo, diff_id))


def _print_lines(repo: Repository, diff_id: str) -> None:
    from ..oci import stored_layers

    print_bytes(stored_layers.layer_dump(repo, diff_id))


def _describe(repo: Repository, diff_id: str) -> None:
    from ..oci import stored_layers

    info = stored_layers.layer_info(repo, diff_id)
    print_json(
        {
            "diffId": info.diff_id,
            "verity": info.stream_id.hex(),
            "size": info.size,
            "entryCount": info.entries,
            "splitstream": {
                "externalObjects": info.external_objects,
                "externalSize": info.external_size,
                "inlineSize": info.inline_size,
            },
        }
    )


@click.command
@click.argument("layer", type=LayerName())
@as_json
@click.pass_obj
def ls_layer(settings: Settings, layer: str, json_output: bool) -> None:
    """List the members of LAYER, a line each in the form of a dump file.

    It is a diff_id or NAME:NUMBER, as 'oci layers NAME' counts them.
    """
    with settings.open() as repo:
        diff_id = _diff_id(repo, layer)
        if json_output:
            _list_json(repo, diff_id)
        else:
            _print_lines(repo, diff_id)


def _list_json(repo: Repository, diff_id: str) -> None:
    from ..oci import stored_layers

    print_json([_members(entry) for entry in stored_layers.layer_entries(repo, diff_id)])


def _members(entry: TarEntry) -> dict[str, Any]:
    from ..oci.tar.sparse import SparseContent

    content = entry.content
    if isinstance(content, SparseContent):
        content = content.stored
    return {
        "path": "/" + os.fsdecode(entry.path),
        "type": entry.type.name.lower(),
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "link": os.fsdecode(entry.link) or None,
        "object": content.hex() if isinstance(content, ObjectId) else None,
    }


@click.command
@click.argument("diff_id", type=ContentDigest())
@click.argument("name", required=False)
@limit_options
@progress_option
@as_json
@click.pass_obj
def import_layer(
    settings: Settings, /, diff_id: str, name: str | None, progress: str, json_output: bool, **limits: Any
) -> None:
    """Import a tar layer from standard input, packed or not, whose tar has the digest DIFF_ID.

    NAME is a reference to make besides.
    """
    from .. import oci

    if sys.stdin is None:
        raise click.UsageError("there is no layer on standard input, which is closed")
    if sys.stdin.isatty():
        raise click.UsageError("there is no layer on standard input, but a terminal")
    with settings.open() as repo, showing(progress) as show:
        work = partial(
            oci.import_layer,
            repo,
            diff_id,
            _standard_input(),
            reference=name,
            progress=show,
            limits=limits_of(**limits),
        )
        result = settings.run(work)
    if json_output:
        stats = {key: getattr(result.stats, key) for key in result.stats.__dataclass_fields__}
        print_json({"diff_id": diff_id, "verity": result.stream_id.hex(), "present": result.present, "stats": stats})
    else:
        click.echo(result.stream_id.text)


def _standard_input() -> ByteSource:
    from .. import oci

    try:
        fd = sys.stdin.fileno()
    except UnsupportedOperation:
        return _replaced_input()
    status = os.fstat(fd)
    if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
        return _Pipe(fd)
    rest = status.st_size - os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else 0
    return oci.BlockingBlob(lambda view: os.readv(fd, [view]), max(rest, 0))


async def _replaced_input() -> AsyncIterator[bytes]:
    """Standard input of a command that runs inside another program, which has put something else there."""
    from anyio import to_thread

    while piece := await to_thread.run_sync(sys.stdin.buffer.read, _PIECE):
        yield piece


class _Pipe:
    """A pipe or socket as a source.  No thread waits for it, since none could be interrupted while it does."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def read(self, size: int, /) -> bytes:
        from anyio import wait_readable

        while True:
            await wait_readable(self._fd)
            with contextlib.suppress(BlockingIOError):  # somebody else reads it too
                return os.read(self._fd, size)
