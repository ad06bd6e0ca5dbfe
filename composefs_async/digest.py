"""Digests and the names made of them; no I/O.

Two kinds must not be confused: an `ObjectId` is the fs-verity digest of a file and names an object; a
content digest (``sha256:…``) is a plain hash of bytes, as OCI uses it for blobs, configs and diff_ids.
"""

from __future__ import annotations

import enum
import re
from typing import Self

from .errors import AlgorithmMismatchError, FormatError

__all__ = ["BLOCK_SIZE", "Algorithm", "ObjectId", "check_content_digest", "sha256_content_digest"]

BLOCK_SIZE = 4096  # the only fs-verity block size that composefs uses

_CONTENT_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[A-Za-z0-9=_-]+")
_REGISTERED_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_LOWER_HEX = re.compile(r"[0-9a-f]+")


class Algorithm(enum.Enum):
    """The fs-verity hash algorithm of a repository, always with blocks of 4096 bytes."""

    SHA256 = "sha256"
    SHA512 = "sha512"

    number: int
    """As in struct fsverity_descriptor (linux/fsverity.h, FS_VERITY_HASH_ALG_*)."""
    digest_size: int
    """In bytes."""

    def __init__(self, name: str) -> None:
        self.number = {"sha256": 1, "sha512": 2}[name]
        self.digest_size = {"sha256": 32, "sha512": 64}[name]

    @property
    def text(self) -> str:
        """As meta.json and the command line spell it: ``fsverity-sha512-12``."""
        return f"fsverity-{self.value}-12"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Accepts exactly what composefs-rs accepts (specification of meta.json).

        Raises:
            ValueError: its message is the text that composefs-rs prints.
        """
        if not text.startswith("fsverity-"):
            raise ValueError("algorithm must start with 'fsverity-'")
        name, dash, block = text.removeprefix("fsverity-").rpartition("-")
        if not dash:
            raise ValueError("algorithm must be 'fsverity-<hash>-<lg_blocksize>'")
        if not re.fullmatch(r"\+?[0-9]+", block, re.ASCII) or int(block) > 255:
            raise ValueError(f"invalid lg_blocksize {block!r}")
        if int(block) != 12:
            raise ValueError(f"unsupported lg_blocksize {int(block)} (only 12 is currently supported)")
        if name not in ("sha256", "sha512"):
            raise ValueError(f"unsupported hash algorithm {name!r} (expected sha256 or sha512)")
        return cls(name)


_BY_SIZE = {algorithm.digest_size: algorithm for algorithm in Algorithm}


class ObjectId(bytes):
    """The fs-verity digest of a file, which is the name of an object.

    It is the raw digest (32 or 64 bytes, which tells the algorithm); ``str()`` and ``hex()`` give the
    lower-case hexadecimal form.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        """Make an id of its 32 or 64 raw bytes."""
        if len(raw) not in _BY_SIZE:
            raise ValueError(f"an object id has 32 or 64 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def unpack(cls, raw: bytes, algorithm: Algorithm) -> list[Self]:
        """The ids that stand one behind the other in *raw*, at half the price of making each."""
        size, new = algorithm.digest_size, super().__new__
        return [new(cls, raw[at : at + size]) for at in range(0, len(raw), size)]

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Parse hexadecimal digits of either case, with or without ``sha256:`` / ``sha512:`` before them.

        Raises:
            FormatError: *text* is anything else.
        """
        prefix, colon, digits = text.rpartition(":")
        if len(digits) in (64, 128) and re.fullmatch(r"[0-9a-fA-F]+", digits):
            found = cls(bytes.fromhex(digits))
            if not colon or prefix == found.algorithm.value:
                return found
        raise FormatError(f"not an object id: {text!r}")

    @classmethod
    def from_path(cls, path: str) -> Self:
        """Parse the end of an object's path, ``…/XX/REST``; what stands before it is ignored.

        Raises:
            FormatError: *path* does not end like an object's path.
        """
        head, _, rest = path.rpartition("/")
        if (
            len(rest) in (62, 126)
            and re.fullmatch(r"[0-9a-fA-F]{2}", head[-2:])
            and re.fullmatch(r"[0-9a-fA-F]+", rest)
        ):
            return cls(bytes.fromhex(head[-2:] + rest))
        raise FormatError(f"not the path of an object: {path!r}")

    @property
    def algorithm(self) -> Algorithm:
        """Algorithm that the length of this id belongs to."""
        return _BY_SIZE[len(self)]

    @property
    def path(self) -> str:
        """Path of the object's file below ``objects/``: ``XX/REST``."""
        digits = self.hex()
        return f"{digits[:2]}/{digits[2:]}"

    @property
    def text(self) -> str:
        """The id with the algorithm before it, as the command line prints it: ``sha512:…``."""
        return f"{self.algorithm.value}:{self.hex()}"

    def require(self, algorithm: Algorithm) -> Self:
        """Return itself if it belongs to *algorithm*.

        Raises:
            AlgorithmMismatchError: it does not.
        """
        if len(self) != algorithm.digest_size:
            raise AlgorithmMismatchError(f"object id {self.hex()}", algorithm.value, self.algorithm.value)
        return self

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"ObjectId.from_hex({self.hex()!r})"


def check_content_digest(text: str) -> str:
    """Return *text* if it has the syntax of an OCI content digest, ``algorithm:value``.

    Raises:
        FormatError: it has not, or a registered algorithm has the wrong number of hexadecimal digits.
    """
    algorithm, _, value = text.partition(":")
    length = _REGISTERED_LENGTHS.get(algorithm)
    if not _CONTENT_DIGEST.fullmatch(text) or (length and not (len(value) == length and _LOWER_HEX.fullmatch(value))):
        raise FormatError(f"not a content digest: {text!r}")
    return text


def sha256_content_digest(content: bytes) -> str:
    """The content digest of *content*: ``sha256:…``."""
    import hashlib  # not at the top: it takes longer to import than all the rest

    return f"sha256:{hashlib.sha256(content).hexdigest()}"
