"""Boot entries in trees: of which kinds, where, in which order; and what is refused."""

from __future__ import annotations

import re

import pytest

from composefs_async.boot import EntryText, KernelEntry, TextEntry, UkiEntry, find_entries
from composefs_async.errors import BootError
from composefs_async.tree.walk import find

from .conftest import Content, make_tree, no_reading, pipe

CONF = b"title x\nlinux\t/boot/vmlinuz-7\ninitrd /usr/i1\ninitrd  /usr/i2 \noptions quiet\n"


def test_all_kinds_in_order() -> None:
    root = make_tree(
        {
            "boot/loader/entries/b.conf": CONF,
            "boot/loader/entries/a.conf": b"title y\nefi /boot/EFI/x.efi",
            "boot/loader/entries/readme": b"linux /nowhere\n",
            "boot/vmlinuz-7": b"k",
            "usr/i1": b"1",
            "usr/i2": b"2",
            "boot/EFI/x.efi": b"",
            "boot/EFI/Linux/z.efi": b"",
            "boot/EFI/Linux/a.efi.extra.d/one.addon.efi": b"",
            "boot/EFI/Linux/a.efi": b"",
            "boot/EFI/Linux/readme.txt": "elsewhere",
            "boot/loader/addons/g.addon.efi": b"",
            "usr/lib/modules/6.1/vmlinuz": b"kernel",
            "usr/lib/modules/6.1/initramfs.img": b"initrd",
            "usr/lib/modules/6.1/kernel/x.ko": b"",
            "usr/lib/modules/7.0/7.0.efi": b"",
            "usr/lib/modules/8.0/vmlinuz": b"",
            "usr/lib/modules/8.0/initramfs.img": "elsewhere",
            "usr/lib/modules/readme": b"",
        }
    )
    entries = find_entries(root, no_reading)
    found = [
        (each.name, sorted(each.files))
        if isinstance(each, TextEntry)
        else (each.place, each.path, each.is_addon, each.release)
        if isinstance(each, UkiEntry)
        else (each.release, each.kernel is not None, each.initrd is not None)
        for each in entries
    ]
    assert found == [
        ("a.conf", ["/boot/EFI/x.efi"]),
        ("b.conf", ["/boot/vmlinuz-7", "/usr/i1", "/usr/i2"]),
        ("EFI/Linux", "a.efi", False, None),
        ("EFI/Linux", "a.efi.extra.d/one.addon.efi", True, None),
        ("EFI/Linux", "z.efi", False, None),
        ("loader/addons", "g.addon.efi", True, None),
        ("", "7.0.efi", False, "7.0"),
        ("6.1", True, True),
        ("8.0", True, False),
    ]
    assert isinstance(entries[-2], KernelEntry)
    assert entries[-2].kernel is find(root, b"usr/lib/modules/6.1/vmlinuz")


def test_a_tree_without_any() -> None:
    assert find_entries(make_tree({"usr": None}), no_reading) == []


@pytest.mark.parametrize(
    ("entries", "what", "words"),
    [
        ({"boot/loader/entries/a.conf": None}, "/boot/loader/entries/a.conf", "not a regular file"),
        ({"boot/loader/entries/a.conf": "b"}, "/boot/loader/entries/a.conf", "symbolic link"),
        ({"boot/loader/entries/a.conf": b"linux /x\n"}, "/boot/loader/entries/a.conf", "'/x', which is not in"),
        ({"boot/loader/entries/a.conf": b"linux /x", "x": "y"}, "/x", "symbolic link"),
        ({"boot/loader/entries/a.conf": b"title \xff"}, "/boot/loader/entries/a.conf", "not UTF-8"),
        ({"boot/loader/entries": b""}, "/boot/loader/entries", "no directory"),
        ({"boot": "elsewhere"}, "/boot/loader/entries", "no directory"),
        ({"boot/EFI/Linux/a.efi": "b"}, "/boot/EFI/Linux/a.efi", "symbolic link"),
        ({"usr/lib/modules/1/a.efi": pipe()}, "/usr/lib/modules/1/a.efi", "not a regular file"),
    ],
)  # fmt: skip
def test_what_is_refused(entries: dict[str, Content], what: str, words: str) -> None:
    with pytest.raises(BootError, match=re.escape(words)) as caught:
        find_entries(make_tree(entries), no_reading)
    assert caught.value.what == what


def test_entry_files_are_changed_line_by_line() -> None:
    text = EntryText("# note\ntitle  A B \nlinux /a\noptions x=1 y\ninitrd /b\noptions z\nlinuxes /c\nbare")
    assert (text.values("title"), text.options()) == (["A B "], "x=1 y z")
    assert text.files() == [("linux", "/a"), ("initrd", "/b")]
    text.replace("linux", "/a", "/id/a")
    text.set_options("x=2")
    expected = b"# note\ntitle  A B \nlinux /id/a\noptions x=2\ninitrd /b\nlinuxes /c\nbare\n"
    assert text.encode() == expected
    empty = EntryText("")
    empty.set_options("a")
    assert empty.encode() == b"options a\n"
