"""The training split with the utterances whose recordings cannot be opened now: it must stay what it was. Pure but for
reading."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cluster.config import DataConfig
from speech.audio import audio_seconds, segment_complaint
from speech.errors import InputError
from speech.manifests import Manifest, load_manifest
from speech.manifests.store import stored
from speech.records import Utterance


def with_unreadable(config: DataConfig, manifest: Manifest) -> Manifest:
    """A manifest whose bad lines were left out, and in it again those that only lack a recording that can be opened.

    Otherwise a file that vanishes in the middle of a run would make other data of it: the resumed run would have
    another order, and no saved position would mean anything. What is wrong with them stays in `skipped`.
    """
    if not manifest.skipped:
        return manifest
    whole = load_manifest(
        manifest.path, format=manifest.format, on_bad="skip", limits=config.limits, check_audio="none"
    )
    good = set(manifest.places)
    kept = [
        index
        for index, (utterance, place) in enumerate(zip(whole.utterances, whole.places, strict=True))
        if place in good or _unreadable(utterance)
    ]
    # Of the manifest whose headers were opened: it knows lengths and sounds, of the unreadable ones as far as stated.
    checked = stored(manifest.utterances)
    rows = stored(whole.utterances).rows[np.asarray(kept, np.int64)]
    return replace(manifest, utterances=checked.select(rows), places=tuple(whole.places[index] for index in kept))


def _unreadable(utterance: Utterance) -> bool:
    """Whether a recording does not open, or ends before its segment. Its length alone is a reason to leave it out."""
    for path in filter(None, (utterance.prompt_audio, utterance.audio)):
        try:
            seconds = audio_seconds(path)
        except (InputError, OSError):
            return True
    return bool(utterance.audio) and segment_complaint(utterance.start, utterance.duration, seconds) is not None
