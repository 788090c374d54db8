"""The table of docs/model-families.md says which tests there are."""

from __future__ import annotations

from pathlib import Path

from tests import family_table


def test_the_page_has_the_table_of_the_tests(tmp_path: Path) -> None:
    _, held, _ = family_table.parts()
    assert held == family_table.table(tmp_path), "docs/model-families.md is out of date: make docs"
