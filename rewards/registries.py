"""What of the rewards a configuration chooses by name. Imports no model: reading a configuration takes no second."""

from __future__ import annotations

from typing import Any

from speech.runtime.registry import Registry

REWARDS: Registry[Any] = Registry("reward", "rewards.on_text", "rewards.on_sound")
"""`rewards.items[].name`."""

JUDGES: Registry[Any] = Registry("judge", "rewards.listening.judges", "cluster.judges")
"""`rewards.sound.judge.kind`: subclasses of `Judge` of `rewards.listening`. One that needs an engine of `rollout`,
which nothing here may import, lies in `cluster`; like every plug-in it is looked up by its name."""

SPEAKER_MODELS: Registry[Any] = Registry("speaker model", "rewards.listening.speakers")
"""`rewards.sound.speaker.kind`: subclasses of `rewards.listening.speaker.SpeakerModel`."""
