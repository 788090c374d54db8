"""The models behind rewards on sound: loaded once per process, when first asked for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from rewards.config import SoundConfig
from rewards.listening.judge import Judge, build_judge, check_judge
from rewards.listening.pitch import world
from rewards.listening.quality_model import DNSMOS
from rewards.listening.speaker import SpeakerModel, build_speaker_model, check_speaker_model
from rewards.registry import Need
from speech.errors import UserError


class SoundModels:
    """Judges, speaker model and quality model of a configuration.

    Raises:
        UserError: batch or threads below 1.
    """

    def __init__(self, config: SoundConfig) -> None:
        if config.batch < 1 or config.threads < 1:
            raise UserError("rewards.sound: batch and threads are at least 1")
        self._config = config
        self._judges: dict[str, Judge] = {}

    def check(self, needs: Iterable[Need]) -> None:
        """Find what is wrong with the configuration of these models without loading them.

        Raises:
            UserError: naming the key.
        """
        if "judge" in needs:
            check_judge(self._config.judge)
        if "speaker" in needs:
            check_speaker_model(self._config.speaker)

    def load(self, needs: Iterable[Need]) -> None:
        """Load these models now: a judge takes longer to load than a call may take.

        Raises:
            UserError: a model or a package is missing.
        """
        import torch  # here, so that a configuration is checked without it

        # A reward actor shares its machine with engines and a learner; torch would take every core for itself.
        torch.set_num_threads(self._config.threads)
        for need in needs:
            match need:
                case "judge":
                    self.judge("judge")
                case "speaker":
                    _ = self.speaker
                case "quality":
                    _ = self.quality
                case "pitch":
                    world()
        torch.set_num_threads(self._config.threads)  # funasr sets it again while it loads

    def judge(self, name: Literal["judge", "second_judge"]) -> Judge:
        if name not in self._judges:
            config = self._config.judge if name == "judge" else self._config.second_judge
            check_judge(config, name)
            self._judges[name] = build_judge(config, self._config.threads)
        return self._judges[name]

    @cached_property
    def speaker(self) -> SpeakerModel:
        return build_speaker_model(self._config.speaker, self._config.threads)

    @cached_property
    def quality(self) -> DNSMOS:
        return DNSMOS(self._config.threads)
