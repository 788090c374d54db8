"""`speechrl families`: the model families that are known, and what each needs."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table

from speech.families import FAMILIES, LanguageModelFamily, ModelFamily


def run_families(args: argparse.Namespace) -> int:
    """Print a table: name, `model_type`, hears or speaks, options of `model.options`, packages. Returns 0."""
    table = Table("name", "model_type", "does", "needs", "options", title="model families", title_justify="left")
    for name, family in sorted(FAMILIES.items(), key=lambda item: (_does(item[1]), item[0])):
        table.add_row(name, ", ".join(family.model_types), _does(family), _needs(family), ", ".join(family.options()))
    Console().print(table)
    return 0


def _does(family: type[LanguageModelFamily]) -> str:
    return "hears" if issubclass(family, ModelFamily) else "speaks"


def _needs(family: type[LanguageModelFamily]) -> str:
    """Packages beyond those that are always installed, and whether they are here."""
    found = [f"{package}{'' if find_spec(package.replace('-', '_')) else ' (missing)'}" for package in family.packages]
    codec = getattr(family, "codec", None)
    return ", ".join(found + ([f"codec {codec}"] if isinstance(codec, str) else []))
