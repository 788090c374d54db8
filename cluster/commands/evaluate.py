"""`speechrl evaluate`: one model, one manifest."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from cluster.config import load_config
from cluster.data.prompts import load_split
from cluster.evaluation.result import FINGERPRINT, timed
from cluster.evaluation.split import evaluate_split
from cluster.evaluation.tables import print_evaluation
from cluster.preflight import problems_here
from cluster.runs import durable
from cluster.system import System


def run_evaluation(args: argparse.Namespace) -> int:
    """Score one model on one manifest, print the table, write the hypotheses, the scores beside them
    (`.summary.json`), and the waveforms of a model that speaks."""
    given = [f"model.path={args.model}", f"data.train={args.manifest}"]
    named = [] if args.config is not None else ["name=evaluation"]
    here = partial(problems_here, training=False)
    config = load_config(args.config, [*named, *args.overrides, *given], here)
    manifest = load_split(config.data, args.manifest)
    out = Path(args.out) if args.out is not None else Path(f"hypotheses-{Path(args.manifest).stem}.jsonl")
    probe = out.with_name(f".{out.name}.probe")
    with durable.writing(out):  # found out now, not after the decoding
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    with System(config, training=False) as system:
        evaluation = evaluate_split(config, system, manifest.utterances, out.with_suffix(""))
    durable.replace(out, "".join(durable.dumps(line) + "\n" for line in evaluation.hypotheses))
    summary = {
        "model": args.model,
        "manifest": args.manifest,
        FINGERPRINT: manifest.fingerprint(),
        **evaluation.scores.to_json(),
    }
    summary["rejected"] = {item.id: item.reason for item in evaluation.bad}
    summary |= timed(evaluation)
    durable.replace(out.with_suffix(".summary.json"), json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
    skipped = len(manifest.skipped) + len(evaluation.bad)
    print_evaluation(evaluation.scores, skipped=skipped, hypotheses=out, decoding=evaluation.decoding)
    return 0
