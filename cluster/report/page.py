"""The page: one file of HTML with everything in it."""

from __future__ import annotations

import base64
import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster.report.curves import curves
from cluster.report.results import facts, score_rows
from cluster.report.runs import RunRecord, config_differences
from speech.errors import UserError

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("charts.js", "start.js")
"""Our own scripts, in the order in which they run."""


def render(runs: Sequence[RunRecord], live: bool = False, bare: bool = False) -> str:
    """The page as text.

    Args:
        live: it asks its server for news.
        bare: without scripts and style, which a page that asks for news already has.

    Raises:
        UserError: plotly or jinja2 is not installed.
    """
    jinja2 = _import("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(STATIC),
        autoescape=True,  # transcripts come from models and from data
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    data = {"curves": curves(runs), "live": live}
    scripts = [] if bare else [_import("plotly.offline").get_plotlyjs(), *(_static(name) for name in SCRIPTS)]
    text: str = environment.get_template("page.html.jinja").render(
        title=", ".join(run.name for run in runs),
        runs=[
            {"name": run.name, "facts": facts(run), "notes": run.notes, "config": as_text(run.config)} for run in runs
        ],
        differences=config_differences(runs),
        scores=score_rows(runs),
        policy=_policy(scripts, live),
        style="" if bare else jinja2.utils.markupsafe.Markup(_static("report.css")),
        scripts=[jinja2.utils.markupsafe.Markup(script) for script in scripts],
        data=data,
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


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"speechrl report needs the package {module.partition('.')[0]} ({error}); install it with the extra: "
            "pip install 'speechrl[report]'"
        ) from error


def as_text(config: Mapping[str, Any]) -> str:
    """A configuration as YAML."""
    import yaml

    written: str = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return written
