"""Which channel of its recording an utterance is in."""

from __future__ import annotations

from speech.audio import audio_channels, channel_complaint
from speech.errors import InputError, Problem
from speech.manifests.entries import Entry
from speech.manifests.progress import map_files
from speech.records import Utterance


def with_channels(
    good: list[tuple[Entry, Utterance]],
) -> tuple[list[tuple[Entry, Utterance]], list[Problem]]:
    """Utterances whose recording has the channel that they name, or only one where they would have to name one.

    Only recordings of such utterances are opened, each once; those that do not open are left to the check of lengths.
    """
    files = list(dict.fromkeys(u.audio for entry, u in good if _matters(entry, u)))
    channels = dict(zip(files, map_files(_channels, files, "checking channels"), strict=True))
    kept, problems = [], []
    for entry, utterance in good:
        complaint = None
        found = channels[utterance.audio] if _matters(entry, utterance) else None
        if found is not None and utterance.channel is not None:
            complaint = channel_complaint(utterance.channel, found)
        elif found is not None and found > 1:
            complaint = (
                f"has {found} channels, and utterances of several speakers: averaging would mix them; "
                "add a fifth column with the channel, 0 for the first"
            )
        if complaint is None:
            kept.append((entry, utterance))
        else:
            problems.append(entry.problem("channel", f"{utterance.audio}: {complaint}"))
    return kept, problems


def _matters(entry: Entry, utterance: Utterance) -> bool:
    return bool(utterance.audio) and (utterance.channel is not None or entry.names_channel)


def _channels(path: str) -> int | None:
    try:
        return audio_channels(path)
    except (InputError, OSError):
        return None
