"""Commands on layers: ``oci layer``, ``oci ls-layer``, ``oci import-layer``."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..digest import ObjectId
from .context import ContentDigest, Settings, as_json, print_json
from .progress import progress_option, showing
from .pull import limit_options, limits_of

if TYPE_CHECKING:
    from ..oci.tarentries import TarEntry
    from ..repository import Repository
    from ..tree import Inode

__all__ = ["import_layer", "layer", "ls_layer"]


@click.command
@click.argument("diff_id", type=ContentDigest())
@click.option("--dumpfile", is_flag=True, help="List the members in the form of a dump file.")
@as_json
@click.pass_obj
def layer(settings: Settings, diff_id: str, dumpfile: bool, json_output: bool) -> None:
    """Print the layer DIFF_ID as the tar that it was, bit for bit, verified at the end."""
    if dumpfile and json_output:
        raise click.UsageError("--dumpfile and --json exclude each other")
    with settings.open() as repo:
        if dumpfile:
            _list(repo, diff_id)
        elif json_output:
            _describe(repo, diff_id)
        else:
            _print_tar(repo, diff_id)


def _print_tar(repo: Repository, diff_id: str) -> None:
    from ..errors import DigestMismatchError
    from ..oci.names import layer_stream

    if sys.stdout.isatty():
        raise click.UsageError("a tar is not for a terminal; redirect it, or use --json or --dumpfile")
    algorithm = diff_id.partition(":")[0]
    hasher = hashlib.new(algorithm) if algorithm in ("sha256", "sha384", "sha512") else None
    for piece in repo.merge_splitstream(layer_stream(diff_id)):
        if hasher:
            hasher.update(piece)
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    if hasher and (found := f"{algorithm}:{hasher.hexdigest()}") != diff_id:
        raise DigestMismatchError(f"layer {diff_id}", diff_id, found)


def _describe(repo: Repository, diff_id: str) -> None:
    from ..oci import catalogue

    info = catalogue.layer_info(repo, diff_id)
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
@click.argument("diff_id", type=ContentDigest())
@as_json
@click.pass_obj
def ls_layer(settings: Settings, diff_id: str, json_output: bool) -> None:
    """List the members of the layer DIFF_ID, a line each in the form of a dump file."""
    with settings.open() as repo:
        if json_output:
            _list_json(repo, diff_id)
        else:
            _list(repo, diff_id)


def _list(repo: Repository, diff_id: str) -> None:
    from ..oci import catalogue
    from ..oci.tarheader import EntryType
    from ..tree.dumpwriter import format_entry, format_link

    for entry in catalogue.layer_entries(repo, diff_id):
        if entry.type is EntryType.HARDLINK:
            line = format_link(b"/" + entry.path, b"/" + entry.link)
        else:
            line = format_entry(b"/" + entry.path, _inode(entry), 1)
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _inode(entry: TarEntry) -> Inode:
    from ..tree import Directory, ExternalFile, InlineFile, Special, Symlink

    mode = entry.type | entry.mode
    common = (mode, 1, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)
    if stat.S_ISDIR(mode):
        return Directory(*common)
    if stat.S_ISLNK(mode):
        return Symlink(*common, entry.link)
    if isinstance(entry.content, ObjectId):
        return ExternalFile(*common, entry.size, bytes(entry.content))
    if stat.S_ISREG(mode):
        return InlineFile(*common, entry.content or b"")
    return Special(*common, entry.rdev)


def _list_json(repo: Repository, diff_id: str) -> None:
    from ..oci import catalogue

    print_json(
        [
            {
                "path": "/" + os.fsdecode(entry.path),
                "type": entry.type.name.lower(),
                "mode": f"{entry.mode:04o}",
                "uid": entry.uid,
                "gid": entry.gid,
                "size": entry.size,
                "mtime": entry.mtime_ns / 1e9,
                "link": os.fsdecode(entry.link) or None,
                "object": entry.content.hex() if isinstance(entry.content, ObjectId) else None,
            }
            for entry in catalogue.layer_entries(repo, diff_id)
        ]
    )


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

    if sys.stdin.isatty():
        raise click.UsageError("there is no tar on standard input")
    fd = sys.stdin.fileno()
    source = oci.LocalBlob(fd, os.fstat(fd).st_size, "standard input")
    with settings.open() as repo, showing(progress) as show:
        work = partial(
            oci.import_layer, repo, diff_id, source, reference=name, progress=show, limits=limits_of(**limits)
        )
        result = settings.run(work)
    if json_output:
        stats = {key: getattr(result.stats, key) for key in result.stats.__dataclass_fields__}
        print_json({"diffId": diff_id, "verity": result.stream_id.hex(), "present": result.present, "stats": stats})
    else:
        click.echo(result.stream_id.text)
