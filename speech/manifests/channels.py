"""Which channel of its recording an utterance is in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from speech.audio import audio_channels, channel_complaint
from speech.errors import InputError
from speech.manifests.progress import map_files
from speech.records import Utterance


def channel_counts(files: Iterable[str]) -> dict[str, int]:
    """Number of channels of each file, each opened once; those that do not open are left out."""
    distinct = list(dict.fromkeys(files))
    counts = zip(distinct, map_files(_channels, distinct, "checking channels"), strict=True)
    return {file: count for file, count in counts if count is not None}


def wrong_channel(utterance: Utterance, counts: Mapping[str, int]) -> str | None:
    """What is wrong with the channel that an utterance names, given the `channel_counts` of files, or None."""
    count = counts.get(utterance.audio)
    if count is None or utterance.channel is None:
        return None
    complaint = channel_complaint(utterance.channel, count)
    return None if complaint is None else f"{utterance.audio}: {complaint}"


def _channels(path: str) -> int | None:
    try:
        return audio_channels(path)
    except (InputError, OSError):
        return None
