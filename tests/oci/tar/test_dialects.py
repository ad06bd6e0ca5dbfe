"""Members as old and odd writers made them: read as GNU tar, bsdtar, Go and Python read them."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile

import pytest

from composefs_async.oci.tar import members, split
from composefs_async.oci.tar.members import EntryType, TarEntry
from composefs_async.oci.tar.split import TarSplitter

USTAR, GNU, V7 = b"ustar\x0000", b"ustar  \x00", bytes(8)
ODD_USTAR = [b"ustar\0" + version for version in (b"\0\0", b"  ", b" \0", b"0\0", b"01", b"\xff\xff")]
ODD_GNU = [b"ustar " + version for version in (b"\0\0", b"00", b"  ", b"0 ")]
DIRECTORY, FILE = EntryType.DIRECTORY, EntryType.FILE


@pytest.fixture(params=["native", "python", "parser"])
def reading(request, monkeypatch):
    """The fast loops, those in Python, and none."""
    if request.param != "native":
        monkeypatch.setattr(split, "NATIVE", False)
        monkeypatch.setattr(members, "NATIVE", False)
    if request.param == "parser":
        monkeypatch.setattr(TarSplitter, "_plain_members", lambda self, view, at, end: at)
        monkeypatch.setattr(members.EntryReader, "_plain_members", lambda self, data, at, *others: (data, at, None))


def members_of(tar, archive: bytes) -> list[TarEntry]:
    """Also behind a good member and before one, which must be found again."""
    found = tar.entries(tar.member(b"before", b"x" * 65) + archive + tar.member(b"after", b"y" * 70) + tar.end, 700)
    assert (found[0].path, found[-1].path, found[-1].size) == (b"before", b"after", 70)
    return found[1:-1]


def difference(archive: bytes) -> str:
    splitter = TarSplitter()
    splitter.feed(archive, final=True)
    return splitter.difference


# -- dialects ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("magic", [USTAR, GNU, V7, *ODD_USTAR, *ODD_GNU], ids=repr)
def test_extensions_count_in_every_dialect(tar, magic):
    archive = tar.pax((b"path", b"from pax")) + tar.header(b"a", magic=magic)
    archive += tar.member(b"p", tar.record(b"mtime", b"7.5"), b"x", magic=magic) + tar.header(b"b", magic=magic)
    archive += tar.member(b"l", b"n" * 120 + b"\0", b"L", magic=magic) + tar.member(b"c", b"z" * 66, magic=magic)
    archive += tar.member(b"l", b"t" * 120, b"K", magic=magic) + tar.header(b"d", b"2", link=b"t", magic=magic)
    assert [(entry.path, entry.mtime_ns, entry.size, entry.link) for entry in members_of(tar, archive)] == [
        (b"from pax", 0, 0, b""),
        (b"b", 7_500_000_000, 0, b""),
        (b"n" * 120, 0, 66, b""),
        (b"d", 0, 0, b"t" * 120),
    ]


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("magic", [USTAR, *ODD_USTAR], ids=repr)
def test_prefix_counts_in_ustar_of_any_version(tar, magic):
    archive = tar.member(b"name", b"x" * 65, magic=magic, prefix=b"some/where")
    assert [(entry.path, entry.size) for entry in members_of(tar, archive)] == [(b"some/where/name", 65)]
    assert bool(difference(archive)) == (magic != USTAR)


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("magic", [GNU, V7, *ODD_GNU, b"ustar\x01\0\0", b"USTAR\x0000"], ids=repr)
def test_there_is_no_prefix_in_other_dialects(tar, magic):
    """GNU tar has times and maps of sparse files there."""
    archive = tar.header(b"name", magic=magic, prefix=b"00000000001")
    assert [entry.path for entry in members_of(tar, archive)] == [b"name"]
    assert difference(archive) == ""


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("kind", [b"3", b"4"])
@pytest.mark.parametrize("magic", [USTAR, GNU, V7, *ODD_USTAR, *ODD_GNU], ids=repr)
def test_devices_have_numbers_in_all_dialects_that_hold_them(tar, kind, magic):
    (entry,) = members_of(tar, tar.header(b"null", kind, magic=magic, device=(b"0000001\0", b"0000003\0")))
    assert (entry.type.value, entry.rdev) == (EntryType(entry.type).value, 0 if magic == V7 else 0x103)


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("claimed", [0, 1, 64, 65, 5000])
@pytest.mark.parametrize(
    ("kind", "magic", "expected"),
    [
        (b"\0", V7, DIRECTORY),
        (b"0", V7, DIRECTORY),
        (b"7", V7, DIRECTORY),
        (b"\0", USTAR, DIRECTORY),
        (b"\0", GNU, DIRECTORY),
        (b"\0", ODD_USTAR[0], DIRECTORY),
        (b"0", USTAR, FILE),
        (b"0", GNU, FILE),
        (b"0", ODD_USTAR[0], FILE),
        (b"5", V7, DIRECTORY),
    ],
    ids=repr,
)
def test_old_members_whose_name_ends_in_a_slash_are_directories(tar, kind, magic, expected, claimed):
    data = b"x" * claimed if expected is FILE else b""
    archive = tar.member(b"usr/bin/", data, kind, magic=magic, size=claimed)
    assert [(entry.path, entry.type, entry.size) for entry in members_of(tar, archive)] == [
        (b"usr/bin", expected, len(data))
    ]
    assert bool(difference(archive)) == (expected is DIRECTORY and (kind != b"5" or claimed > 0))


@pytest.mark.usefixtures("reading")
def test_it_is_the_name_from_an_extension_that_ends_in_a_slash(tar):
    archive = tar.member(b"l", b"long/\0", b"L") + tar.header(b"a", b"\0", size=99)
    archive += tar.pax((b"path", b"pax/")) + tar.header(b"a", b"\0", size=99)
    archive += tar.pax((b"path", b"file")) + tar.member(b"a/", b"x", b"\0")
    assert [(entry.path, entry.type) for entry in members_of(tar, archive)] == [
        (b"long", DIRECTORY),
        (b"pax", DIRECTORY),
        (b"file", FILE),
    ]


# -- values ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("magic", [USTAR, GNU, V7], ids=repr)
@pytest.mark.parametrize("name", [b"\xe9", b"\xff" * 100, b"\x80" + b"a" * 40, b"plain"])
def test_checksums_of_signed_bytes_count(tar, magic, name):
    unsigned = sum(tar.header(name, magic=magic, size=65, checksum=b" " * 8))
    field = b"%06o\0 " % (unsigned - 256 * sum(byte >> 7 for byte in name))
    archive = tar.member(name, b"x" * 65, magic=magic, checksum=field)
    assert [(entry.path, entry.size) for entry in members_of(tar, archive)] == [(name, 65)]
    assert difference(archive) == ""


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("key", [b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"])
@pytest.mark.parametrize("before", [b"", b"9"], ids=["alone", "behind another"])
def test_empty_records_leave_what_the_header_says(tar, key, before):
    records = [(key, before), (key, b"")] if before else [(key, b"")]
    header = {"size": 70, "uid": 5, "gid": 6, "mtime": 7, "link": b"t"}
    archive = tar.pax(*records) + tar.member(b"name", b"x" * 70, **header)
    archive += tar.pax(*records) + tar.header(b"link", b"2", **header)
    assert [entry._replace(content=None, offset=0) for entry in members_of(tar, archive)] == [
        (b"name", FILE, 0o644, 5, 6, 70, 7 * 10**9, 0, b"", (), None, 0),
        (b"link", EntryType.SYMLINK, 0o644, 5, 6, 0, 7 * 10**9, 0, b"t", (), None, 0),
    ]


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("data", [b"long", b"long\0", b"long\0\0\0", b"long\0junk", b"long\0junk\0"])
def test_long_names_end_at_the_first_nul(tar, data):
    archive = tar.member(b"l", data, b"L") + tar.member(b"l", data, b"K") + tar.header(b"a", b"2", link=b"t")
    assert [(entry.path, entry.link) for entry in members_of(tar, archive)] == [(b"long", b"long")]


@pytest.mark.usefixtures("reading")
def test_empty_long_names_leave_what_the_header_says(tar):
    archive = tar.member(b"l", b"\0", b"L") + tar.member(b"l", b"", b"K")
    archive += tar.header(b"a", b"2", link=b"t", prefix=b"p")
    assert [(entry.path, entry.link) for entry in members_of(tar, archive)] == [(b"p/a", b"t")]


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"-1", 0xFFFFFFFF), (b"-2", 0xFFFFFFFE), (b"-0", 0), (b"4294967295", 0xFFFFFFFF), (b"4294967297", 1)],
)
def test_owners_are_numbers_of_32_bits(tar, value, expected):
    (entry,) = members_of(tar, tar.pax((b"uid", value), (b"gid", value)) + tar.header())
    assert (entry.uid, entry.gid) == (expected, expected)


# -- other programs ----------------------------------------------------------------------------

KINDS = {"d": DIRECTORY, "-": FILE, "l": EntryType.SYMLINK, "h": EntryType.HARDLINK, "p": EntryType.FIFO}
KINDS |= {"c": EntryType.CHARACTER_DEVICE, "b": EntryType.BLOCK_DEVICE}


def listing(program: str, archive: bytes) -> list[tuple[bytes, EntryType]]:
    """As the real program sees the archive; hard links have their own letter with both."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on PATH")
    options = ["-t", "-v", "-f", "-", "--numeric-owner"]
    run = subprocess.run(
        [program, *options],
        check=False,
        input=archive,
        capture_output=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    assert run.returncode == 0, run.stderr
    found = []
    for line in run.stdout.splitlines():
        text, _, link = line.partition(b" link to ")
        name = text.partition(b" -> ")[0].split(b" ")[-1]
        kind = "h" if link else chr(line[0])
        found.append((name.replace(b"\\351", b"\xe9").strip(b"/"), KINDS[kind]))
    return found


def variants(tar) -> dict[str, bytes]:
    """Archives that all programs read alike."""
    made = {}
    for name, magic in {"ustar": USTAR, "gnu": GNU, "ustar of version NUL": ODD_USTAR[0]}.items():
        made[f"{name}, link with a size"] = tar.header(b"l", b"2", link=b"t", size=1, magic=magic)
        made[f"{name}, modes"] = tar.header(b"m", mode=0o120644, magic=magic) + tar.header(b"n/", b"5", mode=0o100755)
        made[f"{name}, long name"] = tar.member(b"l", b"n" * 120 + b"\0", b"L", magic=magic) + tar.header(b"x")
        made[f"{name}, pax"] = tar.pax((b"path", b"p" * 120)) + tar.header(b"x", magic=magic)
        made[f"{name}, device"] = tar.header(b"null", b"3", device=(b"0000001\0", b"0000003\0"), magic=magic)
        made[f"{name}, fifo"] = tar.header(b"f", b"6", magic=magic)
        made[f"{name}, old directory"] = tar.header(b"d/", b"\0", magic=magic)
    made["ustar, prefix"] = tar.header(b"n", prefix=b"p/q")
    made["odd ustar, prefix"] = tar.header(b"n", prefix=b"p/q", magic=ODD_USTAR[0])
    made["v7, directory"] = tar.header(b"d/", b"\0", magic=V7)
    made["v7, file"] = tar.member(b"f", b"x" * 70, b"\0", magic=V7)
    unsigned = sum(tar.header(b"\xe9", checksum=b" " * 8))
    made["signed sum"] = tar.header(b"\xe9", checksum=b"%06o\0 " % (unsigned - 256))
    made["no size"] = tar.pax((b"size", b"")) + tar.member(b"a", b"x" * 70)
    return made


# Where one is of another opinion than the rest.  GNU tar takes what a link claims for data.
EXCEPT = {
    "tar": {f"{name}, link with a size" for name in ("ustar", "gnu", "ustar of version NUL")} | {"no size"},
    "bsdtar": set[str](),
    "tarfile": {"no size"},
}


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_other_programs_list_the_same_members(tar, program):
    for name, archive in variants(tar).items():
        whole = archive + tar.member(b"after", b"y" * 70) + tar.end
        if name not in EXCEPT[program]:
            assert listing(program, whole) == [(entry.path, entry.type) for entry in tar.entries(whole)], name


def test_tarfile_finds_the_same_members(tar):
    kinds = {
        tarfile.DIRTYPE: DIRECTORY,
        tarfile.SYMTYPE: EntryType.SYMLINK,
        tarfile.CHRTYPE: EntryType.CHARACTER_DEVICE,
    }
    kinds |= {tarfile.REGTYPE: FILE, tarfile.AREGTYPE: FILE, tarfile.FIFOTYPE: EntryType.FIFO}
    for name, archive in variants(tar).items():
        whole = archive + tar.member(b"after", b"y" * 70) + tar.end
        if name not in EXCEPT["tarfile"]:
            with tarfile.open(fileobj=io.BytesIO(whole), encoding="utf-8", errors="surrogateescape") as reference:
                found = [
                    (info.name.encode("utf-8", "surrogateescape").strip(b"/"), kinds[info.type]) for info in reference
                ]
            assert found == [(entry.path, entry.type) for entry in tar.entries(whole)], name
