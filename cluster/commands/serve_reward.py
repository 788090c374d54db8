"""`speechrl serve-reward`: computes a reward for others over HTTP."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass, field
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rewards.config import RewardItem, SoundConfig
from rewards.server import RemoteScorer, RewardServer
from speech.errors import UserError, did_you_mean
from speech.runtime.schema import bind


@dataclass
class _Settings:
    options: dict[str, Any] = field(default_factory=dict)
    sound: SoundConfig = field(default_factory=SoundConfig)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C.

    Raises:
        UserError: unknown reward, option or model, or an address that cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = _settings(args.overrides)
    scorer = RemoteScorer(RewardItem(args.reward, options=settings.options), settings.sound)
    try:
        server = RewardServer((args.host, args.port), scorer)
    except OSError as error:
        raise UserError(f"cannot listen on {args.host}:{args.port}: {error}") from error
    with server:
        sys.stdout.write(f"reward {args.reward} at {server.url}\n")
        sys.stdout.flush()
        server.serve_forever()
    return 0


def _settings(overrides: list[str]) -> _Settings:
    try:
        data = OmegaConf.to_container(OmegaConf.from_dotlist(overrides), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"key=value: {str(error).splitlines()[0]}") from error
    settings, problems = bind(_Settings, data, lambda key: did_you_mean(key, ("options", "sound")))
    if settings is None:
        raise UserError("; ".join(f"{key}: {text}" for key, text in problems))
    return settings
