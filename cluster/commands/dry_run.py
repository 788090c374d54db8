"""`speechrl train --dry-run`: what `speechrl train` checks before it loads a weight or starts an engine, all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from cluster.config import RunConfig, load_config
from cluster.data.prompts import load_manifests
from cluster.preflight import gpus_wanted, problems_here, surrounding_cluster
from cluster.runs.folder import RunFolder
from rollout.config import room_complaint
from speech.audio import load_audio
from speech.errors import InputError, UserError
from speech.manifests import Manifest
from speech.records import Utterance

FIRST = 4
"""Utterances of each split whose recordings are read and whose prompts are laid out."""


def dry_run(path: str, overrides: Sequence[str]) -> int:
    """Check a run; returns 0 when nothing is wrong.

    Raises:
        UserError: all that is wrong, in one message.
    """
    config, manifests, complaints = check_run(path, overrides)
    if complaints:
        raise UserError("\n".join(["the run would not start:", *complaints]))
    counts = ", ".join(f"{split} {len(manifest.utterances):,}" for split, manifest in manifests.items())
    sys.stdout.write(
        f"dry run of {config.name!r}: nothing is wrong\n"
        f"checked: configuration, {config.model.path}, utterances ({counts}) and their prompts, rewards, resources\n"
        f"not checked: weights, engines, recordings but the first {FIRST} of each split\n"
    )
    return 0


def check_run(path: str, overrides: Sequence[str]) -> tuple[RunConfig, dict[str, Manifest], list[str]]:
    """A run's configuration, its manifests as far as they can be read, and what is wrong.

    Raises:
        InputError: keys that make no sense anywhere, so that nothing else can be said.
    """
    complaints: list[str] = []
    wrong: set[str] = set()
    try:
        config = load_config(path, overrides, problems_here)
    except InputError as error:
        try:
            config = load_config(path, overrides)
        except InputError:
            raise error from None
        complaints.append(str(error))
        wrong = {key.partition(".")[0] for key, _ in problems_here(config)}
    manifests: dict[str, Manifest] = {}
    if "data" not in wrong:
        with _gathered(complaints):
            manifests = load_manifests(config)
    if manifests and not wrong & {"model", "engines", "learner"}:
        with _gathered(complaints):
            _check_prompts(config, manifests)
    if "ray" not in wrong:
        with _gathered(complaints):
            _check_cluster(config)
    with _gathered(complaints):
        RunFolder(config.runs_dir, config.name).refuse_other_config(config)
    return config, manifests, complaints


@contextmanager
def _gathered(complaints: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        complaints.append(str(error))


def _check_prompts(config: RunConfig, manifests: Mapping[str, Manifest]) -> None:
    if config.objective == "token2text":
        from cluster.token2text.run import usable_manifests

        usable_manifests(config, manifests)
        return
    from cluster.evaluation.sampling import evaluation_sampling
    from cluster.system import run_family
    from cluster.training.policy_run import usable_manifests as usable_prompts
    from speech.families import ModelFamily

    family = run_family(config)
    usable, _ = usable_prompts(config, family, manifests)
    if not isinstance(family, ModelFamily):  # whose prompts have been laid out, all of them
        return
    tokens = {"train": config.sampling.max_new_tokens}

    def complaint(utterance: Utterance, new_tokens: int) -> str | None:
        wave = load_audio(utterance, family.sample_rate)
        layout = family.layout(utterance, family.audio_length(family.frames(len(wave))))
        return room_complaint(len(layout.token_ids), new_tokens, config.engines.max_model_len)

    found: list[str] = []
    for split, manifest in usable.items():
        new_tokens = tokens.get(split, evaluation_sampling(config).max_new_tokens)
        for utterance in manifest.utterances[:FIRST]:
            with _gathered(found):
                if config.data.on_bad == "error" and (text := complaint(utterance, new_tokens)) is not None:
                    found.append(f"{manifest.path}: {utterance.id}: {text}")
    if found:
        raise UserError("\n".join(found))


def _check_cluster(config: RunConfig) -> None:
    """Whether a cluster that is to be joined has the GPUs; `problems_here` has asked this machine."""
    if (config.ray.address or surrounding_cluster()) in (None, "local"):
        return
    from cluster.actors.leftovers import leave_ray
    from cluster.actors.room import check_room
    from cluster.actors.start import start_ray

    start_ray(config)
    try:
        check_room(gpus_wanted(config, training=True), config.engines.startup_timeout_s)
    finally:
        leave_ray()
