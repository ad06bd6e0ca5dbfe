"""Images from repository to repository: on one machine, over ssh, and the other side of that.

Owns processes and the order of a copy; names come last, as in every import.  Does not own the conversation (`pipe`).
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from .._aio.hops import hop, using
from .._aio.operations import async_operation
from .._aio.to_thread import in_checked_thread
from .._maintenance import leases
from .._maintenance.fsck.object_reader import sizes
from .._maintenance.repair.sources import RepositorySource
from .._repo.state import RepoState
from ..digest import ObjectId
from ..errors import ComposefsError, FetchDamagedError, FormatError, ObjectNotFoundError, StoreError, StoreFormatError
from ..naming import check_tag
from ..oci import add_image, import_layer
from ..oci.catalogue import OciImage, open_image_async
from ..oci.stored_layers import layer_content_async
from ..repository import Repository, state_of
from .arrival import check_expected, prove, publish_names
from .closure import Closure, image_closure, walk
from .documents import Config
from .frames import FrameType, decode_json, json_frame
from .local_sources import take_objects
from .pipe import Arrived, Channel, check_hello, hello, receive_image, send_image

__all__ = ["CopyResult", "copy", "pull_from", "push_to", "serve", "ssh_command"]


@dataclass(frozen=True, slots=True)
class CopyResult:
    """An image that is in place in the other repository, named and durable."""

    root: str
    """Name of the stream, or id of the EROFS image."""
    tag: str
    objects_copied: int
    objects_present: int
    bytes_moved: int
    """Over the pipe; 0 for a copy on one machine."""


# -- on one machine ----------------------------------------------------------------------------


@async_operation
async def copy(
    source: Repository, target: Repository, image: str, *, tag: str | None = None, link: bool = False
) -> CopyResult:
    """Copy *image* (a tag or ``@DIGEST``, or an EROFS image) to another repository of this machine.  Durable.

    Files share their content where the file system can (reflink), and each is compared with its id.  Between
    repositories of different algorithms the layers are imported again.

    Args:
        tag: in the target; *image* if not given.
        link: hard link files instead, which then share owner, times and security label.

    Raises:
        ImageNotFoundError, ObjectNotFoundError, IntegrityError, ReadOnlyRepositoryError
    """
    tag = check_tag(image if tag is None else tag)
    state, origin = state_of(target), state_of(source)
    await hop(state.require_writable)
    if source.algorithm is not target.algorithm:
        return await _import_again(source, target, image, tag)
    async with using(origin), using(state):
        closure = await hop(image_closure, source, image)
        lease = await hop(leases.begin, state, _lease_name(closure), source.path)
        copied = await in_checked_thread(lambda check: _copy_objects(origin, state, closure, link, check))
        walked = await hop(walk, state, closure.root, closure.root_id)
        await hop(publish_names, state, walked, tag)
        await hop(lease.end)
        return CopyResult(closure.root, tag, copied, len(closure.ids) - copied, 0)


def _lease_name(closure: Closure) -> str:
    """What a lease is for: by rights the digest of a manifest."""
    return f"sha256:{closure.root_id[:32].hex()}"


def _copy_objects(
    origin: RepoState, state: RepoState, closure: Closure, link: bool, check: Callable[[], object]
) -> int:
    missing = _missing(state, closure)
    source = RepositorySource(origin, origin.path, owned=False)
    copied = set(take_objects(state, source, missing, check=check, link=link))
    if left := [found for found in missing if found not in copied]:
        raise ObjectNotFoundError(left[0].hex(), reason=f"{origin.path} has none that is what its id says")
    return len(copied)


def _missing(state: RepoState, closure: Closure) -> list[ObjectId]:
    found = sizes(state, b"".join(closure.ids))
    return [object_id for object_id, size in zip(closure.ids, found, strict=True) if size < 0]


async def _import_again(source: Repository, target: Repository, image: str, tag: str) -> CopyResult:
    found: OciImage = await open_image_async(source, image)
    stats = [0, 0]
    async with target.lease(found.manifest.digest):
        for diff_id in dict.fromkeys(found.layers):
            layer = await import_layer(target, diff_id, layer_content_async(source, diff_id))
            stats[0] += layer.stats.objects_stored
            stats[1] += layer.stats.objects_present
        added = await add_image(target, found.manifest.raw, found.config_raw, tag=tag)
    return CopyResult(f"oci-manifest-{added.manifest_digest}", tag, stats[0], stats[1], 0)


# -- over a pipe -------------------------------------------------------------------------------


def ssh_command(url: str, ssh: str = "ssh") -> list[str]:
    """The command that reaches the other side of ``ssh://[USER@]HOST[:PORT]/REPOSITORY``.

    Raises:
        StoreError: it is no such URL.
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme != "ssh" or not parts.hostname or len(path) < 2 or parts.password or parts.query or port == -1:
        raise StoreError("ssh://", "a repository on another machine is spelled ssh://[USER@]HOST[:PORT]/DIRECTORY")
    host = f"{unquote(parts.username)}@{parts.hostname}" if parts.username else parts.hostname
    remote = f"composefs-async --repo {shlex.quote(path)} serve"
    return [*shlex.split(ssh), *(["-p", str(port)] if port else []), "--", host, remote]


@async_operation
async def push_to(repo: Repository, image: str, command: Sequence[str], *, tag: str | None = None) -> CopyResult:
    """Send *image* to whatever *command* reaches: ``composefs-async serve`` on another machine.

    The other side verifies everything and names it *tag*, or *image*, durably.

    Raises:
        ImageNotFoundError, ObjectNotFoundError, IntegrityError
        StoreError: the other side cannot be reached, or says that something went wrong.
    """
    tag = check_tag(image if tag is None else tag)
    state = state_of(repo)
    async with using(state):
        closure = await hop(image_closure, repo, image)

        def work(check: Callable[[], None]) -> CopyResult:
            with _running(command, check) as channel:
                hello(channel, state.algorithm, "send", tag)
                sent = send_image(state, closure, channel)
                return CopyResult(closure.root, tag, sent, len(closure.ids) - sent, 0)

        return await in_checked_thread(work)


@async_operation
async def pull_from(
    repo: Repository, image: str, command: Sequence[str], *, tag: str | None = None, expect: str | None = None
) -> CopyResult:
    """Receive *image* from whatever *command* reaches: ``composefs-async serve`` on another machine.

    Args:
        expect: the id of the EROFS image, or the digest of the OCI manifest.

    Raises:
        FetchError: something is not to be had; `FetchDamagedError` if it came damaged.
        DigestMismatchError: it is not what is expected, or not what its name says.
        StoreError: the other side cannot be reached, or says that something went wrong.
    """
    tag = check_tag(image if tag is None else tag)
    state = state_of(repo)
    await hop(state.require_writable)
    async with using(state):
        return await _receive(state, lambda check: _running(command, check), image, tag, expect)


async def _receive(
    state: RepoState,
    connect: Callable[[Callable[[], None]], object],
    image: str,
    tag: str,
    expect: str | None,
) -> CopyResult:
    moved = [0]

    def work(check: Callable[[], None]) -> tuple[Arrived, leases.LeaseHolder]:
        with connect(check) as channel:  # type: ignore[attr-defined]
            hello(channel, state.algorithm, "receive", image)
            found = _receive_all(state, channel, expect)
            channel.send(json_frame(FrameType.DONE))
            moved[0] = channel.moved
            return found

    arrived, lease = await in_checked_thread(work)
    await _name(state, arrived, tag, expect)
    await hop(lease.end)
    return CopyResult(
        arrived.config.root, tag, arrived.received, len(arrived.walked.kinds) - arrived.received, moved[0]
    )


def _receive_all(state: RepoState, channel: Channel, expect: str | None) -> tuple[Arrived, leases.LeaseHolder]:
    held: list[leases.LeaseHolder] = []

    def begin(config: Config, digest: str) -> None:
        if expect is not None:
            _expected(expect, config)
        held.append(leases.begin(state, digest, channel.name))

    try:
        return receive_image(state, channel, begin=begin), held[0]
    except StoreFormatError as error:
        raise FetchDamagedError(channel.name, (), {channel.name: error.reason}) from error


def _expected(expect: str, config: Config) -> ObjectId | None:
    return check_expected(expect, "", config)


async def _name(state: RepoState, arrived: Arrived, tag: str | None, expect: str | None) -> None:
    image = _expected(expect, arrived.config) if expect is not None else None
    try:
        await prove(state, arrived.walked, arrived.config, image=image, all_images=expect is not None)
    except FormatError as error:
        raise FetchDamagedError(arrived.config.root, (), {"the other side": str(error)}) from error
    await hop(publish_names, state, arrived.walked, tag)


@async_operation
async def serve(repo: Repository, reader: int, writer: int) -> CopyResult:
    """Be the other side of one copy, over two descriptors that stay the caller's: send or receive an image.

    Errors go to the other side, too.

    Raises:
        StoreError: the other side has gone.
        What sending and receiving raise.
    """
    state = state_of(repo)
    async with using(state):
        name = "the other side"
        channel = Channel(reader, writer, name, lambda: None)
        try:
            values = await in_checked_thread(lambda check: _greeted(state, channel))
            reference = str(values.get("reference") or "")
            if values.get("role") == "receive":
                closure = await hop(image_closure, repo, reference)
                sent = await in_checked_thread(lambda check: send_image(state, closure, channel))
                return CopyResult(closure.root, reference, sent, len(closure.ids) - sent, 0)
            if values.get("role") != "send":
                raise StoreFormatError(name, f"it wants to {values.get('role')!r}")
            return await _serve_receiving(state, channel, check_tag(reference))
        except (ComposefsError, OSError) as error:
            await hop(_tell, channel, error)
            raise


async def _serve_receiving(state: RepoState, channel: Channel, tag: str) -> CopyResult:
    await hop(state.require_writable)
    arrived, lease = await in_checked_thread(lambda check: _receive_all(state, channel, None))
    await _name(state, arrived, tag, None)
    await hop(lease.end)
    await hop(channel.send, json_frame(FrameType.DONE))
    return CopyResult(
        arrived.config.root, tag, arrived.received, len(arrived.walked.kinds) - arrived.received, channel.moved
    )


def _greeted(state: RepoState, channel: Channel) -> dict[str, object]:
    values = decode_json(channel.expect(FrameType.HELLO))
    channel.send(json_frame(FrameType.HELLO, version=1, algorithm=state.algorithm.text, role="serve"))
    check_hello(channel, values, state.algorithm)
    return values


def _tell(channel: Channel, error: Exception) -> None:
    try:
        channel.send(json_frame(FrameType.ERROR, reason=f"{type(error).__name__}: {error}"[:2000]))
    except (StoreError, OSError):
        return


@contextmanager
def _running(command: Sequence[str], check: Callable[[], object]) -> Iterator[Channel]:
    """Run *command* with pipes; it is ended when the block is left by an error, and must have gone well otherwise."""
    name = next((part for part in command[1:] if not part.startswith("-")), command[0])
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        raise StoreError(command[0], error.strerror or "it cannot be run") from None
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as writer, process.stdout as reader:
        os.set_blocking(writer.fileno(), False)
        try:
            yield Channel(reader.fileno(), writer.fileno(), name, check)
        except BaseException:
            process.terminate()
            raise
        finally:
            writer.close()
            status = process.wait()
    if status:
        raise StoreError(name, f"the other side ended with the exit code {status}")
