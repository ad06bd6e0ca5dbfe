"""JSON on a terminal: nothing in it that the terminal would act on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from composefs_async.cli.context import print_json

ODD = [
    "\x1b[2J",
    "\x7f",
    "\x9b31m",
    "\u200e",
    "\u202e",
    "\u2066",
    "\u2028",
    "\ufeff",
    "\udcff",
    "\U000e0001",
    "\r\n\t",
    "\0",
    "\xa0",
]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_what_a_terminal_might_act_on_is_escaped(text: str, capfdbinary: Any) -> None:
    value = {f"key{text}": [text, {"deep": f"x{text}y"}]}
    print_json(value)
    printed = capfdbinary.readouterr().out.decode()
    assert json.loads(printed) == value
    assert all(char.isprintable() or char == "\n" for char in printed)


def test_other_text_is_left_as_it_is(capfdbinary: Any) -> None:
    print_json({"ö": "日本 “x”"})
    assert capfdbinary.readouterr().out.decode() == '{\n  "ö": "日本 “x”"\n}\n'


def test_what_is_no_number_in_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        print_json({"x": float("nan")})
