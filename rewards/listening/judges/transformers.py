"""Judges that transformers carries: Whisper and Qwen3-ASR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoProcessor, GenerationConfig

from rewards.config import JudgeConfig
from rewards.listening.judge import Judge, Transcript, Wave, resample
from rewards.registries import JUDGES
from speech.errors import UserError

_SAMPLE_RATE = 16_000
_TOKENS_PER_SECOND = 15
_LEAST_TOKENS = 24


@JUDGES.register("transformers")
class TransformersJudge(Judge):
    """Reads greedily; states likelihood by teacher forcing with Whisper.

    Whisper hears a fixed window (30 s): longer waves are cut into windows whose texts are joined, and have no
    likelihood.
    """

    states_likelihood = True

    def __init__(self, config: JudgeConfig, threads: int) -> None:
        model_class = _model_class(config.path)
        dtype = torch.float32 if config.device == "cpu" else torch.bfloat16
        try:
            self._processor: Any = AutoProcessor.from_pretrained(config.path)
            self._model: Any = model_class.from_pretrained(config.path, dtype=dtype).to(config.device).eval()
        except (OSError, ValueError) as error:
            raise UserError(f"judge 'transformers': cannot load {config.path}: {error}") from error
        self._whisper = self._model.config.model_type == "whisper"
        self.states_likelihood = self._whisper
        if self._whisper:
            settings = self._model.generation_config
            self._multilingual = bool(getattr(settings, "is_multilingual", self._model.config.vocab_size > 51864))
            if not self._multilingual:
                self.languages = frozenset({"en"})
            # Whisper's encoder halves the frames of the spectrogram once; a frame lasts `hop_length` samples.
            frames = 2 * self._model.config.max_source_positions
            self._window = frames * self._processor.feature_extractor.hop_length
        super().__init__(config, threads)

    @torch.inference_mode()
    def transcribe(
        self, waves: Sequence[Wave], sample_rate: int, language: str, references: Sequence[str] | None = None
    ) -> list[Transcript]:
        signals = [resample(wave, sample_rate, _SAMPLE_RATE) for wave in waves]
        if not self._whisper:
            return [Transcript(text) for text in self._qwen3(signals, language)]
        pieces = [self._cut(signal) for signal in signals]
        features = self._features([piece for row in pieces for piece in row])
        texts = iter(self._whisper_texts(features, language, max(map(len, signals)) / _SAMPLE_RATE))
        joined = [" ".join(next(texts).strip() for _ in row) for row in pieces]
        if references is None:
            return [Transcript(text) for text in joined]
        firsts = np.cumsum([0, *(len(row) for row in pieces)])[:-1]
        nlls = self._whisper_likelihoods(features[torch.as_tensor(firsts)], references, language)
        return [
            Transcript(text, nll if len(row) == 1 else None)
            for text, nll, row in zip(joined, nlls, pieces, strict=True)
        ]

    def _cut(self, signal: Wave) -> list[Wave]:
        return [signal[start : start + self._window] for start in range(0, len(signal), self._window)]

    def _features(self, signals: Sequence[Wave]) -> torch.Tensor:
        """Log-mel spectrograms (waves, mel bins, frames of the whole window)."""
        features = self._processor.feature_extractor(
            list(signals),
            sampling_rate=_SAMPLE_RATE,
            padding="max_length",
            max_length=self._window,
            truncation=True,
            return_tensors="pt",
        ).input_features
        moved: torch.Tensor = features.to(self._model.device, self._model.dtype)
        return moved

    def _whisper_texts(self, features: torch.Tensor, language: str, seconds: float) -> list[str]:
        # Without a prefix of special tokens the English models take <|notimestamps|> alone, which generate() adds.
        spoken = {"language": language, "task": "transcribe"} if self._multilingual else {}
        # The decoder's positions also hold the prefix of up to four tokens.
        most = min(_budget(seconds), self._model.config.max_target_positions - 8)
        ids = self._model.generate(
            features, max_new_tokens=most, do_sample=False, num_beams=1, return_timestamps=False, **spoken
        )
        texts: list[str] = self._processor.batch_decode(ids, skip_special_tokens=True)
        return texts

    def _whisper_likelihoods(self, features: torch.Tensor, references: Sequence[str], language: str) -> list[float]:
        """−log p(reference tokens, end of text included) / number of them."""
        tokenizer = self._processor.tokenizer
        if self._multilingual:
            tokenizer.set_prefix_tokens(language=language, task="transcribe", predict_timestamps=False)
        # A control token's name in a text is characters, not the end of the text.
        rows = [tokenizer(text, split_special_tokens=True).input_ids for text in references]
        prefix = len(tokenizer.prefix_tokens)
        longest = self._model.config.max_target_positions
        width = max(len(row) for row in rows) - 1
        if width > longest:
            raise ValueError(f"a text of {width} tokens is longer than the judge's {longest}")
        # Padding on the right is never seen by what stands before it, so any id will do.
        inputs = torch.zeros(len(rows), width, dtype=torch.long, device=features.device)
        for i, row in enumerate(rows):
            inputs[i, : len(row) - 1] = torch.tensor(row[:-1])
        logits = self._model(input_features=features, decoder_input_ids=inputs).logits
        nlls = []
        for i, row in enumerate(rows):
            log_probs = logits[i, prefix - 1 : len(row) - 1].float().log_softmax(-1)
            wanted = torch.tensor(row[prefix:], device=features.device)
            nlls.append(-log_probs.gather(1, wanted[:, None]).mean().item())
        return nlls

    def _qwen3(self, signals: Sequence[Wave], language: str) -> list[str]:
        request = self._processor.apply_transcription_request(audio=list(signals), language=language)
        request = request.to(self._model.device, self._model.dtype)
        stops = self._model.generation_config.eos_token_id
        settings = GenerationConfig(
            max_new_tokens=_budget(max(map(len, signals)) / _SAMPLE_RATE),
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )
        ids = self._model.generate(**request, generation_config=settings)
        new = ids[:, request["input_ids"].shape[1] :]
        texts: list[str] = self._processor.decode(new, return_format="transcription_only")
        return texts


def _model_class(path: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"judge 'transformers': cannot read the configuration of {path}: {error}") from error
    if config.model_type == "whisper":
        from transformers import WhisperForConditionalGeneration

        return WhisperForConditionalGeneration
    if config.model_type == "qwen3_asr":
        from transformers import Qwen3ASRForConditionalGeneration

        return Qwen3ASRForConditionalGeneration
    raise UserError(f"judge 'transformers': {path} is of type {config.model_type!r}; known are whisper and qwen3_asr")


def _budget(seconds: float) -> int:
    """Tokens that a transcript may take: more than anybody says in that time."""
    return max(_LEAST_TOKENS, math.ceil(seconds * _TOKENS_PER_SECOND))
