"""Utterances that this configuration cannot use, found before the first step: no recording is read for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from cluster.config import RunConfig
from cluster.data.targets import target_problems
from learner.token2text.model import Token2TextConfig
from rewards.compose import RewardComposition
from rewards.config import JudgeConfig
from rewards.registries import JUDGES
from rollout.config import room_complaint
from speech.edits import scored_language
from speech.errors import InputError, Problem
from speech.families import LanguageModelFamily, ModelFamily, SpeechFamily
from speech.manifests import Manifest
from speech.records import Utterance
from speech.text import language_code

Check = Callable[[Utterance], Iterator[tuple[str, str]]]
"""(key, message) of all that is wrong with an utterance."""

MARGIN_S = 0.02
"""A recording may turn out so much shorter than the manifest says; what fits only then is left to the encoder."""


def policy_checks(
    config: RunConfig, family: LanguageModelFamily, new_tokens: int, judges: Sequence[JudgeConfig]
) -> list[Check]:
    """What can be known of utterances that engines sample.

    Args:
        new_tokens: longest response.
        judges: that must read what is said.
    """
    checks: list[Check] = [_room_check(family, new_tokens, config.engines.max_model_len)]
    languages = [found for judge in judges if (found := _languages(judge)) is not None]
    if languages:
        checks.append(_language_check(frozenset.intersection(*languages)))
    return checks


def training_judges(config: RunConfig) -> list[JudgeConfig]:
    """The judge that the rewards ask, if one does."""
    return [config.rewards.sound.judge] if "judge" in RewardComposition(config.rewards).needs else []


def target_check(model: Token2TextConfig) -> Check:
    """Texts and classes that a Token2Text model does not know."""
    return lambda utterance: target_problems(model, utterance)


def without_unfit(
    config: RunConfig, manifests: Mapping[str, Manifest], checks: Mapping[str, Sequence[Check]]
) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Find what cannot be used, in all splits at once; in the training split also what `with_unreadable` has kept.

    Args:
        checks: by split.

    Returns:
        The manifests, those that are only evaluated without what cannot be; and the reason by id for utterances of the
        training split. These stay, so that each epoch accounts for all prompts.

    Raises:
        InputError: naming all of them, with `on_bad: error`, or where more than `data.max_rejected` of the training
            split are among them.
    """
    found = {split: _unfit(manifest, checks.get(split, ())) for split, manifest in manifests.items()}
    problems = [problem for unfit in found.values() for some in unfit.values() for problem in some]
    if problems and config.data.on_bad == "error":
        message = "utterances that cannot be used with this configuration (`data.on_bad: skip` rejects them)"
        raise InputError(message, problems)
    train, total = found["train"], len(manifests["train"].utterances)
    if len(train) > config.data.max_rejected * total:
        share = f"{len(train):,} of {total:,} utterances of {manifests['train'].path} cannot be used"
        bound = f"more than data.max_rejected={config.data.max_rejected:g} allows"
        raise InputError(f"{share}, {bound}", [problem for some in train.values() for problem in some])
    unread: dict[tuple[str, int | None], list[Problem]] = {}
    for problem in manifests["train"].skipped:
        unread.setdefault((problem.file, problem.line), []).append(problem)
    for utterance, place in zip(manifests["train"].utterances, manifests["train"].places, strict=True):
        if place in unread:
            train[utterance.id] = unread[place]
    if len(train) == total:
        raise InputError(f"{manifests['train'].path}: no utterance can be used", manifests["train"].skipped)
    kept = {
        split: manifest if split == "train" else _without(manifest, found[split])
        for split, manifest in manifests.items()
    }
    return kept, {name: "; ".join(f"{p.key}: {p.message}" for p in some) for name, some in train.items()}


def _unfit(manifest: Manifest, checks: Sequence[Check]) -> dict[str, list[Problem]]:
    found: dict[str, list[Problem]] = {}
    for utterance, (file, line) in zip(manifest.utterances, manifest.places, strict=True):
        problems = [Problem(file, line, key, message) for check in checks for key, message in check(utterance)]
        if problems:
            found[utterance.id] = problems
    return found


def _without(manifest: Manifest, unfit: Mapping[str, list[Problem]]) -> Manifest:
    if not unfit:
        return manifest
    kept = [index for index, utterance in enumerate(manifest.utterances) if utterance.id not in unfit]
    problems = [problem for some in unfit.values() for problem in some]
    if not kept:
        raise InputError(f"{manifest.path}: no utterance can be used with this configuration", problems)
    return replace(manifest.at(kept), skipped=(*manifest.skipped, *problems))


def _room_check(family: LanguageModelFamily, new_tokens: int, max_model_len: int) -> Check:
    around: dict[str | None, int] = {}

    def heard(utterance: Utterance) -> Iterator[tuple[str, str]]:
        assert isinstance(family, ModelFamily)
        if utterance.duration is None:
            return
        if utterance.language not in around:  # what stands around the audio depends on the language alone
            around[utterance.language] = len(family.layout(utterance, 0).token_ids)
        samples = round(max(0.0, utterance.duration - MARGIN_S) * family.sample_rate)
        positions = around[utterance.language] + family.audio_length(family.frames(samples))
        complaint = room_complaint(positions, new_tokens, max_model_len)
        if complaint is not None:
            yield "duration", f"{utterance.duration:.1f} s: {complaint}"

    def spoken(utterance: Utterance) -> Iterator[tuple[str, str]]:
        assert isinstance(family, SpeechFamily)
        try:
            layout = family.layout(utterance.instructed_text, utterance.prompt_text, ())  # a voice makes it longer
        except InputError as error:
            yield from ((problem.key or "text", problem.message) for problem in error.problems)
            return
        complaint = room_complaint(len(layout.token_ids), new_tokens, max_model_len)
        if complaint is not None:
            yield "text", f"without its voice: {complaint}"

    return spoken if isinstance(family, SpeechFamily) else heard


def _language_check(readable: frozenset[str]) -> Check:
    def check(utterance: Utterance) -> Iterator[tuple[str, str]]:
        language = scored_language(utterance.text, "", utterance.language)
        if language not in readable:
            yield "language", f"the judge does not read {language!r}, only {', '.join(sorted(readable))}"

    return check


def _languages(judge: JudgeConfig) -> frozenset[str] | None:
    """The languages that a judge reads, as far as is known without loading it."""
    if judge.languages:
        return frozenset(map(language_code, judge.languages))
    found: frozenset[str] | None = JUDGES.find(judge.kind).languages
    return found
