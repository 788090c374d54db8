"""Which channel of its recording an utterance is in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from speech.audio import audio_channels, channel_complaint
from speech.errors import InputError
from speech.manifests.progress import map_files
from speech.records import Utterance


def channel_counts(files: Iterable[str]) -> dict[str, int]:
    """Number of channels of each file, each opened once; those that do not open are left out."""
    distinct = list(dict.fromkeys(files))
    counts = zip(distinct, map_files(_channels, distinct, "checking channels"), strict=True)
    return {file: count for file, count in counts if count is not None}


def channel_complaints(utterances: Sequence[Utterance]) -> list[str | None]:
    """What is wrong with the channel that each utterance names, or None. Files of others are not opened."""
    counts = channel_counts(utterance.audio for utterance in utterances if utterance.channel is not None)
    complaints = []
    for utterance in utterances:
        count = None if utterance.channel is None else counts.get(utterance.audio)
        complaint = None if count is None or utterance.channel is None else channel_complaint(utterance.channel, count)
        complaints.append(None if complaint is None else f"{utterance.audio}: {complaint}")
    return complaints


def _channels(path: str) -> int | None:
    try:
        return audio_channels(path)
    except (InputError, OSError):
        return None
