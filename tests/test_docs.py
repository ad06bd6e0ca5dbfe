"""The pages that are shipped, and README.md: examples run, commands exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from composefs_async.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "composefs_async/docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *PAGES]
NAME = "composefs-async"


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)


def prose(document: Path) -> str:
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


EXAMPLES = [
    pytest.param(code, id=f"{document.stem}-{number}")
    for document in DOCUMENTS
    for number, code in enumerate(blocks(document, "python"), 1)
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs_as_pasted(tmp_path: Path, code: str) -> None:
    (tmp_path / "pasted.py").write_text(code)
    command = [sys.executable, "-W", "error", "pasted.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["pasted.py"]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def of_table(document: Path) -> Iterator[str]:
    """Commands in the columns whose heading is the program's name, where "the same" means the first column."""
    column = 0
    for line in document.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if not line.startswith("|"):
            column = 0
        elif NAME in cells[1:]:
            column = cells.index(NAME)
        elif column:
            cell = cells[column]
            yield from spans(cells[0] if cell == "the same" else cell)


def of_command_lines(document: Path) -> Iterator[str]:
    text = "\n".join(blocks(document, "sh"))
    for line in [*text.splitlines(), *spans(prose(document))]:
        for command in re.findall(rf"(?:^|[|&/] ?){NAME} (.*)", line.strip()):
            yield command.partition("  ")[0]


COMMANDS = sorted({command for document in DOCUMENTS for command in [*of_command_lines(document), *of_table(document)]})


def resolve(command: click.Command, words: list[str], parent: click.Context | None = None) -> None:
    """Parse *words* and run nothing; raise `click.UsageError` for what does not exist."""
    context = click.Context(command, parent=parent, info_name=command.name, **command.context_settings)
    context.allow_interspersed_args = not isinstance(command, click.Group)
    _, rest, _ = command.make_parser(context).parse_args(words)
    if isinstance(command, click.Group):
        if rest:
            _, found, rest = command.resolve_command(context, rest)
            assert found is not None
            resolve(found, rest, context)
        return
    if rest and "--" not in words:
        raise click.UsageError(f"too many arguments: {rest}", context)


def shell_words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>&;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|<>&;"):
            break
        words.append(word)
    return [word for word in words if word != "…"]


@pytest.mark.parametrize("line", COMMANDS)
def test_command_and_its_options_exist(line: str) -> None:
    resolve(app, shell_words(line))


MISTAKES = ["nonsense", "gc --nonsense", "oci nonsense", "--nonsense gc", "oci untag a b", "oci pull --platform"]


@pytest.mark.parametrize("line", MISTAKES)
def test_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(click.UsageError):
        resolve(app, shell_words(line))


def test_commands_are_found_in_the_documents() -> None:
    assert {"oci tags docker://IMAGE", "--repo ./repo init --insecure", "demo"} <= set(COMMANDS)
    assert len(COMMANDS) > 60


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_to_something(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = document.parent / path if path else document
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target
        if document in PAGES:  # which are installed without the files around them
            assert there in PAGES, target


def test_index_has_every_page() -> None:
    index = (ROOT / "composefs_async/docs/index.md").read_text()
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == {page.name for page in PAGES} - {"index.md"}
