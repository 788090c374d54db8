"""A reward that a server computes from sound: docs/http-rewards.md."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.listening.group import SoundGroup
from rewards.over_http.client import RewardClient
from rewards.over_http.protocol import in_places, sound_request
from rewards.registry import PartScore, on_sound, reward


@reward("http_sound")
@on_sound()
class HttpSoundReward:
    """What the server at `url` answers to the group's waves, beside their texts and tokens.

    Args:
        url, timeout_s, retries: see `rewards.on_text.http`.
        voice: send the prompt voice too.
    """

    def __init__(self, *, url: str, timeout_s: float = 10.0, retries: int = 1, voice: bool = False) -> None:
        self._client = RewardClient(url, timeout_s, retries)
        self._voice = voice

    def __call__(self, group: SoundGroup) -> Sequence[PartScore]:
        request, kept = sound_request(group, self._voice)
        return in_places(self._client.scores(request), kept, group)
