"""Labels of trees: where the policy is, what labels hard links get, and what is emptied before."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from composefs_async import fsverity
from composefs_async.boot import Policy, find_policy, label_tree, remove_labels, transform_for_boot
from composefs_async.boot.reading import directory_reader
from composefs_async.boot.transform import Nanoseconds
from composefs_async.boot.trees import directory_boot_tree
from composefs_async.digest import Algorithm
from composefs_async.erofs.writer import build_image
from composefs_async.errors import BootError, IntegrityError, SELinuxPolicyError
from composefs_async.tree import Directory, ExternalFile, write_dump
from composefs_async.tree.inodes import make_xattrs
from composefs_async.tree.walk import find

from .conftest import ENGINES, POLICY, VECTORS, Content, labels_of, make_tree, no_reading, pipe, sparse, with_policy

OS: dict[str, Content] = {"usr/bin/sh": b"", "boot/vmlinuz": b"", "sysroot/x": b"", "run": None}
DIRS: dict[str, Content] = {"boot": None, "sysroot": None, "usr": None}

B2_IDS = {
    (Algorithm.SHA256, 1): "a3d8b2f7c4cff612763daf103150864a4e62c012df724c86ad6f7ecf64cfc218",
    (Algorithm.SHA256, 2): "51d3acb688cac5c07d246ba4b557217df434490a646eca9a6bf8289dc41eab02",
    (Algorithm.SHA512, 1): "96974c160bc7503a2dcae23443d308189b46035821848b5c27944994e5c8f297"
    "c98f4e15144c111ac54f3c4df11815fa83ec0c642454262174b250b69373424f",
    (Algorithm.SHA512, 2): "fc2190a3e09436a32055c98bf4513116bf18a24c69c2103b4c629db21767c248"
    "284903d0183cb30cfdd09bf63fb3d9b8be13e8dc77efb457fdb023c3843384a5",
}


def test_b2_has_the_digests_of_cfsctl(b2: Path) -> None:
    found = {}
    for algorithm, version in B2_IDS:
        image = build_image(directory_boot_tree(b2, algorithm), algorithm, version)
        found[algorithm, version] = fsverity.digest(image, algorithm).hex()
    assert found == B2_IDS


def test_b2_has_the_tree_of_cfsctl(b2: Path) -> None:
    expected = (VECTORS / "b2.dump").read_bytes()
    assert b"".join(write_dump(directory_boot_tree(b2, Algorithm.SHA256))) == expected


# -- the policy --------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_every_kind_of_file_is_labelled(engine: str) -> None:
    lines = "/.* any\n/f.* -- file\n/d.* -d dir\n/l -l link\n/p -p pipe\n/n <<none>>\n/ -d root"
    entries = with_policy({**DIRS, "f": b"", "f2": b"x", "d/f": b"", "l": "f", "p": pipe(), "n": b""}, contexts=lines)
    root = make_tree(entries)
    for name in (b"n", b"f"):
        root.children[name].xattrs = make_xattrs({b"security.selinux": b"old", b"user.x": b"y"})
    found = transform_for_boot(root, no_reading, engine=engine)  # type: ignore[arg-type]
    assert found is not None
    labels = labels_of(root)
    asked = ["/", "/f", "/f2", "/d", "/d/f", "/l", "/p", "/n", "/etc", f"/{POLICY}/file_contexts"]
    assert [labels[path] for path in asked] == ["root", "file", "file", "dir", "any", "link", "pipe", "-", "any", "any"]
    assert root.children[b"n"].xattrs == make_xattrs({b"user.x": b"y"})
    assert root.children[b"f"].xattrs == make_xattrs({b"security.selinux": b"file", b"user.x": b"y"})


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"etc": None},
        {"etc/selinux/other": b""},
        {"etc/selinux/config": sparse(100)},
        {"etc/selinux/config": b""},
        {"etc/selinux/config": b"#SELINUXTYPE=t\nSELINUX=enforcing\nSELINUXTYPE\nX SELINUXTYPE=t\n"},
    ],
    ids=["no etc", "no selinux", "no config", "sparse", "empty", "no type"],
)
def test_without_a_policy_labels_are_removed(entries: dict[str, Content]) -> None:
    root = make_tree({**DIRS, "f": b"", **entries})
    root.xattrs = root.children[b"f"].xattrs = make_xattrs({b"security.selinux": b"old", b"user.x": b"y"})
    assert transform_for_boot(root, no_reading) is None
    assert [inode.xattrs for inode in (root, root.children[b"f"])] == [make_xattrs({b"user.x": b"y"})] * 2


@pytest.mark.parametrize(
    "config",
    [
        b"SELINUXTYPE=t",
        b"SELINUX=disabled\n selinuxType\t=\x20t \nSELINUXTYPE=other\n",
        "\u00a0SELINUXTYPE\u2003=t\u3000\r\n".encode(),
        b"SELINUXTYPE=/t/\n",
    ],
)
def test_the_first_type_in_the_config_counts(config: bytes) -> None:
    root = make_tree(with_policy({**DIRS, "etc/selinux/config": config}, contexts="/.* any"))
    assert find_policy(root, no_reading) is not None


LINK = "/etc/elsewhere"


@pytest.mark.parametrize(
    ("entries", "name", "words"),
    [
        ({"etc": LINK}, "/etc", "symbolic link"),
        ({"etc/selinux": LINK}, "/etc/selinux", "symbolic link"),
        ({"etc/selinux": b""}, "/etc/selinux", "not a directory"),
        ({"etc/selinux/config": LINK}, "/etc/selinux/config", "symbolic link"),
        ({"etc/selinux/config": None}, "/etc/selinux/config", "not a regular file"),
        ({"etc/selinux/config": pipe()}, "/etc/selinux/config", "not a regular file"),
        ({"etc/selinux/config": b"SELINUXTYPE=\xff"}, "/etc/selinux/config", "not UTF-8"),
        ({"etc/selinux/config": b'SELINUXTYPE="t"'}, '/etc/selinux/"t"', "no such directory"),
        ({"etc/selinux/config": b"SELINUXTYPE=t # no"}, "/etc/selinux/t # no", "no such directory"),
        ({"etc/selinux/config": b"SELINUXTYPE=../t"}, "/etc/selinux/config", "no path inside"),
        ({"etc/selinux/t": LINK}, "/etc/selinux/t", "symbolic link"),
        ({"etc/selinux/t/contexts": LINK}, "/etc/selinux/t/contexts", "symbolic link"),
        ({POLICY: LINK}, f"/{POLICY}", "symbolic link"),
        ({POLICY: None}, f"/{POLICY}/file_contexts", "no such file"),
        ({f"{POLICY}/file_contexts": LINK}, f"/{POLICY}/file_contexts", "symbolic link"),
        ({f"{POLICY}/file_contexts.subs": LINK}, f"/{POLICY}/file_contexts.subs", "symbolic link"),
        ({f"{POLICY}/file_contexts.local": None}, f"/{POLICY}/file_contexts.local", "not a regular file"),
        ({f"{POLICY}/file_contexts": sparse(1)}, f"/{POLICY}/file_contexts", "no such file"),
    ],
)
def test_what_is_no_plain_file_or_directory_is_refused_by_name(
    entries: dict[str, Content], name: str, words: str
) -> None:
    root = make_tree({**with_policy({}, contexts="/.* any"), **entries})
    with pytest.raises(SELinuxPolicyError, match=re.escape(words)) as caught:
        find_policy(root, no_reading)
    assert caught.value.name == name


def test_files_that_are_too_large_are_not_read() -> None:
    large = ExternalFile(0o100644, 1, 0, 0, 0, (), (64 << 20) + 1, b"x" * 32)
    root = make_tree(with_policy({f"{POLICY}/file_contexts": large}))
    with pytest.raises(SELinuxPolicyError, match="more than the limit"):
        find_policy(root, no_reading)


def test_a_directory_is_read_below_itself_only(b2: Path, tmp_path: Path) -> None:
    outside = tmp_path / "config"
    outside.write_text("SELINUXTYPE=t\n")
    config = b2 / "etc/selinux/config"
    config.unlink()
    config.symlink_to(outside)
    with pytest.raises(SELinuxPolicyError, match="/etc/selinux/config: it is a symbolic link, which is not followed"):
        directory_boot_tree(b2)


def test_a_policy_that_changes_meanwhile_is_refused(b2: Path) -> None:
    path, content = f"/{POLICY}/file_contexts".encode(), (b2 / POLICY / "file_contexts").read_bytes()
    read = directory_reader(b2)
    inode = ExternalFile(0o100644, 1, 0, 0, 0, (), len(content), fsverity.digest(content, Algorithm.SHA256))
    assert read(path, inode) == content
    for changed in (content[:-1], content + b"\n", b"!" + content[1:]):
        (b2 / POLICY / "file_contexts").write_bytes(changed)
        with pytest.raises(IntegrityError, match="changed while it was read"):
            read(path, inode)
    (b2 / POLICY / "file_contexts").unlink()
    (b2 / POLICY / "file_contexts").symlink_to(b2 / "etc/selinux/config")
    with pytest.raises(OSError, match="file_contexts"):
        read(path, inode)


# -- hard links --------------------------------------------------------------------------------


def test_a_name_with_another_label_gets_a_file_of_its_own() -> None:
    entries = with_policy({**DIRS, "b/f": b"x"}, contexts="/.* any\n/b/.* b\n/c/.* c\n/a-z any2")
    root = make_tree(entries)
    shared = find(root, b"b/f")
    assert shared is not None
    for path in (b"a-z", b"a/f", b"b/g", b"c/f", b"c/g", b"d"):
        *above, name = path.split(b"/")
        place = root
        for each in above:
            place = place.children.setdefault(each, Directory(0o40755, 2, 0, 0, 0))  # type: ignore[assignment]
        place.children[name] = shared
    transform_for_boot(root, no_reading)
    paths = (b"a/f", b"a-z", b"b/f", b"b/g", b"c/f", b"c/g", b"d")
    found = {path: find(root, path) for path in paths}
    # In depth-first order "a/f" comes before "a-z", and decides.
    assert [path for path in paths if found[path] is found[b"a/f"]] == [b"a/f", b"d"]
    assert len({id(inode) for inode in found.values()}) == 6
    assert {path: inode and inode.nlink for path, inode in found.items()} == {
        path: 2 if path in (b"a/f", b"d") else 1 for path in paths
    }
    labels = labels_of(root)
    assert [labels[f"/{path.decode()}"] for path in paths] == ["any", "any2", "b", "b", "c", "c", "any"]


# -- emptied directories -----------------------------------------------------------------------


@pytest.mark.parametrize(("nanoseconds", "expected"), [("keep", 7_000_000_003), ("usr", 7_000_000_009)])
def test_boot_and_sysroot_are_emptied_and_get_the_time_of_usr(nanoseconds: Nanoseconds, expected: int) -> None:
    root = make_tree({**OS, "var/log/f": b""})
    root.children[b"usr"].mtime_ns = 7_000_000_009
    boot, sysroot = root.children[b"boot"], root.children[b"sysroot"]
    for each in (boot, sysroot):
        each.mtime_ns, each.mode, each.uid = 1_000_000_003, 0o40700, 7
    transform_for_boot(root, no_reading, nanoseconds=nanoseconds)
    assert [(each.mtime_ns, each.mode, each.uid, each.nlink) for each in (boot, sysroot)] == [
        (expected, 0o40700, 7, 2)
    ] * 2
    assert sorted(labels_of(root)) == ["/", "/boot", "/run", "/sysroot", "/usr", "/usr/bin", "/usr/bin/sh", "/var",
                                       "/var/log", "/var/log/f"]  # fmt: skip


def test_links_into_emptied_directories_count_no_more() -> None:
    root = make_tree(OS)
    boot = root.children[b"boot"]
    assert isinstance(boot, Directory)
    root.children[b"kernel"] = boot.children[b"vmlinuz"]
    transform_for_boot(root, no_reading)
    assert root.children[b"kernel"].nlink == 1


@pytest.mark.parametrize("name", ["usr", "boot", "sysroot"])
@pytest.mark.parametrize(("content", "words"), [("x", "symbolic link"), (b"", "no directory")])
def test_directories_that_a_bootable_image_needs(name: str, content: Content, words: str) -> None:
    entries: dict[str, Content] = {each: None for each in ("usr", "boot", "sysroot") if each != name}
    with pytest.raises(BootError, match=f"/{name}: there is no such directory"):
        transform_for_boot(make_tree(entries), no_reading)
    with pytest.raises(BootError, match=f"/{name}: .*{words}"):
        transform_for_boot(make_tree({**entries, name: content}), no_reading)


def test_the_running_root_is_refused() -> None:
    with pytest.raises(BootError, match="running system"):
        directory_boot_tree("/")


def test_labels_can_be_made_and_removed_alone(debian_policy: dict[str, bytes]) -> None:

    root = make_tree({"usr/bin/ls": b"", "lib": "usr/lib", "etc/shadow": b"", "var/run/x": pipe()})
    label_tree(root, Policy.from_files(debian_policy))
    assert labels_of(root) == {
        "/": "system_u:object_r:root_t:s0",
        "/etc": "system_u:object_r:etc_t:s0",
        "/etc/shadow": "system_u:object_r:shadow_t:s0",
        "/lib": "system_u:object_r:lib_t:s0",
        "/usr": "system_u:object_r:usr_t:s0",
        "/usr/bin": "system_u:object_r:bin_t:s0",
        "/usr/bin/ls": "system_u:object_r:bin_t:s0",
        "/var": "system_u:object_r:var_t:s0",
        "/var/run": "system_u:object_r:var_run_t:s0",
        "/var/run/x": "-",
    }
    remove_labels(root)
    assert set(labels_of(root).values()) == {"-"}


def test_a_policy_of_a_tree_in_memory() -> None:
    found = Policy.from_tree(make_tree(with_policy({}, contexts="/.* any\n/d -d dir")))
    assert found is not None
    assert (found.label(b"/x", "-"), found.label(b"/d", "d")) == (b"any", b"dir")
    assert Policy.from_tree(make_tree({"etc": None})) is None
    outside = ExternalFile(0o100644, 1, 0, 0, 0, (), 100, b"x" * 32)
    with pytest.raises(SELinuxPolicyError, match="not in the tree"):
        Policy.from_tree(make_tree(with_policy({f"{POLICY}/file_contexts": outside})))
