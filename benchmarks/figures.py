"""Tables and plots of README.md, made from the figures in ``results/``.

Owns the form of those files, Markdown and SVG.  Does not measure anything: `imports.py` and `upkeep.py` do.

    python benchmarks/figures.py                                # write README's tables, and the plots
    python benchmarks/figures.py --take imports imports.json    # first take what imports.py --json wrote

A file has ``provenance`` (where the figures come from), ``title``, ``heading`` (of the rows), the ``reference`` that
ratios are of, ``programs``, and ``rows``: for each program the best seconds, how many times as fast as the reference
that is, and where it is known the slowest.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"

BAR, GAP, LEFT, WIDTH, RIGHT = 14, 12, 300, 480, 110
COLOURS = ("#8a8f98", "#c9a227", "#1f6feb", "#8db7f5")
OURS = {"ours": "ours", "ours, python": "ours, pure Python"}


# -- taking what a benchmark has written ---------------------------------------------------------


def take_imports(raw: dict[str, Any]) -> dict[str, Any]:
    """Condense what `imports.py` wrote: a row for each input, and one for importing what is there."""
    rows = []
    programs: dict[str, None] = {}
    for name, found in raw.items():
        if name == "provenance":
            continue
        for suffix, label in (("", name), (", again", f"{name} again, when it is there")):
            runs = {key.removesuffix(suffix): each for key, each in found["runs"].items() if _is_row(key, suffix)}
            cells = {OURS.get(key, key): _cell(each, runs.get("cfsctl")) for key, each in runs.items()}
            programs |= dict.fromkeys(cells)
            rows += [{"name": label, "cells": cells}] if cells else []
    return {
        "provenance": raw["provenance"],
        "title": "Whole imports, seconds",
        "heading": "input",
        "reference": "cfsctl",
        "programs": [*programs],
        "rows": rows,
    }


def take_upkeep(raw: dict[str, Any]) -> dict[str, Any]:
    """Condense what `upkeep.py` wrote."""
    rows = []
    for name, costs in raw["costs"].items():
        theirs = [costs["cfsctl"]] if "cfsctl" in costs else None
        order = sorted(costs, key=lambda program: program == "ours")
        rows.append({"name": name, "cells": {program: _cell([costs[program]], theirs) for program in order}})
    return {
        "provenance": raw["provenance"],
        "title": f"{raw['objects']:,} objects of which half are garbage, seconds",
        "heading": "work",
        "reference": "cfsctl",
        "programs": ["cfsctl", "ours"],
        "rows": rows,
    }


def _is_row(key: str, suffix: str) -> bool:
    return key.endswith(suffix) if suffix else not key.endswith(", again")


def _cell(runs: list[dict[str, float]], reference: list[dict[str, float]] | None) -> dict[str, float]:
    best, worst = (choose(run["seconds"] for run in runs) for choose in (min, max))
    cell = {"seconds": round(best, 3)} | ({"slowest": round(worst, 3)} if len(runs) > 1 else {})
    if reference is not None and reference != runs:
        cell["ratio"] = round(min(run["seconds"] for run in reference) / best, 2)
    return cell


# -- Markdown ------------------------------------------------------------------------------------


def table(figures: dict[str, Any]) -> str:
    """The rows as a Markdown table; in brackets how many times as fast as the reference."""
    programs = figures["programs"]
    lines = [(figures["heading"], *programs), ("---",) * (1 + len(programs))]
    lines += [(row["name"], *(_text(row["cells"].get(program)) for program in programs)) for row in figures["rows"]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(cell: dict[str, float] | None) -> str:
    if cell is None:
        return "–"
    seconds = cell["seconds"]
    text = f"{seconds:.1f}" if seconds >= 2 else f"{seconds:.2f}"
    return f"{text} ({cell['ratio']:.1f})" if "ratio" in cell else text


def origin(figures: dict[str, Any]) -> str:
    """Where the figures come from, as a sentence."""
    found = figures["provenance"]
    return f"Taken on {found['date']} at {found['commit']} on {found['processor']}."


def below(figures: dict[str, Any]) -> str:
    """What stands below the table."""
    note = f" The figures are {found}." if (found := figures["provenance"].get("note")) else ""
    text = f"{origin(figures)} In brackets: how many times as fast as {figures['reference']}.{note}"
    return textwrap.fill(text, 128, break_long_words=False)


def filled(readme: str, all_figures: dict[str, dict[str, Any]]) -> str:
    """README with each table between its marks made anew."""
    for name, figures in all_figures.items():
        marks = f"<!-- figures: {name} -->", "<!-- end -->"
        image = f"![{figures['title']}](benchmarks/results/{name}.svg)"
        made = "\n\n".join([marks[0], table(figures), below(figures), image, ""])
        readme, count = re.subn(
            rf"{re.escape(marks[0])}.*?(?={re.escape(marks[1])})", lambda _, made=made: made, readme, flags=re.DOTALL
        )
        assert count == 1, f"README has no place for {name}"
    return readme


# -- SVG -----------------------------------------------------------------------------------------


def plot(figures: dict[str, Any]) -> str:
    """Bars of seconds for each row, one below the other; a line from the best to the slowest where that is known."""
    programs, rows = figures["programs"], figures["rows"]
    most = max(cell.get("slowest", cell["seconds"]) for row in rows for cell in row["cells"].values())
    body, y = [], 54
    for number, program in enumerate(programs):
        x = LEFT + number * 130
        body.append(f'<rect x="{x}" y="32" width="10" height="10" fill="{COLOURS[number]}"/>')
        body.append(f'<text x="{x + 15}" y="41">{escape(program)}</text>')
    for row in rows:
        cells = [(number, row["cells"][name]) for number, name in enumerate(programs) if name in row["cells"]]
        body.append(f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(row["name"])}</text>')
        for number, cell in cells:
            length = round(WIDTH * cell["seconds"] / most, 1)
            body.append(f'<rect x="{LEFT}" y="{y}" width="{length}" height="{BAR - 2}" fill="{COLOURS[number]}"/>')
            end = length
            if "slowest" in cell:
                end = round(WIDTH * cell["slowest"] / most, 1)
                body.append(f'<path d="M{LEFT + length} {y + 6}H{LEFT + end}" stroke="#444"/>')
            body.append(f'<text x="{round(LEFT + end + 5, 1)}" y="{y + 10}">{_text(cell)}</text>')
            y += BAR
        y += GAP
    body.append(f'<text x="8" y="{y + 8}" fill="#666">{escape(origin(figures))}</text>')
    width = LEFT + WIDTH + RIGHT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 18}" viewBox="0 0 {width} {y + 18}"'
        ' font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        f'<text x="8" y="18" font-size="14" font-weight="bold">{escape(figures["title"])}</text>\n'
    )
    return head + "\n".join(body) + "\n</svg>\n"


# -- all of it -----------------------------------------------------------------------------------


def read_all() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


TAKERS = {"imports": take_imports, "upkeep": take_upkeep}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--take", nargs=2, action="append", default=[], metavar=("NAME", "FILE"), help=f"NAME is {' or '.join(TAKERS)}"
    )
    for name, file in parser.parse_args().take:
        if name not in TAKERS:
            parser.error(f"no such figures: {name}; there are {', '.join(TAKERS)}")
        found = TAKERS[name](json.loads(Path(file).read_text()))
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    figures = read_all()
    README.write_text(filled(README.read_text(), figures))
    for name, each in figures.items():
        (RESULTS / f"{name}.svg").write_text(plot(each))


if __name__ == "__main__":
    main()
