"""What writing and reading leave behind: nothing that only the garbage collector would find."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from composefs_async.erofs.reader.tree import image_info, image_to_tree
from composefs_async.erofs.references import image_object_ids
from composefs_async.erofs.writer import build_image
from composefs_async.tree.dumpfile import parse_dump

DUMP = b"""/ 0 40755 3 0 0 0 1.0 - - - security.selinux=label
/directory 0 40755 2 0 0 0 1.0 - - - security.selinux=label
/directory/large 100 100644 1 0 0 0 2.0 - - %(digest)b security.selinux=label user.own=1
/directory/small 2 100644 1 0 0 0 1.0 - xy -
/link 0 @120777 1 0 0 0 1.0 /directory/small - -
""" % {b"digest": b"ab" * 32}


@pytest.fixture
def only_cycles_are_garbage() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize(
    "work", [build_image, image_to_tree, image_object_ids, image_info], ids=lambda work: work.__name__
)
@pytest.mark.usefixtures("only_cycles_are_garbage")
def test_all_memory_goes_back_without_the_garbage_collector(version: int, work: Callable[..., object]) -> None:
    root = parse_dump(DUMP)
    image = build_image(root, version=version)
    gc.collect()
    if work is build_image:
        build_image(root, version=version)
    else:
        work(image)
    assert gc.collect() == 0
