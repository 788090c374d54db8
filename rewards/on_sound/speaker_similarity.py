"""Speaker similarity: the sample speaks with the prompt voice (reported as SS in 2509.18569; a reward in GLM-TTS)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from rewards.listening.group import Failure, SoundGroup
from rewards.registry import PartScore, on_sound, reward


@reward("speaker_similarity")
@on_sound("speaker")
def speaker_similarity(group: SoundGroup, *, scale: Literal["cosine", "unit"] = "cosine") -> list[PartScore]:
    """Cosine between the speaker embeddings of sample and prompt voice, by the model of `rewards.sound.speaker`.

    `scale`: `cosine` as it is (the form in which it is reported), `unit` (1 + cosine)/2 (GLM-TTS). A silent or empty
    sample has no speaker at all and scores 0 on both scales: being heard is the policy's affair, and a sample that
    was invalid here would lose the bad score that it earned elsewhere. Without a prompt voice, or with one that is
    silent, nothing is known and the samples are invalid.
    """
    voice = group.voice_embedding()
    if isinstance(voice, Failure):
        return [PartScore(invalid=voice.reason)] * len(group.sounds)
    scores = []
    for embedding in group.embeddings():
        if isinstance(embedding, Failure):
            scores.append(PartScore(invalid=embedding.reason))
        elif embedding is None:
            scores.append(PartScore(value=0.0, details={"silent": 1.0}))
        else:
            cosine = float(np.dot(embedding, voice))
            value = cosine if scale == "cosine" else (1.0 + cosine) / 2.0
            scores.append(PartScore(value=value, details={"cosine": cosine, "silent": 0.0}))
    return scores
