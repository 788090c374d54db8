"""A judge of any family that hears, whose language model runs in a vLLM engine: a whole call is read at once.

It stands here because `rewards` knows no engine and `rollout` no judge (docs/decisions/051-a-judge-on-an-engine.md).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Sequence

from rewards.config import JudgeConfig
from rewards.listening.judge import Judge, JudgeLostError, Transcript, Wave, resample
from rewards.registries import JUDGES
from rollout.config import EncoderConfig, EngineConfig, SamplingConfig
from rollout.environment import engine_environment
from rollout.errors import EngineLostError, StaleEngineError
from rollout.vllm_process.root_cause import causes_named
from speech.audio import load_audio
from speech.errors import PhaseTimeoutError, UserError
from speech.families import ModelFamily, load_family
from speech.records import BadUtterance, EncodedAudio, Prompt, Utterance
from speech.runtime.hub import model_folder
from speech.runtime.importing import ours_first
from speech.text import language_code

_TOKENS_PER_SECOND = 15  # nobody speaks faster; what a judge writes beyond it is a loop
_LEAST_TOKENS = 24
_BATCHED_TOKENS = 4096
_GPU_MEMORY = 0.9
"""Of the share of a GPU that the judge asks for: the encoder and CUDA itself need the rest."""


@JUDGES.register("vllm")
class VLLMJudge(Judge):
    """Reads greedily; states no likelihood.

    Encoder and adaptor run in this process, the language model in an engine of this process's own. An engine that is
    lost is a `JudgeLostError`: who supervises this process starts another, whose engine frees what this one has left.
    """

    takes_all = True

    def __init__(self, config: JudgeConfig, threads: int) -> None:
        super().__init__(config, threads)
        self._family = family = hearing_family(config)
        if self.languages is None:
            self.languages = family.languages
        self._length = config.engine.max_model_len
        engine = EngineConfig(
            threads=threads,
            dtype=config.engine.dtype,
            max_model_len=self._length,
            max_num_batched_tokens=max(_BATCHED_TOKENS, self._length),
            kv_cache_gb=config.engine.kv_cache_gb,
            gpus_per_engine=math.ceil(config.gpus),
            gpu_memory_utilization=config.gpus * _GPU_MEMORY,
        )
        os.environ.update(engine_environment(engine))  # before vLLM is imported; its processes inherit it
        ours_first()
        logging.getLogger("vllm").setLevel(logging.WARNING)
        from rollout.encoders.encoder import UtteranceEncoder
        from rollout.engine.engine import RolloutEngine

        device = "cuda" if config.gpus else "cpu"
        self._encoder = UtteranceEncoder(
            family, EncoderConfig(threads=threads, dtype=config.engine.dtype), load_audio, device
        )
        self._engine = RolloutEngine(family, engine)
        self._runner = asyncio.Runner()
        try:
            with causes_named():
                self._runner.run(self._engine.start())
        except UserError as error:
            raise UserError(f"judge 'vllm': its engine does not start: {error}") from error

    def transcribe(
        self, waves: Sequence[Wave], sample_rate: int, language: str, references: Sequence[str] | None = None
    ) -> list[Transcript]:
        audio = self._encoded(waves, sample_rate, language)
        budget = max(_LEAST_TOKENS, math.ceil(max(item.seconds for item in audio) * _TOKENS_PER_SECOND))
        room = self._length - max(len(item.layout.token_ids) for item in audio)
        if room < 1:
            raise ValueError(f"{max(item.seconds for item in audio):.1f} s do not fit max_model_len={self._length}")
        sampling = SamplingConfig(max_new_tokens=min(budget, room)).greedy()
        prompts = [
            Prompt(id=f"judge/{i}", utterance=_utterance(language), epoch=0, position=i, seed=0)
            for i in range(len(audio))
        ]
        try:
            groups = self._runner.run(self._engine.generate(prompts, audio, sampling))
        except (EngineLostError, StaleEngineError, PhaseTimeoutError) as error:
            raise JudgeLostError(f"judge 'vllm': {error}") from error
        return [Transcript(group.trajectories[0].text) for group in groups]

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.shutdown()
        self._runner.close()

    def _encoded(self, waves: Sequence[Wave], rate: int, language: str) -> list[EncodedAudio]:
        signals = [resample(wave, rate, self._family.sample_rate) for wave in waves]
        encoded: list[EncodedAudio] = []
        for item in self._encoder.encode(signals, [_utterance(language)] * len(waves)):
            if isinstance(item, BadUtterance):
                raise ValueError(item.reason)  # the caller tries the others without it
            encoded.append(item)
        return encoded


def hearing_family(config: JudgeConfig, key: str = "judge") -> ModelFamily:
    """The family of the judge's checkpoint, which is looked at and not loaded.

    Args:
        key: of the judge in `rewards.sound`, for messages.

    Raises:
        UserError: no such checkpoint, it does not hear, or it does not know a language that it is to read.
    """
    family = load_family(model_folder(config.path))
    if not isinstance(family, ModelFamily):
        raise UserError(f"rewards.sound.{key}.path: {config.path} is of family {family.name!r}, which does not hear")
    unknown = [] if family.languages is None else sorted({*map(language_code, config.languages)} - family.languages)
    if family.languages is not None and unknown:
        raise UserError(
            f"rewards.sound.{key}.languages: family {family.name!r} does not know {', '.join(unknown)}; "
            f"it knows {', '.join(sorted(family.languages))}"
        )
    return family


def _utterance(language: str) -> Utterance:
    return Utterance(id="", audio="", text="", language=language)
