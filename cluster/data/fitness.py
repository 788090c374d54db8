"""Utterances that this configuration cannot use, found before the first step: no recording is read for it."""

from __future__ import annotations

import hashlib
import inspect
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config import RunConfig
from cluster.data.passes import kept_pass
from cluster.data.targets import recording_problems, target_problems
from learner.token2text.model import Token2TextConfig
from rewards.compose import RewardComposition
from rewards.config import JudgeConfig
from rewards.registries import JUDGES
from rollout.config import room_complaint
from speech.edits import scored_language
from speech.errors import InputError, Problem
from speech.families import LanguageModelFamily, ModelFamily, SpeechFamily
from speech.manifests import Manifest
from speech.manifests.store import Utterances, stored
from speech.records import Utterance
from speech.text import language_code

Problems = Callable[[Utterance], Iterator[tuple[str, str]]]
"""(key, message) of all that is wrong with an utterance."""


def _all(utterances: Utterances) -> np.ndarray:
    return np.ones(len(utterances), bool)


@dataclass(frozen=True, slots=True)
class Check:
    """Something that may be wrong with utterances.

    Attributes:
        problems: says it of one.
        settings: JSON values that decide, with the utterance, what `problems` says.
        suspects: bool (utterances,), False for those of which columns tell that nothing is wrong. The records of the
            others are read.
    """

    problems: Problems
    settings: Any
    suspects: Callable[[Utterances], np.ndarray] = _all


RECORDING_CHECK = Check(recording_problems, "recording")
"""Utterances without a recording, for what listens to it."""

MARGIN_S = 0.02
"""A recording may turn out so much shorter than the manifest says; what fits only then is left to the encoder."""

_READ_UP_TO = 2**25
"""Bytes of a file of a checkpoint; larger ones are weights."""


def policy_checks(
    config: RunConfig, family: LanguageModelFamily, new_tokens: int, judges: Sequence[JudgeConfig]
) -> list[Check]:
    """What can be known of utterances that engines sample.

    Args:
        new_tokens: longest response.
        judges: that must read what is said.
    """
    checks: list[Check] = [_room_check(config, family, new_tokens)]
    languages = [found for judge in judges if (found := _languages(judge)) is not None]
    if languages:
        checks.append(_language_check(frozenset.intersection(*languages)))
    return checks


def training_judges(config: RunConfig) -> list[JudgeConfig]:
    """The judge that the rewards ask, if one does."""
    return [config.rewards.sound.judge] if "judge" in RewardComposition(config.rewards).needs else []


def target_check(model: Token2TextConfig) -> Check:
    """Texts and classes that a Token2Text model does not know."""
    return Check(lambda utterance: target_problems(model, utterance), ["targets", asdict(model)])


def reference_check(config: RunConfig, family: ModelFamily) -> Check:
    """Transcripts that cannot be a response to learn, for instance with control tokens of the model in them."""

    def problems(utterance: Utterance) -> Iterator[tuple[str, str]]:
        try:
            family.target_ids(utterance)
        except InputError as error:
            yield from ((problem.key or "text", problem.message) for problem in error.problems)

    return Check(problems, ["reference", _reading(config, family)])


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
    train |= {index: unread[place] for index, place in enumerate(manifests["train"].places) if place in unread}
    if len(train) == total:
        raise InputError(f"{manifests['train'].path}: no utterance can be used", manifests["train"].skipped)
    kept = {
        split: manifest if split == "train" else _without(manifest, found[split])
        for split, manifest in manifests.items()
    }
    utterances = manifests["train"].utterances
    return kept, {utterances[i].id: "; ".join(f"{p.key}: {p.message}" for p in some) for i, some in train.items()}


def _unfit(manifest: Manifest, checks: Sequence[Check]) -> dict[int, list[Problem]]:
    """Problems by index of the utterances that have some."""
    utterances = stored(manifest.utterances)
    suspects = np.zeros(len(utterances), bool)
    for check in checks:
        suspects |= check.suspects(utterances)
    indices = np.flatnonzero(suspects)

    def find(some: Iterable[Utterance]) -> list[tuple[int, str, str]]:
        pairs = zip(indices.tolist(), some, strict=True)
        return [(i, key, message) for i, u in pairs for check in checks for key, message in check.problems(u)]

    found: dict[int, list[Problem]] = {}
    for index, key, message in kept_pass(manifest, [check.settings for check in checks], find, indices):
        file, line = manifest.places[index]
        found.setdefault(index, []).append(Problem(file, line, key, message))
    return found


def _without(manifest: Manifest, unfit: Mapping[int, list[Problem]]) -> Manifest:
    if not unfit:
        return manifest
    kept = np.setdiff1d(np.arange(len(manifest.utterances)), list(unfit))
    problems = [problem for some in unfit.values() for problem in some]
    if not len(kept):
        raise InputError(f"{manifest.path}: no utterance can be used with this configuration", problems)
    return replace(manifest.at(kept), skipped=(*manifest.skipped, *problems))


def _room_check(config: RunConfig, family: LanguageModelFamily, new_tokens: int) -> Check:
    max_model_len = config.engines.max_model_len
    around: dict[tuple[str | None, tuple[str, ...]], int] = {}

    def room(like: Utterance, samples: int) -> str | None:
        assert isinstance(family, ModelFamily)
        # What stands around the audio depends on the language alone, and on the keywords where the prompt holds them.
        key = like.language, like.keywords if family.prompts_keywords else ()
        if key not in around:
            around[key] = len(family.layout(like, 0).token_ids)
        positions = around[key] + family.audio_length(family.frames(samples))
        return room_complaint(positions, new_tokens, max_model_len)

    def heard(utterance: Utterance) -> Iterator[tuple[str, str]]:
        assert isinstance(family, ModelFamily)
        if utterance.duration is None:
            return
        try:
            complaint = room(utterance, round(max(0.0, utterance.duration - MARGIN_S) * family.sample_rate))
        except InputError as error:  # a keyword that may not stand in a prompt
            yield from ((problem.key or "keywords", problem.message) for problem in error.problems)
            return
        if complaint is not None:
            yield "duration", f"{utterance.duration:.1f} s: {complaint}"

    def too_long(utterances: Utterances) -> np.ndarray:
        """Positions grow with the duration: from some number of samples on, nothing fits."""
        assert isinstance(family, ModelFamily)
        seconds = utterances.columns.seconds[utterances.rows]
        samples = np.round(np.maximum(0.0, seconds - MARGIN_S) * family.sample_rate)
        if family.prompts_keywords:  # each prompt has a length of its own: all are looked at
            return ~np.isnan(samples)
        found = np.zeros(len(utterances), bool)
        for one, indices in utterances.by_language():
            known = samples[indices][~np.isnan(samples[indices])]
            lengths = range(int(known.max(initial=0)) + 1)
            first = bisect_left(lengths, True, key=lambda length, one=one: room(one, length) is not None)  # type: ignore[misc]
            found[indices] = samples[indices] >= first  # not where the length is unknown, a NaN
        return found

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

    settings = ["room", new_tokens, max_model_len, _reading(config, family)]
    return Check(spoken, settings) if isinstance(family, SpeechFamily) else Check(heard, settings, too_long)


def _reading(config: RunConfig, family: LanguageModelFamily) -> list[Any]:
    """What decides how a family reads a text: its class and options, the libraries, the files of its checkpoint."""
    files = sorted(file for file in family.path.iterdir() if file.is_file() and file.stat().st_size <= _READ_UP_TO)
    digest = hashlib.blake2b(digest_size=16)
    for file in (*files, Path(inspect.getfile(type(family)))):
        digest.update(hashlib.blake2b(file.name.encode() + b"\0" + file.read_bytes()).digest())
    versions = [version(library) for library in ("tokenizers", "transformers")]
    return [type(family).__qualname__, dict(config.model.options or {}), versions, digest.hexdigest()]


def _language_check(readable: frozenset[str]) -> Check:
    def problems(utterance: Utterance) -> Iterator[tuple[str, str]]:
        language = scored_language(utterance.text, "", utterance.language)
        if language not in readable:
            yield "language", f"the judge does not read {language!r}, only {', '.join(sorted(readable))}"

    def suspects(utterances: Utterances) -> np.ndarray:
        found = np.zeros(len(utterances), bool)
        for one, indices in utterances.by_language():
            # Without a language it is guessed from each text.
            found[indices] = one.language is None or any(problems(one))
        return found

    return Check(problems, ["languages", sorted(readable)], suspects)


def _languages(judge: JudgeConfig) -> frozenset[str] | None:
    """The languages that a judge reads, as far as is known without loading it."""
    if judge.languages:
        return frozenset(map(language_code, judge.languages))
    found: frozenset[str] | None = JUDGES.find(judge.kind).languages
    return found
