"""Whisper through CTranslate2, several times faster than PyTorch on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.config import JudgeConfig
from rewards.listening.judge import Judge, Transcript, Wave, resample
from rewards.registries import JUDGES
from speech.errors import UserError
from speech.runtime.importing import import_extra

_SAMPLE_RATE = 16_000
_SHORTEST_S = 15.0  # Whisper invents text when its window is cut below this
_TOKENS_PER_SECOND = 15
_LEAST_TOKENS = 24
_MODELS_OWN = -1  # stands for the tokens that the model's own configuration suppresses


@JUDGES.register("faster_whisper")
class FasterWhisperJudge(Judge):
    """A folder with `model.bin` (CTranslate2), read greedily in batches, in a window as long as the longest wave asks
    for and not always 30 s. Longer waves are cut into windows of 30 s. States no likelihood."""

    def __init__(self, config: JudgeConfig, threads: int) -> None:
        package = import_extra("tts", "faster_whisper", "faster-whisper==1.2.1", "judge 'faster_whisper'")
        self._tokenizer_class = import_extra(
            "tts", "faster_whisper.tokenizer", "faster-whisper==1.2.1", "judge 'faster_whisper'"
        ).Tokenizer
        if not (Path(config.path) / "model.bin").is_file():
            raise UserError(f"judge 'faster_whisper': {config.path} holds no model.bin (CTranslate2)")
        self._model: Any = package.WhisperModel(
            config.path, device=config.device, cpu_threads=threads, compute_type="default", local_files_only=True
        )
        if not self._model.model.is_multilingual:
            self.languages = frozenset({"en"})
        self._suppressed = [_MODELS_OWN, *([] if config.numerals else self._numerals())]
        super().__init__(config, threads)

    def transcribe(
        self, waves: Sequence[Wave], sample_rate: int, language: str, references: Sequence[str] | None = None
    ) -> list[Transcript]:
        extractor = self._model.feature_extractor
        pieces = [_cut(resample(wave, sample_rate, _SAMPLE_RATE), extractor.n_samples) for wave in waves]
        flat = [piece for row in pieces for piece in row]
        seconds = max(map(len, flat)) / _SAMPLE_RATE
        window = min(max(seconds, _SHORTEST_S), extractor.n_samples / _SAMPLE_RATE)
        samples = round(window * _SAMPLE_RATE)
        features = np.stack([extractor(np.pad(p, (0, samples - len(p))), padding=0) for p in flat])
        tokenizer = self._tokenizer_class(
            self._model.hf_tokenizer, self._model.model.is_multilingual, task="transcribe", language=language
        )
        prompt = self._model.get_prompt(tokenizer, [], without_timestamps=True)
        results = self._model.model.generate(
            self._model.encode(features),
            [prompt] * len(flat),
            beam_size=1,
            suppress_tokens=self._suppressed,
            max_length=len(prompt) + max(_LEAST_TOKENS, round(seconds * _TOKENS_PER_SECOND)),
        )
        texts = iter([tokenizer.decode(result.sequences_ids[0]).strip() for result in results])
        return [Transcript(" ".join(next(texts) for _ in row)) for row in pieces]

    def _numerals(self) -> list[int]:
        """Ids of the tokens with a digit, or a sign that stands for a word beside one."""
        vocabulary = self._model.hf_tokenizer
        texts = range(vocabulary.token_to_id("<|endoftext|>"))  # specials follow
        return [i for i in texts if set(vocabulary.decode([i])) & set("0123456789%$£")]


def _cut(signal: Wave, window: int) -> list[Wave]:
    return [signal[start : start + window] for start in range(0, len(signal), window)]
