"""Speaker models: waveform → embedding whose cosine says how alike two voices are."""

from __future__ import annotations

import importlib

from rewards.config import SpeakerConfig
from rewards.speakers.base import SpeakerModel
from speech.errors import UserError

SPEAKER_MODELS = {
    "resemblyzer": "rewards.speakers.resemblyzer_model:ResemblyzerModel",
    "xvector": "rewards.speakers.xvector:XVectorModel",
    "funasr": "rewards.speakers.funasr_model:FunASRSpeakerModel",
}

__all__ = ["SPEAKER_MODELS", "SpeakerModel", "build_speaker_model", "check_speaker_model"]


def build_speaker_model(config: SpeakerConfig, threads: int = 1) -> SpeakerModel:
    """Load a speaker model.

    Raises:
        UserError: its kind is unknown, or it cannot be loaded.
    """
    check_speaker_model(config)
    module, _, name = SPEAKER_MODELS[config.kind].partition(":")
    model: type[SpeakerModel] = getattr(importlib.import_module(module), name)
    return model(config, threads)


def check_speaker_model(config: SpeakerConfig) -> None:
    """What can be wrong without loading it.

    Raises:
        UserError: naming the key.
    """
    if config.kind not in SPEAKER_MODELS:
        known = ", ".join(SPEAKER_MODELS)
        raise UserError(f"rewards.sound.speaker.kind: unknown speaker model {config.kind!r}; known are {known}")
    if config.kind != "resemblyzer" and not config.path:
        raise UserError(f"rewards.sound.speaker.path is empty: where is the model of {config.kind!r}?")
