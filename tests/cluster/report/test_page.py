"""The page: whole, without a request, and without anything of a transcript that a browser would run."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster import cli
from cluster.report.page import render
from cluster.report.runs import read_runs
from speech.errors import UserError
from tests.cluster.report.conftest import WriteRun, heard

EVIL = "</script><script>alert('heard')</script><img src=x onerror=alert(1)> & \u2028 <!--"


def data_of(page: str) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_the_command_writes_one_file(write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert cli.main(["report", str(write_run()), "-o", str(out)]) == 0
    assert "page.html" in capsys.readouterr().out
    page = out.read_text(encoding="utf-8")
    ours = page.split("<script>")[0]
    assert page.count("Plotly.react") and "plotly.js v" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', ours), "everything is inside"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["report", "--help"])
    out = capsys.readouterr().out
    assert "speechrl report runs/asr_demo" in out and "no network request" in out.replace("without any", "no")


def test_names_and_notes_are_text(write_run: WriteRun) -> None:
    path = write_run()
    (path / "summary.json").write_text(json.dumps({"status": EVIL}))
    evil = path.rename(path.with_name("<script>alert('name')<"))
    page = render(read_runs([evil, write_run("b")]), bare=True)
    assert "<script>alert" not in page and "<img" not in page and "&lt;script&gt;alert" in page


def test_differences_stand_first(write_run: WriteRun) -> None:
    page = render(read_runs([write_run("a"), write_run("b", overrides=["learner.lr=0.5"])]), bare=True)
    assert 0 < page.index("learner.lr") < page.index('id="result"') < page.index('id="curves"')


def test_scores_before_and_after(write_run: WriteRun) -> None:
    before, after = [heard("u", "turn on the light", "turn the light")], [heard("u", "turn on the light", "no light")]
    page = render(read_runs([write_run(before=before, after=after)]), bare=True)
    assert "25.00 %" in page and "75.00 %" in page and re.search(r'class="bad">\+200%', page)


def test_the_embedded_data_are_strict_json_that_closes_no_script(write_run: WriteRun) -> None:
    lines = [heard(EVIL, EVIL, "x", seconds=float("nan"))]
    page = render(read_runs([write_run(before=lines)]), bare=True)
    (row,) = data_of(page)["utterances"]["rows"]
    assert (row["id"], row["reference"], row["seconds"]) == (EVIL, EVIL, None)
    assert "<script>alert" not in page and "<img" not in page and "<!--" not in page and "NaN" not in page


@pytest.mark.parametrize("package", ["plotly", "jinja2"])
def test_a_missing_package_is_a_message(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    import sys

    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.import_module", lambda name: refuse(name))
    with pytest.raises(UserError, match=rf"{package}.*speechrl\[report\]"):
        render(read_runs([write_run()]))
