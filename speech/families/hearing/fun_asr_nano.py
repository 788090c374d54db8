"""Fun-ASR-Nano (2509.12508) in transformers' native form: SenseVoice's encoder, an adaptor that attends, Qwen3."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import FunAsrNanoEncoder
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function
from transformers.models.fun_asr_nano.modeling_fun_asr_nano import FunAsrNanoMultiModalProjector
from transformers.models.fun_asr_nano.processing_fun_asr_nano import LANGUAGE_CODE_TO_NAME

from speech.errors import UserError
from speech.families.base import AudioEncoder
from speech.families.hearing.native import NativeFamily, too_long
from speech.records import Utterance

RATE, WIDTH, HOP, POINTS = 16_000, 400, 160, 512
"""Hz; samples of a frame, between frames, and of the transform."""
DEFAULTS = {"feature_size": 80, "num_frames_lfr": 7, "stride_lfr": 6, "window": "hamming"}
"""Of `FunAsrNanoFeatureExtractor`."""


class FunAsrNanoAudioEncoder(AudioEncoder):
    """One utterance at a time, without padding.

    Args:
        settings: of the feature extractor, with the names of `DEFAULTS`.
    """

    def __init__(self, tower: FunAsrNanoEncoder, settings: dict[str, Any]) -> None:
        super().__init__()
        self.tower = tower
        self.settings = settings
        self.filters = mel_filter_bank(
            num_frequency_bins=POINTS // 2 + 1,
            num_mel_filters=settings["feature_size"],
            min_frequency=20.0,
            max_frequency=RATE / 2,
            sampling_rate=RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        self.window = window_function(WIDTH, settings["window"], periodic=False)

    def features(self, wave: np.ndarray) -> torch.Tensor:
        """Waveform (samples,) at 16 kHz → Kaldi's filter banks, 7 frames side by side in steps of 6 (rows, 560).

        As `FunAsrNanoFeatureExtractor` does with torchaudio's `kaldi.fbank`, which is not needed here.

        Raises:
            InputError: the recording has more rows than the encoder has positions.
        """
        longest = self.tower.config.max_position_embeddings - 1  # positions are counted from 1
        if rows(len(wave), self.settings["stride_lfr"]) > longest:
            seconds = longest * self.settings["stride_lfr"] * HOP / RATE
            raise too_long(len(wave), seconds)
        wave = np.pad(wave.astype(np.float32), (0, max(0, WIDTH - len(wave))))
        banks = spectrogram(
            wave,
            self.window,
            frame_length=WIDTH,
            hop_length=HOP,
            fft_length=POINTS,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=self.filters,
            mel_floor=float(np.finfo(np.float32).eps),
            log_mel="log",
            remove_dc_offset=True,
        ).T
        stack, stride = self.settings["num_frames_lfr"], self.settings["stride_lfr"]
        frames = torch.from_numpy(np.ascontiguousarray(banks, dtype=np.float32))
        # The window around frame i·stride; where it reaches over an end, the frame at that end is repeated.
        middle = torch.arange(0, len(frames), stride)[:, None] - (stack - 1) // 2 + torch.arange(stack)
        return frames[middle.clamp(0, len(frames) - 1)].flatten(1)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        weight = self.tower.layers[0].input_layernorm.weight
        return [self.tower(item[None].to(weight), _whole(item)).last_hidden_state[0] for item in features]


class FunAsrNanoProjector(nn.Module):
    """`FunAsrNanoMultiModalProjector` for the states of one utterance."""

    def __init__(self, projector: FunAsrNanoMultiModalProjector) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(states, encoder_hidden) → (audio_length, hidden)."""
        embeddings: torch.Tensor = self.projector(states[None], _whole(states))[0]
        return embeddings


def _whole(rows: torch.Tensor) -> torch.Tensor:
    return torch.ones(1, len(rows), dtype=torch.long, device=rows.device)


def rows(samples: int, stride: int) -> int:
    """Rows of features: whole frames of 25 ms every 10 ms, then one for each `stride` frames begun."""
    return -(-(1 + (max(samples, WIDTH) - WIDTH) // HOP) // stride)


class FunAsrNanoFamily(NativeFamily):
    """Fun-ASR-Nano. The response is the transcript and `<|im_end|>`.

    Args:
        path: checkpoint folder.
        force_language: name the language in the prompt: `True` wherever the utterance's is known to the model (zh, en,
            ja), a code such as `en` for every utterance.
        hotwords: put the utterance's `keywords` into the prompt where the chat template has a place for them, in the
            order of the manifest. An utterance without keywords has the prompt that it has without the option.

    Raises:
        UserError: a file is missing, the checkpoint is not of this form, the model does not know the language, or
            the chat template has no place for keywords.
    """

    name = "fun_asr_nano"
    model_types = ("fun_asr_nano",)
    text_types = ("qwen3",)
    ties = True
    places = {
        "language_model": ("model.language_model.",),
        "lm_head": ("lm_head.",),
        "adaptor": ("model.multi_modal_projector.",),
        "encoder": ("model.audio_tower.",),
    }
    own_names = {"language_model": "model.", "adaptor": "projector.", "encoder": "tower."}
    stop_token = "<|im_end|>"

    def __init__(self, path: Path, force_language: bool | str = False, hotwords: bool = False) -> None:
        if not isinstance(hotwords, bool):
            raise UserError(f"hotwords is {hotwords!r}; give true or false")
        if not isinstance(force_language, bool) and force_language not in LANGUAGE_CODE_TO_NAME:
            raise UserError(f"force_language is {force_language!r}; give true, false or one of zh, en, ja")
        super().__init__(path)
        self.force_language = force_language
        self.prompts_keywords = hotwords
        if hotwords and self._turn(("a",), None) == self._turn((), None):
            raise UserError(f"model folder {path}: its chat template has no place for keywords (option hotwords)")

    @cached_property
    def _settings(self) -> dict[str, Any]:
        files = ("preprocessor_config.json", "processor_config.json")
        stored = next(self.path / name for name in files if (self.path / name).is_file())
        given = json.loads(stored.read_text(encoding="utf-8"))
        given = given.get("feature_extractor", given)
        return {key: given.get(key, default) for key, default in DEFAULTS.items()}

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        tower = self._load_tower(FunAsrNanoEncoder, self.model_config.audio_config, dtype)
        return FunAsrNanoAudioEncoder(tower, self._settings).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        projector = self._adaptor(partial(FunAsrNanoMultiModalProjector, self.model_config), dtype)
        return FunAsrNanoProjector(projector).eval()

    def frames(self, samples: int) -> int:
        return rows(samples, self._settings["stride_lfr"])

    def audio_length(self, frames: int) -> int:
        """One position a row: 16.7 a second."""
        return frames

    def prompt_text(self, utterance: Utterance) -> str:
        code = self.force_language if isinstance(self.force_language, str) else utterance.language
        language = LANGUAGE_CODE_TO_NAME.get(code or "") if self.force_language else None
        keywords = utterance.keywords if self.prompts_keywords else ()
        for keyword in keywords:
            self.text_ids(keyword, "keywords")  # a control token among them would be an order to the model
        return self._turn(keywords, language)

    def _turn(self, keywords: Sequence[str], language: str | None) -> str:
        """The parts of a turn in the order of `FunAsrNanoProcessor.apply_transcription_request`."""
        content: list[dict[str, Any]] = [{"type": "audio"}]
        if keywords:
            content.append({"type": "keywords", "keywords": list(keywords)})
        if language:
            content.append({"type": "language", "language": language})
        return self._user_turn(self.tokenizer, content)
