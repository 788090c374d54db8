"""Plain data against annotations: what passes, and what is said of the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from speech.runtime.schema import OneOf, bind, bind_keys


@dataclass
class Item:
    name: str
    share: Annotated[float, Ge(0), Le(1)] = 0.5

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("`name` is bad")


@dataclass
class Everything:
    item: Item
    count: Annotated[int, Ge(1)] | None = None
    flag: bool = False
    mode: Literal["a", "b"] = "a"
    plug_in: Annotated[str, OneOf(("x", "y"), ("",))] = ""
    items: list[Item] = field(default_factory=list)
    words: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def check(data: Any, **typed: str) -> tuple[Everything | None, dict[str, str]]:
    found, problems = bind(Everything, data, lambda path: f" ({path})", typed)
    return found, dict(problems)


def test_what_passes() -> None:
    data = {"item": {"name": "n", "share": 1}, "count": 1e3, "plug_in": "y", "words": ["w"], "options": {1: None}}
    found, problems = check(data | {"items": [{"name": "m"}]})
    assert not problems
    assert found == Everything(Item("n", 1.0), 1000, plug_in="y", items=[Item("m")], words=("w",), options={"1": None})
    assert found is not None and isinstance(found.count, int) and isinstance(found.item.share, float)
    assert check({"item": {"name": 5}}, **{"item.name": "005"})[0] == Everything(Item("005"))


def test_everything_that_does_not_fit_is_said_at_once() -> None:
    data = {
        "item": None,
        "count": True,
        "flag": 1,
        "mode": "bb",
        "plug_in": "z",
        "items": [{"name": "bad"}, {"name": 1, "share": 2, "nam": "n"}, {"name": "n", "share": float("nan")}, 3],
        "words": "w",
        "options": [],
    }
    found, problems = check(data)
    assert found is None
    assert problems == {
        "item.name": "required, but not given",
        "count": "expected a whole number, got true",
        "flag": "expected true or false, got 1",
        "mode": "expected one of `a`, `b`, got 'bb'; did you mean `b`?",
        "plug_in": "expected one of `x`, `y`, got 'z'",
        "items.0": "`name` is bad",
        "items.1.nam": "unknown key (items[].nam)",
        "items.1.name": "expected text, got 1 (quote it to make it text)",
        "items.1.share": "must be at most 1, got 2",
        "items.2.share": "must be at least 0, got nan",
        "items.3": "expected a section with keys, got 3",
        "words": "expected a list, got 'w'",
        "options": "expected a section with keys, got []",
    }
    assert check(3)[1] == {"": "expected a section with keys, got 3"}


def test_keyword_arguments() -> None:
    kinds: dict[str, Any] = {"scale": float, "own": Any, "file": str}
    assert bind_keys(kinds, ["file"], {"file": "f", "scale": 2, "own": None}, str)[0] == {
        "file": "f",
        "scale": 2.0,
        "own": None,
    }
    assert bind_keys(kinds, ["file"], {"fil": 1}, lambda path: "!")[1] == [
        ("fil", "unknown key!"),
        ("file", "required, but not given"),
    ]
