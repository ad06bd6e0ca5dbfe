"""What the code must keep to: layers import downwards only, and each `x_async` has the signature of its `x`."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import composefs_async
from composefs_async.boot import check as boot_check
from composefs_async.boot import images as boot_images
from composefs_async.boot import prepare as boot_prepare
from composefs_async.boot import sealing as boot_sealing
from composefs_async.boot import trees as boot_trees
from composefs_async.oci import catalogue, erofs_images, image_fsck, image_upgrade, layer_sizes, reading, stored_layers
from composefs_async.repository import Repository

PACKAGE = Path(composefs_async.__file__).parent

# From the bottom to the top; a module imports from its own group and from those before it.
LAYERS = [
    ["errors"],
    ["digest"],
    ["findings", "naming"],
    ["results"],
    ["progress", "_native", "_zstd", "_log"],
    ["fsverity", "splitstream", "tree", "erofs"],
    ["_sys"],
    ["_repo"],
    ["_maintenance"],
    ["_aio"],
    ["repository"],
    # The registry knows no repository: of `oci` it uses the documents alone, and sources there use it.
    ["oci", "registry"],
    ["boot"],
    ["testing"],
    ["exchange"],
    ["fleet"],
    ["cli", "__init__", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

EVENT_LOOP = {"_aio", "repository", "oci", "registry", "boot", "exchange", "fleet", "testing", "cli"}
RESTRICTED = {
    "anyio": EVENT_LOOP,
    "asyncio": set[str](),
    "trio": set[str](),
    "uvloop": set[str](),
    "threading": {"_repo", "_maintenance", "_aio", "exchange"},
    "ctypes": {"_sys"},
    "fcntl": {"_sys"},
    "httpcore2": {"registry"},
    "distributed": {"fleet"},
    "click": {"cli"},
    "rich": {"cli"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> list[tuple[str, int]]:
    """Absolute names of what a module imports while it runs, and the line."""
    package = ["composefs_async", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            found += [(".".join([*stem, alias.name]), node.lineno) for alias in node.names]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_the_layers(path: Path) -> None:
    wrong = []
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "composefs_async" and len(parts) > 1:
            target = parts[1] if parts[1] in LEVEL else "__init__"
            if LEVEL[target] > LEVEL[layer_of(path)]:
                wrong.append(f"line {line}: {name}")
        elif layer_of(path) not in RESTRICTED.get(parts[0], {layer_of(path)}):
            wrong.append(f"line {line}: {parts[0]} belongs in {sorted(RESTRICTED[parts[0]]) or 'no module'}")
    assert wrong == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_environment_is_read_in_few_places(path: Path) -> None:
    homes = {Path("_repo/opening.py"), Path("registry/access.py"), Path("oci/sources/environment.py")}
    allowed = layer_of(path) in {"cli", "_native"} or path.relative_to(PACKAGE) in homes
    reads = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "attr", "") == "environ"]
    assert allowed or reads == []


TWINS = [
    (owner, name.removesuffix("_async"))
    for owner in (
        Repository,
        boot_check,
        boot_images,
        boot_prepare,
        boot_sealing,
        boot_trees,
        catalogue,
        image_fsck,
        image_upgrade,
        erofs_images,
        layer_sizes,
        reading,
        stored_layers,
    )
    for name in sorted(dir(owner))
    if name.endswith("_async")
]


@pytest.mark.parametrize(("owner", "name"), TWINS, ids=[name for _, name in TWINS])
def test_each_async_function_has_the_parameters_of_its_twin(owner: object, name: str) -> None:
    sync, twin = (inspect.signature(getattr(owner, each)) for each in (name, f"{name}_async"))
    assert [(p.name, p.kind, p.default) for p in twin.parameters.values()] == [
        (p.name, p.kind, p.default) for p in sync.parameters.values()
    ]


def test_every_module_says_what_it_owns() -> None:
    silent = [str(path) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


LONGEST = 400
LONGER = {"errors.py"}
"""One page that has every exception, under the tree that shows them."""


def test_no_module_is_longer_than_a_room() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name for name, length in lengths.items() if length > LONGEST} == LONGER


MOST_CODE = 45
"""Lines of code in a function, without its parameters, docstring, comments and empty lines."""


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    found = (line.strip() for line in lines[body[0].lineno - 1 : function.end_lineno])
    return sum(bool(line) and not line.startswith("#") for line in found)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    lines = path.read_text().splitlines()
    functions = [
        node
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [each.name for each in functions if lines_of_code(each, lines) > MOST_CODE] == []
