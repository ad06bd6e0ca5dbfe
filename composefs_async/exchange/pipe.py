"""One image over a pair of pipes, in two round trips: what ssh carries between two machines.

Owns both sides of the conversation, which block, and the channel under them.  Does not own processes (`copying`).  The
receiver believes nothing: objects are compared with their ids, content with its names, before anything is named.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .._maintenance.fsck.object_reader import sizes
from .._repo import objects
from .._repo.state import RepoState
from .._zstd import zstd
from ..digest import Algorithm, ObjectId
from ..errors import AlgorithmMismatchError, FetchDamagedError, FetchError, StoreError, StoreFormatError
from .arrival import present_keys
from .closure import Closure, Walked, walk
from .documents import CONFIG_LIMIT, Config, digest_of, parse_config
from .frames import (
    PIECE,
    FrameParser,
    FrameType,
    bitmap,
    decode_json,
    frame,
    json_frame,
    member,
    member_piece,
    split_member,
    wanted,
)
from .packing import LEVEL, compress_member, verified_contents
from .receiving import Large, Outcome, Receiver
from .table import DECODED_LIMIT, KEY_SIZE, Coding, Entry, Kind, Table, decode_table, encode_table

__all__ = ["Arrived", "Channel", "receive_image", "send_image"]

_READ = 256 << 10
_POLL = 100  # milliseconds between two looks at a cancellation
_BATCH_BYTES = 2 << 20
_BATCH_ITEMS = 256
_STREAMED = 8 << 20
"""Larger objects are sent in pieces, not compressed."""


class Channel:
    """Frames over a descriptor to read from and one to write to, which stay the caller's.  Blocks.

    Args:
        check: is called now and then while waiting; what it raises ends the work.
    """

    def __init__(self, reader: int, writer: int, name: str, check: Callable[[], object]) -> None:
        self.name = name
        self.moved: int = 0
        """Bytes received."""
        self._reader, self._writer, self._check = reader, writer, check
        self._parser = FrameParser()
        self._frames: deque[tuple[FrameType, bytes]] = deque()

    def send(self, data: bytes) -> None:
        """Write some frames.

        Raises:
            StoreError: the other side has gone.
        """
        view = memoryview(data)
        try:
            while view:
                self._wait(self._writer, select.POLLOUT)
                view = view[os.write(self._writer, view[: 64 << 10]) :]
        except BlockingIOError:
            self.send(bytes(view))
        except BrokenPipeError:
            raise StoreError(self.name, "the other side has ended the connection") from None

    def next(self) -> tuple[FrameType, bytes]:
        """The next frame.

        Raises:
            StoreError: the other side has gone, or says that something went wrong.
            StoreFormatError: it does not speak the protocol.
        """
        while not self._frames:
            self._wait(self._reader, select.POLLIN)
            data = os.read(self._reader, _READ)
            if not data:
                raise StoreError(self.name, "the other side has ended the connection")
            self.moved += len(data)
            self._frames.extend(self._parser.feed(data))
        kind, body = self._frames.popleft()
        if kind is FrameType.ERROR:
            reason = decode_json(body).get("reason")
            raise StoreError(self.name, f"the other side says: {str(reason)[:1000]}")
        return kind, body

    def expect(self, kind: FrameType) -> bytes:
        """The body of the next frame, which must be of that type."""
        found, body = self.next()
        if found is not kind:
            raise StoreFormatError(self.name, f"it says {found.name} where {kind.name} belongs")
        return body

    def _wait(self, fd: int, event: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        while True:
            self._check()
            if poll.poll(_POLL):
                return


def hello(channel: Channel, algorithm: Algorithm, role: str, reference: str = "") -> dict[str, Any]:
    """Say hello, and hear the same.

    Raises:
        StoreFormatError, AlgorithmMismatchError
    """
    channel.send(json_frame(FrameType.HELLO, version=1, algorithm=algorithm.text, role=role, reference=reference))
    values = decode_json(channel.expect(FrameType.HELLO))
    check_hello(channel, values, algorithm)
    return values


def check_hello(channel: Channel, values: dict[str, Any], algorithm: Algorithm) -> None:
    """Refuse another version or algorithm."""
    if values.get("version") != 1:
        raise StoreFormatError(channel.name, f"it speaks version {values.get('version')!r} of the protocol, not 1")
    if values.get("algorithm") != algorithm.text:
        raise AlgorithmMismatchError(channel.name, algorithm.text, str(values.get("algorithm")))


# -- sending -----------------------------------------------------------------------------------


def send_image(state: RepoState, closure: Closure, channel: Channel, *, level: int = LEVEL) -> int:
    """Send what the other side wants of *closure*; returns how many objects.  Both have said hello."""
    entries = [
        Entry(found[:KEY_SIZE], 0, 0, 0, size, kind, Coding.RAW)
        for found, size, kind in zip(closure.ids, closure.sizes, closure.kinds, strict=True)
    ]
    config = Config(
        closure.kind,
        state.algorithm,
        len(closure.ids),
        closure.size,
        closure.root,
        closure.streams,
        closure.images,
    )
    described = config.encode() + b"\0" + encode_table(state.algorithm, 0, entries)
    for at in range(0, len(described), 1 << 20):
        channel.send(frame(FrameType.TABLE, described[at : at + (1 << 20)]))
    channel.send(frame(FrameType.TABLE))
    sent = 0
    while True:
        kind, body = channel.next()
        if kind is FrameType.DONE:
            return sent
        if kind is not FrameType.WANT:
            raise StoreFormatError(channel.name, f"it says {kind.name} where WANT or DONE belongs")
        numbers = wanted(body, len(entries))
        _send_members(state, closure, numbers, channel, level)
        sent += len(numbers)


def _send_members(state: RepoState, closure: Closure, numbers: Sequence[int], channel: Channel, level: int) -> None:
    compressor = zstd.ZstdCompressor(level)
    small = [number for number in numbers if closure.sizes[number] <= _STREAMED]
    for number in numbers:
        if closure.sizes[number] > _STREAMED:
            _send_large(state, closure.ids[number], number, channel)
    ids = [closure.ids[number] for number in small]
    for number, (_, content) in zip(small, verified_contents(state, ids), strict=True):
        coding, stored = compress_member(compressor, content)
        for each in member(number, coding, stored):
            channel.send(each)


def _send_large(state: RepoState, object_id: ObjectId, number: int, channel: Channel) -> None:
    """Send an object as it is, piece by piece; the other side compares it with its id."""
    with open(objects.open_object(state, object_id), "rb", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size
        while left and (piece := file.read(min(PIECE, left))):
            left -= len(piece)
            channel.send(member_piece(number, Coding.RAW, piece, last=not left))


# -- receiving ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived:
    """An image whose objects are all in place, and that has neither been proven nor named."""

    walked: Walked
    config: Config
    received: int
    """Objects that came."""


def receive_image(state: RepoState, channel: Channel, *, begin: Callable[[Config, str], object]) -> Arrived:
    """Receive what is missing of an image.  Both sides have said hello.

    Args:
        begin: is told the config, and its digest, before anything is stored.

    Raises:
        FetchDamagedError: what came is not what its id says.
        FetchError: something is needed that the other side has not.
        StoreFormatError: it does not speak the protocol.
    """
    config, digest, table = _receive_table(state, channel)
    begin(config, digest)
    present = present_keys(state)
    walked = walk(state, config.root, config.root_id)
    damaged = frozenset(walked.damaged)
    again = {found[:KEY_SIZE] for found in damaged}
    first = [
        at
        for at in range(len(table))
        if table.kinds[at] != Kind.FILE and (table.key(at) not in present or table.key(at) in again)
    ]
    receiver = Receiver(state, table, {}, damaged)
    _receive_members(channel, receiver, first, config.root)
    walked = walk(state, config.root, config.root_id)
    if walked.missing:
        raise _lacking(channel, config, walked.missing)
    absent = _absent(state, walked)
    index = table.index()
    expected = {index[found[:KEY_SIZE]]: found for found in absent if found[:KEY_SIZE] in index}
    files = Receiver(state, table, expected)
    _receive_members(channel, files, sorted(expected), config.root)
    if left := _absent(state, walked):
        raise _lacking(channel, config, left)
    return Arrived(walked, config, len(receiver.done) + len(files.done))


def _lacking(channel: Channel, config: Config, ids: Iterable[ObjectId]) -> FetchError:
    return FetchError(config.root, tuple(found.hex() for found in ids), {channel.name: "it has not got it"})


def _receive_table(state: RepoState, channel: Channel) -> tuple[Config, str, Table]:
    content = bytearray()
    while body := channel.expect(FrameType.TABLE):
        content += body
        if len(content) > CONFIG_LIMIT + DECODED_LIMIT:
            raise StoreFormatError(channel.name, "its table is too large")
    raw, nul, packed = bytes(content).partition(b"\0")
    if not nul:
        raise StoreFormatError(channel.name, "it sends no table behind its config")
    config = parse_config(raw, digest_of(raw))
    if config.algorithm is not state.algorithm:
        raise AlgorithmMismatchError(channel.name, state.algorithm.text, config.algorithm.text)
    return config, digest_of(raw), decode_table(packed, channel.name, algorithm=state.algorithm, blob_sizes=None)


def _absent(state: RepoState, walked: Walked) -> list[ObjectId]:
    ids = list(walked.kinds)
    return [found for found, size in zip(ids, sizes(state, b"".join(ids)), strict=True) if size < 0]


def _receive_members(channel: Channel, receiver: Receiver, entries: Sequence[int], name: str) -> None:
    """Ask for *entries*, and store them as they come.

    Raises:
        FetchDamagedError
    """
    if not entries:
        return
    channel.send(frame(FrameType.WANT, bitmap(list(entries), len(receiver.table))))
    outcome, batch, size = Outcome(), list[tuple[int, bytes | bytearray]](), 0
    left = set(entries)
    while left:
        entry, content, large = _next_member(channel, receiver, left, outcome)
        left.discard(entry)
        if not large:
            batch.append((entry, content))
            size += len(content)
        if batch and (not left or len(batch) >= _BATCH_ITEMS or size >= _BATCH_BYTES):
            receiver.store(batch, outcome)
            batch, size = [], 0
        if outcome.bad:
            raise _damaged(channel, receiver, outcome, name)


def _next_member(
    channel: Channel, receiver: Receiver, left: Iterable[int], outcome: Outcome
) -> tuple[int, bytes | bytearray, bool]:
    """The next object; whether it was large, and has been stored."""
    entry, coding, last, piece = split_member(channel.expect(FrameType.MEMBER))
    if entry not in left or coding not in (Coding.RAW, Coding.ZSTD):
        raise StoreFormatError(channel.name, f"it sends the entry {entry}, which nobody wants")
    if receiver.is_large(entry):
        _take_large(channel, receiver.large(entry, coding), entry, (last, piece), outcome)
        return entry, b"", True
    content = bytearray(piece)
    for more in _more(channel, entry, last):
        content += more
        if receiver.is_large(entry, len(content)):
            raise StoreFormatError(channel.name, f"the entry {entry} is larger than it can be")
    return entry, receiver.unpack(entry, content, coding), False


def _take_large(channel: Channel, large: Large, entry: int, first: tuple[bool, memoryview], outcome: Outcome) -> None:
    try:
        large.write(first[1])
        for piece in _more(channel, entry, first[0]):
            large.write(piece)
        large.finish(outcome)
    finally:
        large.discard()


def _more(channel: Channel, entry: int, last: bool) -> Iterator[memoryview]:
    """The other pieces of a member."""
    while not last:
        number, _, last, piece = split_member(channel.expect(FrameType.MEMBER))
        if number != entry:
            raise StoreFormatError(channel.name, f"the entry {number} begins before {entry} has ended")
        yield piece


def _damaged(channel: Channel, receiver: Receiver, outcome: Outcome, name: str) -> FetchDamagedError:
    entry, reason = next(iter(outcome.bad.items()))
    return FetchDamagedError(name, (f"{receiver.table.key(entry).hex()}…",), {channel.name: reason})
