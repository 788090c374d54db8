"""`speechrl families`."""

from __future__ import annotations

import pytest

from cluster import cli
from cluster.commands import families
from speech.families import FAMILIES, ModelFamily


def test_every_family_is_listed_with_what_it_does_and_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["families"]) == 0
    rows = {cells[0]: cells for line in capsys.readouterr().out.splitlines() if (cells := _cells(line))}
    assert rows.keys() == {"name", *FAMILIES}
    for name, family in FAMILIES.items():
        assert rows[name][1] == ", ".join(family.model_types)
        assert rows[name][2] == ("hears" if issubclass(family, ModelFamily) else "speaks")
    assert rows["qwen3_asr"][4] == "force_language"
    assert rows["llasa"][3] == "codec xcodec2"


def test_a_package_that_is_not_installed_is_marked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(families, "find_spec", lambda package: None)
    assert cli.main(["families"]) == 0
    assert "mistral-common (missing)" in capsys.readouterr().out


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")] if line[:1] in "┃│" else []
