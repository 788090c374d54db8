"""A server that computes a registered reward for others: docs/http-rewards.md.

It asks for no token and encrypts nothing, so that it listens on this machine alone unless told otherwise.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from rewards.compose import RewardComposition
from rewards.config import RewardConfig, RewardItem, SoundConfig
from rewards.listening.group import Failure, Sound, SoundBatch, SoundGroup
from rewards.listening.models import SoundModels
from rewards.over_http.protocol import (
    PROTOCOL,
    RequestMessage,
    SampleMessage,
    WrongMessageError,
    read_request,
    read_wav,
    to_group,
)
from rewards.registry import part_name
from speech.records import Group, Reward

logger = logging.getLogger(__name__)

LARGEST_REQUEST = 256 * 2**20
"""Bytes: 64 samples of a minute at 24 kHz, as base64, and more."""
_SLOWEST_CLIENT_S = 60.0


class RemoteScorer:
    """Scores requests by one reward, one at a time: models are not made for several threads.

    Raises:
        UserError: unknown reward or option, a model that is missing.
    """

    def __init__(self, item: RewardItem, sound: SoundConfig) -> None:
        self._composition = RewardComposition(RewardConfig([item], sound=sound))
        self._models = SoundModels(sound)
        self._models.check(self._composition.needs)
        if self._composition.on_sound:
            self._models.load(self._composition.needs)
        self.name = part_name(item.name)
        self._sound = sound
        self._one_at_a_time = threading.Lock()

    def answer(self, data: Any) -> dict[str, Any]:
        """Plain JSON data → the answer.

        Raises:
            WrongMessageError: the request is not of the protocol.
        """
        request = read_request(data)
        group = to_group(request)
        sound = self._as_sound(request, group) if self._composition.on_sound else None
        with self._one_at_a_time:
            rewards = self._composition.score(group, sound).rewards
        return {"protocol": PROTOCOL, "scores": [self._score(reward) for reward in rewards]}

    def _score(self, reward: Reward) -> dict[str, Any]:
        details = {key.removeprefix(f"{self.name}/"): value for key, value in reward.details.items()}
        return {"score": reward.parts.get(self.name), "reason": reward.invalid, "details": details}

    def _as_sound(self, request: RequestMessage, group: Group) -> SoundGroup:
        sounds = [self._heard(sample, f"samples.{place}.audio") for place, sample in enumerate(request.samples)]
        voice = request.prompt.voice

        def voices(tokens: Sequence[tuple[int, ...]]) -> list[Sound | Failure]:
            assert voice is not None
            wave, rate = read_wav(voice, "prompt.voice")
            return [self._sound_of(wave, rate, (), 0.0, True) for _ in tokens]

        batch = SoundBatch([group], [sounds], voices, self._models, self._sound, Counter())
        return SoundGroup(group, tuple(sounds), batch, 0)

    def _heard(self, sample: SampleMessage, what: str) -> Sound:
        if sample.audio is None or sample.token_rate is None:
            raise WrongMessageError(f"{what}: this reward scores sound and needs it, and token_rate; use http_sound")
        wave, rate = read_wav(sample.audio, what)
        finished = sample.finish_reason == "stop"
        return self._sound_of(wave, rate, tuple(sample.speech_tokens), sample.token_rate, finished)

    def _sound_of(
        self, wave: np.ndarray, rate: int, tokens: tuple[int, ...], token_rate: float, finished: bool
    ) -> Sound:
        silent = float(np.abs(wave).max(initial=0.0)) < self._sound.silence_peak
        return Sound(wave, rate, tokens, token_rate, finished, silent)


class RewardServer(ThreadingHTTPServer):
    """Answers POST on any path with scores, and GET with the reward's name.

    Args:
        address: host and port; port 0 takes a free one.

    Raises:
        OSError: the address is in use, or not of this machine.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], scorer: RemoteScorer) -> None:
        self.scorer = scorer
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    timeout = _SLOWEST_CLIENT_S
    server: RewardServer

    def do_GET(self) -> None:
        self._send(HTTPStatus.OK, {"protocol": PROTOCOL, "reward": self.server.scorer.name})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self._send(HTTPStatus.LENGTH_REQUIRED, {"error": "Content-Length is missing"})
        elif int(length) > LARGEST_REQUEST:
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"more than {LARGEST_REQUEST} bytes"})
        else:
            self._send(*self._answer(self.rfile.read(int(length))))

    def _answer(self, body: bytes) -> tuple[HTTPStatus, dict[str, Any]]:
        try:
            return HTTPStatus.OK, self.server.scorer.answer(json.loads(body))
        except WrongMessageError as error:
            return HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except (ValueError, RecursionError) as error:
            return HTTPStatus.BAD_REQUEST, {"error": f"not JSON: {error}"}
        except Exception as error:  # the client must hear of it: a closed connection would be tried again
            logger.exception("a request failed")
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"}

    def _send(self, status: HTTPStatus, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode("ascii")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
