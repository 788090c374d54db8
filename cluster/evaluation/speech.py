"""Scoring a manifest of texts to be spoken: two judges, speaker similarity, duration, natural ends."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cluster.actors.encoders import EncoderPool
from cluster.actors.listener import Listener
from cluster.evaluation.result import Decoding, Evaluation
from cluster.evaluation.sampling import PROMPT, Stopwatch, sample_chunks
from cluster.evaluation.scores import SpeechScores
from cluster.fleet.fleet import EngineFleet
from rewards.on_sound.tts_accuracy import judged_edits, unscorable
from rewards.report import SampleReport
from rollout.config import SamplingConfig
from speech.edits import EditCounts, unit_edits, word_edits
from speech.records import BadUtterance, Utterance
from speech.text import NORMALISER_VERSION, seed_tts_units, units

FAILURES_NAMED = 20


def evaluate_speech(
    utterances: Sequence[Utterance],
    prompts: EncoderPool,
    fleet: EngineFleet,
    listener: Listener,
    sampling: SamplingConfig,
    folder: Path | None = None,
) -> Evaluation[SpeechScores]:
    """Synthesise every text once and listen to it; nothing is learned from these utterances.

    Args:
        sampling: from `evaluation_sampling`.
        folder: where the waveforms are written; None writes none.
    """
    lines: list[dict[str, Any]] = []
    reports: list[SampleReport] = []
    bad: list[BadUtterance] = []
    watch = Stopwatch()
    for groups in watch.over(sample_chunks(utterances, prompts, fleet, sampling, bad)):
        heard = listener.report(groups, folder, fleet.config.generate_timeout_s)
        reports += heard
        lines += [_line(group.prompt.utterance, report) for group, report in zip(groups, heard, strict=True)]
    decoding = Decoding(watch.seconds, sum(report.seconds or 0.0 for report in reports))
    return Evaluation(speech_scores(reports), lines, tuple(bad), decoding)


def speech_scores(reports: Sequence[SampleReport]) -> SpeechScores:
    """The scores of reported samples."""
    first, second = ([r.edits for r in reports], [r.edits_second for r in reports])
    characters, words = _speaking_rate(reports)
    return SpeechScores(
        wer=_corpus(first),
        wer_mean=_mean(edits.rate for edits in first if edits is not None),
        wer_capped=_capped(reports),
        wer_second=_corpus(second),
        wer_second_mean=_mean(edits.rate for edits in second if edits is not None),
        speaker_similarity=_mean(r.speaker_similarity for r in reports if r.speaker_similarity is not None),
        speaker_similarity_original=_mean(
            r.speaker_similarity_original for r in reports if r.speaker_similarity_original is not None
        ),
        duration_mean=_mean(r.seconds for r in reports if r.seconds is not None),
        f0_std=_mean(r.f0_std for r in reports if r.f0_std is not None),
        no_stop_rate=_mean(float(not r.finished) for r in reports),
        utterances=len(reports),
        failed=sum(bool(r.problems) for r in reports),
        normaliser=NORMALISER_VERSION,
        wer_seed_tts=_seed_tts(reports, lambda report: report.heard),
        wer_seed_tts_second=_seed_tts(reports, lambda report: report.heard_second),
        f0_mean=_mean(r.f0_mean for r in reports if r.f0_mean is not None),
        dnsmos=_mean(r.dnsmos for r in reports if r.dnsmos is not None),
        characters_per_second=characters,
        words_per_second=words,
        failures=dict(islice(((_utterance(r), "; ".join(r.problems)) for r in reports if r.problems), FAILURES_NAMED)),
    )


def _corpus(counts: Iterable[EditCounts | None]) -> float | None:
    known = [edits for edits in counts if edits is not None]
    return sum(known, EditCounts()).rate if known else None


def _capped(reports: Sequence[SampleReport]) -> float | None:
    """Errors per unit of all texts that can be scored at all, each counted once at most; None without such a text."""
    errors = units = 0
    for report in reports:
        if unscorable(report.text, report.language):
            continue
        length = word_edits(report.text, "", report.language).reference_length
        errors += length if report.edits is None else min(report.edits.errors, length)
        units += length
    return errors / units if units else None


def _seed_tts(reports: Sequence[SampleReport], heard: Callable[[SampleReport], str | None]) -> float | None:
    """Mean of the WERs of all texts that can be scored at all, by seed-tts-eval's rules of text; a sample without a
    transcript is wrong in every word."""
    return _mean(
        1.0
        if (text := heard(report)) is None
        else unit_edits(*(seed_tts_units(t, report.language) for t in (report.text, text))).rate
        for report in reports
        if not unscorable(report.text, report.language)
    )


def _speaking_rate(reports: Sequence[SampleReport]) -> tuple[float | None, float | None]:
    """Characters, and scoring units, of all texts a second of their samples, silence included."""
    characters = words = 0
    seconds = 0.0
    for report in reports:
        if report.seconds and not unscorable(report.text, report.language):
            said = units(report.text, report.language)
            characters, words = characters + len("".join(said)), words + len(said)
            seconds += report.seconds
    return (characters / seconds, words / seconds) if seconds else (None, None)


def _utterance(report: SampleReport) -> str:
    return report.prompt_id.removeprefix(PROMPT)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.fmean(known) if known else None


def report_of(line: Mapping[str, Any]) -> SampleReport:
    """The report that a line of an evaluation was made from; earlier releases wrote less into it."""

    def edits(heard: str | None, rate: float | None) -> EditCounts | None:
        if heard is None or rate is None:
            return None
        return judged_edits(line["reference"], heard, line["language"])

    return SampleReport(
        prompt_id=f"{PROMPT}{line['id']}",
        index=0,
        text=line["reference"],
        language=line["language"],
        heard=line["hypothesis"],
        heard_second=line["hypothesis_second"],
        edits=edits(line["hypothesis"], line["wer"]),
        edits_second=edits(line["hypothesis_second"], line["wer_second"]),
        speaker_similarity=line["speaker_similarity"],
        speaker_similarity_original=line.get("speaker_similarity_original"),
        seconds=line["seconds"],
        f0_std=line.get("f0_std"),
        f0_mean=line.get("f0_mean"),
        dnsmos=line.get("dnsmos"),
        finished=line["finished"],
        wave=line["wave"],
        problems=tuple(line["problems"]),
    )


def _line(utterance: Utterance, report: SampleReport) -> dict[str, Any]:
    return {
        "id": utterance.id,
        "language": report.language,
        "reference": report.text,
        "hypothesis": report.heard,
        "hypothesis_second": report.heard_second,
        "wer": None if report.edits is None else report.edits.rate,
        "wer_second": None if report.edits_second is None else report.edits_second.rate,
        "speaker_similarity": report.speaker_similarity,
        "speaker_similarity_original": report.speaker_similarity_original,
        "seconds": report.seconds,
        "f0_std": report.f0_std,
        "f0_mean": report.f0_mean,
        "dnsmos": report.dnsmos,
        "finished": report.finished,
        "wave": report.wave,
        "problems": list(report.problems),
    }
