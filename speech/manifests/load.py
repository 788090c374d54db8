"""Reading and validating a manifest as a whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from speech.audio import SEGMENT_SLACK, AudioLimits, audio_seconds, segment_complaint
from speech.errors import InputError, Problem, UserError
from speech.manifests.channels import channel_counts, wrong_channel
from speech.manifests.entries import Entry, check_entry, nearest
from speech.manifests.formats import FORMATS, detect_format
from speech.manifests.progress import map_files
from speech.records import Utterance

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A validated manifest.

    Attributes:
        utterances: in the order of the file. Their `duration` is set whenever headers were checked.
        skipped: what was wrong with the lines left out (`on_bad="skip"`); a line may have several problems.
        path: as the user wrote it.
        format: a key of `FORMATS`.
        places: file and 1-based line of each utterance, for messages.
    """

    utterances: tuple[Utterance, ...]
    skipped: tuple[Problem, ...]
    path: str
    format: str
    places: tuple[tuple[str, int], ...] = ()


def load_manifest(
    path: str | Path,
    *,
    format: str = "auto",
    on_bad: Literal["error", "skip"] = "error",
    limits: AudioLimits | None = None,
    require_text: bool = True,
    check_audio: Literal["header", "none"] = "header",
) -> Manifest:
    """Read a manifest and validate every line of it.

    Args:
        path: a jsonl file, a Kaldi directory, or a `meta.lst` of seed-tts-eval.
        format: `auto` decides by content; otherwise a key of `FORMATS`.
        on_bad: `error` raises with all problems of all lines; `skip` leaves bad lines out and returns why.
        limits: accepted lengths of utterances (default `AudioLimits()`); applied where the length is known.
        require_text: whether an utterance without a transcript is bad.
        check_audio: `header` opens every audio file once, checks segments against its length and fills in
            `duration`; `none` trusts the manifest.

    Raises:
        InputError: problems with `on_bad="error"`; no usable utterance at all; not a manifest.
        UserError: an unknown format name.
    """
    path = Path(path)
    if format != "auto" and format not in FORMATS:
        near = nearest(format, FORMATS)
        hint = f"did you mean {near!r}?" if near else f"known formats: auto, {', '.join(FORMATS)}"
        raise UserError(f"unknown manifest format {format!r}; {hint}")
    detected = detect_format(path)
    format = detected if format == "auto" else format
    if (format == "kaldi") != (detected == "kaldi"):
        raise UserError(f"{path}: format {format!r} was asked for, but this looks like {FORMATS[detected].expects}")
    limits = limits or AudioLimits()

    problems: list[Problem] = []
    bad_lines: set[tuple[str, int]] = set()
    good: list[tuple[Entry, Utterance]] = []
    for item in FORMATS[format].read(path):
        if isinstance(item, Problem):
            problems.append(item)
            if item.line is not None:
                bad_lines.add((item.file, item.line))
            continue
        checked = check_entry(item, require_text)
        if isinstance(checked, Utterance):
            good.append((item, checked))
        else:
            problems.extend(checked)
    good, found = _without_duplicates(good)
    problems.extend(found)
    if check_audio == "header":
        good, found = _with_audio(good, limits)
    else:
        good, found = _within_limits(good, limits)
    problems.extend(found)
    # A reader may find fault with a line (an unknown key) that is otherwise usable.
    good = [item for item in good if (item[0].file, item[0].line) not in bad_lines]
    utterances = tuple(utterance for _, utterance in good)

    problems.sort(key=lambda problem: (problem.file, problem.line or 0))
    if problems and on_bad == "error":
        lines = len({(problem.file, problem.line) for problem in problems})
        raise InputError(f"{path}: {_count(len(problems), 'problem')} in {_count(lines, 'line')}", problems)
    if not utterances:
        raise InputError(f"{path}: no usable utterance", problems)
    return Manifest(utterances, tuple(problems), str(path), format, tuple((e.file, e.line) for e, _ in good))


def _without_duplicates(good: list[tuple[Entry, Utterance]]) -> tuple[list[tuple[Entry, Utterance]], list[Problem]]:
    """The first utterance of each id, and a problem for each later one that names both lines."""
    first: dict[str, Entry] = {}
    kept, problems = [], []
    for entry, utterance in good:
        if utterance.id in first:
            earlier = first[utterance.id].line
            problems.append(entry.problem("id", f"duplicate {utterance.id!r}, first on line {earlier}"))
        else:
            first[utterance.id] = entry
            kept.append((entry, utterance))
    return kept, problems


def _with_audio(
    good: list[tuple[Entry, Utterance]], limits: AudioLimits
) -> tuple[list[tuple[Entry, Utterance]], list[Problem]]:
    """Utterances whose audio file opens, reaches over their segment and has an accepted length."""
    named = (path for _, utterance in good for path in (utterance.audio, utterance.prompt_audio) if path)
    files = list(dict.fromkeys(named))
    headers = dict(zip(files, map_files(_header, files, "checking audio"), strict=True))
    channels = channel_counts(utterance.audio for _, utterance in good if utterance.channel is not None)
    kept, problems, cut = [], [], []
    for entry, utterance in good:
        complaint = wrong_channel(utterance, channels)
        found = [
            *([] if complaint is None else [entry.problem("channel", complaint)]),
            *_voice_problems(entry, utterance, headers, limits),
            *_recording_problems(entry, utterance, headers),
        ]
        problems += found
        if found:
            continue
        if utterance.audio:
            seconds = float(headers[utterance.audio]) - utterance.start
            if utterance.duration is not None and utterance.duration > seconds + SEGMENT_SLACK:
                cut.append(f"{utterance.id} ends {utterance.duration - seconds:.2f} s after {utterance.audio}")
            seconds = seconds if utterance.duration is None else min(utterance.duration, seconds)
            utterance = replace(utterance, duration=seconds)
        kept.append((entry, utterance))
    if cut:
        logger.warning("%s cut at the end of the file, the first: %s", _count(len(cut), "segment"), cut[0])
    kept, found = _within_limits(kept, limits)
    return kept, problems + found


def _recording_problems(entry: Entry, utterance: Utterance, headers: Mapping[str, float | str]) -> list[Problem]:
    """What is wrong with an utterance's own recording, where it has one."""
    if not utterance.audio:
        return []
    header = headers[utterance.audio]
    if isinstance(header, str):
        return [entry.problem("audio", f"{utterance.audio}: {header}")]
    complaint = segment_complaint(utterance.start, utterance.duration, header)
    return [] if complaint is None else [entry.problem("duration" if utterance.duration else "start", complaint)]


def _voice_problems(
    entry: Entry, utterance: Utterance, headers: Mapping[str, float | str], limits: AudioLimits
) -> list[Problem]:
    """What is wrong with an utterance's prompt voice, where it has one."""
    if utterance.prompt_audio is None:
        return []
    header = headers[utterance.prompt_audio]
    complaint = header if isinstance(header, str) else limits.complaint(header)
    return [] if complaint is None else [entry.problem("prompt_audio", f"{utterance.prompt_audio}: {complaint}")]


def _header(path: str) -> float | str:
    """Seconds of an audio file, or what is wrong with it."""
    try:
        return audio_seconds(path)
    except InputError as error:
        return error.problems[0].message
    except OSError as error:
        return error.strerror or str(error)


def _within_limits(
    good: list[tuple[Entry, Utterance]], limits: AudioLimits
) -> tuple[list[tuple[Entry, Utterance]], list[Problem]]:
    kept, problems = [], []
    for entry, utterance in good:
        complaint = None if utterance.duration is None else limits.complaint(utterance.duration)
        if complaint is None:
            kept.append((entry, utterance))
        else:
            problems.append(entry.problem("duration", complaint))
    return kept, problems


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
