"""The page: one file of HTML with everything in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.report.curves import curves
from cluster.report.groups import STEPS, group_payload, part_shares, read_steps
from cluster.report.results import facts, judge_rows, score_rows
from cluster.report.rules import Facts, verdicts
from cluster.report.runs import RunRecord, config_differences
from cluster.report.sounds import SoundShelf, add_sounds
from cluster.report.times import account, idle_rows, phase_rows, timeline, wall_notes
from cluster.report.utterances import judged, speaks, utterance_rows
from cluster.runs import durable
from speech.runtime.importing import import_extra

SIZE = 18_000_000
"""Bytes of a page, at most; the rest of 20 MB is for what is not counted, such as the configurations."""
STATIC = Path(__file__).parent / "static"
SCRIPTS = ("charts.js", "utterances.js", "groups.js", "timeline.js", "live.js", "start.js")
"""Our own scripts, in the order in which they run."""


def render(runs: Sequence[RunRecord], live: str = "", bare: bool = False) -> str:
    """The page as text.

    Args:
        live: the state of the files when a server makes it, which the page then asks for news.
        bare: without scripts and style, which a page that asks for news already has.

    Raises:
        UserError: plotly or jinja2 is not installed.
    """
    jinja2 = import_extra("report", "jinja2", "jinja2", "speechrl report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(STATIC),
        autoescape=True,  # transcripts come from models and from data
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plotly = import_extra("report", "plotly.offline", "plotly", "speechrl report")
    libraries = [plotly.get_plotlyjs(), *(_static(name) for name in SCRIPTS)]
    scripts = [] if bare else libraries
    steps = [read_steps(run, max(3, STEPS // len(runs))) for run in runs]
    data: dict[str, Any] = {
        "curves": curves(runs),
        "utterances": utterance_rows(runs),
        "groups": group_payload(runs, steps),
        "timeline": timeline(runs),
        "live": live,
    }
    shelf = SoundShelf(SIZE - sum(map(len, libraries)) - len(durable.dumps(data).encode()))
    add_sounds(runs, data["utterances"]["rows"], shelf)
    data["sounds"] = shelf.sounds
    text: str = environment.get_template("page.html.jinja").render(
        title=", ".join(run.name for run in runs),
        runs=[
            {"name": run.name, "facts": facts(run), "notes": run.notes, "config": as_text(run.config)} for run in runs
        ],
        differences=config_differences(runs),
        scores=score_rows(runs),
        judges=[(run.name, judge_rows(run)) for run in runs if speaks(run)],
        verdicts=[
            verdicts(Facts(run, judged(run), part_shares(run, its))) for run, its in zip(runs, steps, strict=True)
        ],
        groups=data["groups"],
        times=[
            {
                "phases": phase_rows(run),
                "idle": idle_rows(run),
                "notes": wall_notes(run),
                "spans": bool(line["steps"]),
                "account": account(run),
            }
            for run, line in zip(runs, data["timeline"], strict=True)
        ],
        utterances=data["utterances"],
        shelf=shelf,
        policy=_policy(scripts, bool(live)),
        style="" if bare else jinja2.utils.markupsafe.Markup(_static("report.css")),
        scripts=[jinja2.utils.markupsafe.Markup(script) for script in scripts],
        data=jinja2.utils.htmlsafe_json_dumps(data, dumps=durable.dumps),  # no NaN, which a browser does not read
    )
    return text


def _policy(scripts: Sequence[str], live: bool) -> str:
    """What a browser lets the page do: run these scripts and no other, and ask nobody but its server for anything."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'",
        "style-src": "'unsafe-inline'",  # plotly writes its own
        "img-src": "data: blob:",
        "media-src": "data: blob:",
        "connect-src": "'self'" if live else "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def as_text(config: Mapping[str, Any]) -> str:
    """A configuration as YAML."""
    import yaml

    written: str = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return written
