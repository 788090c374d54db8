"""`speechrl audit`: hold a run's ledger against its data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cluster.config import RunConfig, load_config
from cluster.data.prompts import PromptSource, load_split
from cluster.data.unreadable import with_unreadable
from cluster.runs.checkpoints import STATE_FILE, CheckpointFolder
from cluster.runs.ledger import Audit, Ledger
from speech.errors import UserError, first_of
from speech.manifests import Manifest
from speech.manifests.store import stored

_SHOWN = 5


def run_audit(args: argparse.Namespace) -> int:
    """Print the account of `args.run`; returns 0 when it is exact and 1 when it is not.

    Raises:
        UserError: the folder is no run, or its training data cannot be read.
    """
    folder = Path(args.run)
    if not (folder / "ledger.jsonl").is_file():
        raise UserError(f"{folder}: holds no ledger.jsonl; name the folder of a run, such as runs/asr_demo")
    config = load_config(folder / "config.yaml")
    manifest = with_unreadable(config.data, load_split(config.data, config.data.train))
    ids = (name.decode("utf-8", "surrogatepass") for name in stored(manifest.utterances).ids())
    ledger = Ledger(folder / "ledger.jsonl")
    audit = ledger.audit(ids, in_flight=_in_flight(folder, config, manifest))
    _report(audit, ledger.bad_utterances(), Console())
    return 0 if audit.exact else 1


def _in_flight(folder: Path, config: RunConfig, manifest: Manifest) -> list[str]:
    """Prompts that the newest checkpoint holds for the resumed run; with `staleness: 0` there are none."""
    checkpoints = CheckpointFolder(folder / "checkpoints")
    latest = checkpoints.latest()
    if latest is None:
        return []
    file = checkpoints.folder(latest) / STATE_FILE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        batches = [*state.get("in_flight", []), *state.get("rejected_in_flight", [])]
        places = [(int(epoch), int(position)) for batch in batches for epoch, position, *_ in batch]
        source = PromptSource(manifest.utterances, config.seed, config.data.shuffle)
        return [prompt.id for prompt in source.at(places)]
    except (json.JSONDecodeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file}: damaged ({error})") from error


def _report(audit: Audit, bad: Sequence[tuple[str, str]], console: Console) -> None:
    counts = f"{audit.trained:,} prompts trained, {audit.rejected:,} rejected"
    console.print(f"{counts}; {audit.complete_epochs} full epochs")
    for reason, count in audit.reasons.items():
        console.print(f"  rejected: {reason}: {count:,}")
    for prompt, reason in bad[:_SHOWN]:
        console.print(f"    {prompt}: {reason}", markup=False, highlight=False)
    for name, prompts in (("twice", audit.duplicates), ("missing", audit.missing), ("not in the data", audit.unknown)):
        if prompts:
            console.print(f"  {name}: {len(prompts):,}: {first_of(prompts, _SHOWN)}")
    verdict = "every prompt of every full epoch is there exactly once" if audit.exact else "the account is not exact"
    console.print(verdict)
