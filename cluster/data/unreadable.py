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
    # Of the manifest whose headers were opened: it knows lengths and sounds, of the unreadable ones as far as stated.
    checked, rows = stored(manifest.utterances), stored(whole.utterances).rows
    kept = np.isin(rows, checked.rows)
    for index in np.flatnonzero(~kept).tolist():
        kept[index] = _unreadable(whole.utterances[index])
    places = whole.places.at(np.flatnonzero(kept))
    return replace(manifest, utterances=checked.select(rows[kept]), places=places)


def _unreadable(utterance: Utterance) -> bool:
    """Whether a recording does not open, or ends before its segment. Its length alone is a reason to leave it out."""
    for path in filter(None, (utterance.prompt_audio, utterance.audio)):
        try:
            seconds = audio_seconds(path)
        except (InputError, OSError):
            return True
    return bool(utterance.audio) and segment_complaint(utterance.start, utterance.duration, seconds) is not None
