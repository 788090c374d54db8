"""`speechrl plan`: what memory a run takes, before it takes it."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from cluster.config import RunConfig, load_config
from cluster.config.checks import POLICY_OBJECTIVES
from cluster.preflight import gpus_wanted
from cluster.sizing.estimate import GB, LINKS, Component, Estimate, estimate
from cluster.sizing.fit import remedies, shortages
from cluster.sizing.shape import ModelShape, file_bytes, read_shape
from learner.config import SAMPLED_OBJECTIVES
from speech.errors import UserError
from speech.runtime.hub import model_folder

_SHOWN = 5


def run(args: argparse.Namespace) -> int:
    """Print the estimate; returns 1 when it does not fit `--gpus` and `--memory`, else 0.

    Raises:
        UserError: the configuration or the model's `config.json` cannot be read, or the objective has no policy.
    """
    config = load_config(args.config, args.overrides)
    if config.objective not in POLICY_OBJECTIVES:
        raise UserError(f"plan: `objective: {config.objective}` trains no language model; its models are small")
    shape = read_shape(model_folder(config.model.path))
    measure = partial(estimate, shape=shape, files=_files(config))
    found, memory = measure(config), None if args.memory is None else args.memory * GB
    console = Console()
    _print(console, config, shape, found)
    short = shortages(config, found, args.gpus, memory)
    for shortage in short:
        unit = 1 if shortage.what == "GPUs" else GB
        needs, has = f"{shortage.needs / unit:.3g}", f"{shortage.has / unit:.3g}"
        gb = "" if unit == 1 else " GB"
        console.print(f"does not fit: {shortage.what}: needs {needs}{gb}, has {has}{gb}", style="bold", highlight=False)
        if unit == 1:
            console.print(f"  fewer: {shortage.section}", highlight=False)
            continue
        for remedy in remedies(config, shortage, measure, args.gpus, memory)[:_SHOWN]:
            fits = "; then it fits" if remedy.fits else ""
            saves = f"saves {remedy.saves / GB:.3g} GB"
            console.print(f"  {remedy.key}={remedy.value}: {saves}{fits}", highlight=False)
    if not short and (args.gpus is not None or memory is not None):
        console.print("fits", style="bold")
    return 1 if short else 0


def _files(config: RunConfig) -> dict[str, int | None]:
    sound = config.rewards.sound
    named = {
        "model.codec": config.model.codec,
        "learner.diffro.reward_model": config.learner.diffro.reward_model if config.uses_diffro else None,
        "rewards.sound.judge.path": sound.judge.path,
        "rewards.sound.speaker.path": sound.speaker.path if config.model.codec is not None else None,
    }
    found = {key: file_bytes(path) for key, path in named.items() if path}
    teacher = config.learner.distillation.teacher
    if teacher is not None and config.learner.distillation.weight > 0 and config.objective in SAMPLED_OBJECTIVES:
        found["learner.distillation.teacher"] = 4 * read_shape(Path(teacher)).language_model
    return found


def _print(console: Console, config: RunConfig, shape: ModelShape, found: Estimate) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    sizes = [("language model", shape.language_model), ("adaptor", shape.adaptor), ("encoder", shape.encoder)]
    sizes.append(("learning", shape.trained(config.learner.train)))
    counts = ", ".join(f"{name} {count / 1e6:,.1f}" for name, count in sizes)
    say(f"{config.model.path}, millions of parameters: {counts}")
    table = Table(box=box.SIMPLE)
    table.add_column("each")
    table.add_column("memory of")
    table.add_column("holds")
    table.add_column("GB", justify="right")
    for component in found.components:
        _add(table, component)
    console.print(table)
    gpus = gpus_wanted(config, training=True)
    asked = ", ".join(f"{key}: {count:g}" for key, count in gpus.items()) or "none"
    say(f"host memory of all processes: {found.host() / GB:.1f} GB; GPUs: {asked}")
    seconds = ", ".join(f"{found.publication / rate:.2g} s at {link}" for link, rate in LINKS.items())
    say(f"a publication: {found.publication / GB:.3g} GB to each node with engines, {seconds}")
    if config.engines.gpus_per_engine and config.learner.gpus_per_rank and not config.engines.lora_rank:
        say(
            f"with all engines on the node of learner rank 0, its GPU keeps another {found.publication / GB:.3g} GB: a "
            "copy for them, if it has room for that; it is not counted above"
        )
    length, sequences = config.engines.max_model_len, config.engines.max_num_seqs
    each, together = f"{found.sequence / 1e6:.3g} MB", f"{found.sequence * sequences / GB:.3g} GB"
    say(f"key-value cache: {each} for {length:,} positions, {together} for {sequences} such sequences")
    if found.unknown:
        say(f"not counted: {'; '.join(found.unknown)}")


def _add(table: Table, component: Component) -> None:
    name = component.name if component.count == 1 else f"{component.count} × {component.name}"
    for place, amount in enumerate(component.amounts):
        first = (name, component.device) if place == 0 else ("", "")
        table.add_row(*first, amount.what, f"{amount.size / GB:.2f}")
    table.add_row("", "", "together", f"{component.size / GB:.2f}", end_section=True, style="bold")
