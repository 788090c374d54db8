"""A reward that a server computes from text and tokens: docs/http-rewards.md."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.over_http.client import RewardClient
from rewards.over_http.protocol import text_request
from rewards.registry import PartScore, reward
from speech.records import Group


@reward("http")
class HttpReward:
    """What the server at `url` answers to the group's texts and tokens, one request for each group.

    Args:
        url: `http://host:port/path`, or `https://…`.
        timeout_s: seconds for one request.
        retries: further requests after a time-out, a lost connection, or a status such as 503.
    """

    def __init__(self, *, url: str, timeout_s: float = 10.0, retries: int = 1) -> None:
        self._client = RewardClient(url, timeout_s, retries)

    def __call__(self, group: Group) -> Sequence[PartScore]:
        return self._client.scores(text_request(group))
