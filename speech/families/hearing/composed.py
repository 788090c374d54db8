"""Any audio encoder of transformers, a projector of ours, and any causal language model (SLAM-ASR, 2402.08846)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speech.errors import UserError
from speech.families.base import AudioEncoder
from speech.families.checkpoint import copy_files, new_folder
from speech.families.hearing.native import NativeFamily
from speech.families.hearing.windows import SILENCE, WindowEncoder, sound_frames
from speech.records import PromptLayout, Utterance
from speech.runtime.checkpoint_files import require_files

MODEL_TYPE = "speechrl_composed"
WAVEFORM_ENCODERS = (
    "wav2vec2",
    "hubert",
    "wavlm",
    "unispeech",
    "unispeech-sat",
    "data2vec-audio",
    "wav2vec2-conformer",
)
STATES_PER_SECOND = 50
"""Of Whisper's encoder."""
SHORTEST = 400
"""Samples that one state of the waveform encoders sees."""
_MARK = "\ufff9"
"""Where the audio goes in a chat template: a character that no template holds."""


class Projector(nn.Module):
    """k states side by side → linear → ReLU → linear; a last group that is not full is filled with zeros.

    Args:
        states: width of an encoder state.
        stack: states a position, k.
        hidden: width between the two layers.
        width: of the language model.
    """

    def __init__(self, states: int, stack: int, hidden: int, width: int) -> None:
        super().__init__()
        self.stack = stack
        self.linear_1 = nn.Linear(states * stack, hidden)
        self.linear_2 = nn.Linear(hidden, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(states, encoder_hidden) → (audio_length, hidden)."""
        padded = nn.functional.pad(states, (0, 0, 0, -len(states) % self.stack))
        embeddings: torch.Tensor = self.linear_2(self.linear_1(padded.reshape(-1, self.linear_1.in_features)).relu())
        return embeddings


class WhisperWindowEncoder(WindowEncoder):
    """Whisper's encoder over one window, of 30 s as it was trained or shorter; only states of the sound are kept."""

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        windows, frames = zip(*(self.as_windows(item) for item in features), strict=True)
        states = self.tower(torch.cat(windows).to(self.tower.conv1.weight)).last_hidden_state
        return [row[: -(-count // 2)] for row, count in zip(states, frames, strict=True)]


class WaveformEncoder(AudioEncoder):
    """wav2vec 2.0 and its like, one utterance at a time: their first layer normalises over the whole input."""

    def __init__(self, tower: PreTrainedModel, extractor: Any) -> None:
        super().__init__()
        self.tower = tower
        self.extractor = extractor

    def features(self, wave: np.ndarray) -> torch.Tensor:
        """Waveform (samples,) at 16 kHz → (samples, 1), normalised where the encoder asks for it."""
        wave = np.pad(wave.astype(np.float32), (0, max(0, SHORTEST - len(wave))))
        values = self.extractor(wave, sampling_rate=16_000, padding=False)["input_values"][0]
        return torch.as_tensor(values, dtype=torch.float32)[:, None]

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        weight = next(self.tower.parameters())
        return [self.tower(item.T.to(weight)).last_hidden_state[0] for item in features]


class ComposedFamily(NativeFamily):
    """A folder that `compose` has built. Its `config.json` holds the two configurations and the projector's sizes.

    The prompt is the language model's chat template around audio and instruction; without a template it is SLAM-ASR's
    `USER: ` audio instruction ` ASSISTANT: `. The response is the transcript and the tokenizer's end token.

    Args:
        path: checkpoint folder.
        instruction: what follows the audio in the prompt.

    Raises:
        UserError: a file is missing, or the checkpoint is not of this form.
    """

    name = "composed"
    model_types = (MODEL_TYPE,)
    text_types = ()
    ties = True
    places = {
        "language_model": ("language_model.model.",),
        "lm_head": ("language_model.lm_head.",),
        "adaptor": ("adaptor.",),
        "encoder": ("encoder.",),
    }

    def __init__(self, path: Path, instruction: str = "Transcribe speech to text.") -> None:
        super().__init__(path)
        self.instruction = instruction

    def _check_files(self) -> None:
        require_files(self.path, ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])

    def _read_config(self) -> SimpleNamespace:
        raw = self.config()
        missing = [key for key in ("audio_config", "text_config", "projector") if key not in raw]
        if missing:
            raise UserError(f"{self.path / 'config.json'}: lacks {', '.join(missing)}")
        text = AutoConfig.for_model(**raw["text_config"])
        return SimpleNamespace(
            audio_config=AutoConfig.for_model(**raw["audio_config"]),
            text_config=text,
            tie_word_embeddings=text.tie_word_embeddings,
        )

    @property
    def audio_token(self) -> int:
        """Any: nothing looks at it."""
        return 0

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._stops(self.tokenizer.eos_token)

    @property
    def _hears_windows(self) -> bool:
        return bool(self.model_config.audio_config.model_type == "whisper")

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        config = self.model_config.audio_config
        tower = self._load_tower(_tower_class(config), config, dtype)
        extractor = AutoFeatureExtractor.from_pretrained(self.path)
        if self._hears_windows:
            return WhisperWindowEncoder(tower, extractor, length=2 * config.max_source_positions).eval()
        return WaveformEncoder(tower, extractor).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        sizes = self.config()["projector"]
        states, width = self.model_config.audio_config.hidden_size, self.text_config.hidden_size
        return self._adaptor(partial(Projector, states, sizes["stack"], sizes["hidden_size"], width), dtype)

    def frames(self, samples: int) -> int:
        return sound_frames(samples) + SILENCE if self._hears_windows else max(samples, SHORTEST)

    def audio_length(self, frames: int) -> int:
        """With a stack of 5: 10 positions a second, the last one begun counted."""
        if self._hears_windows:
            states = -(-(frames - SILENCE) // 2)
        else:
            states = frames
            config = self.model_config.audio_config
            for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
                states = (states - kernel) // stride + 1
        return -(-states // int(self.config()["projector"]["stack"]))

    def prompt_text(self, utterance: Utterance) -> str:
        if self.tokenizer.chat_template is None:
            return f"USER: {_MARK}{self.instruction} ASSISTANT: "
        return self._user_turn(self.tokenizer, _MARK + self.instruction)

    def layout(self, utterance: Utterance, audio_length: int) -> PromptLayout:
        text = self.prompt_text(utterance)
        if text not in self._prompts:
            before, _, after = text.partition(_MARK)
            self._prompts[text] = (
                self.tokenizer.encode(before, add_special_tokens=False),
                self.tokenizer.encode(after, add_special_tokens=False),
            )
        before_ids, after_ids = self._prompts[text]
        return PromptLayout((*before_ids, *[0] * audio_length, *after_ids), len(before_ids), audio_length)


def _seconds(config: PreTrainedConfig) -> int:
    """What Whisper hears."""
    return int(config.max_source_positions) // STATES_PER_SECOND


def _tower_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    return WhisperEncoder if config.model_type == "whisper" else MODEL_MAPPING[type(config)]


def compose(
    encoder: str | Path,
    language_model: str | Path,
    folder: str | Path,
    stack: int = 5,
    hidden: int = 2048,
    seed: int = 0,
    window: int | None = None,
) -> Path:
    """Build a checkpoint from two Hugging Face folders and a new projector.

    Args:
        encoder: folder of Whisper, or of wav2vec 2.0 or one of its like, with its `preprocessor_config.json`.
        language_model: folder of a causal language model with its tokenizer.
        folder: where to write; must not exist.
        stack: encoder states a position; SLAM-ASR's 5 gives 10 positions a second.
        hidden: width between the projector's two layers.
        seed: of the projector's weights.
        window: seconds that Whisper hears, its first positions; None for all its 30. The encoder's time goes down at
            least in proportion. Longer recordings are refused.

    Raises:
        UserError: an encoder or a language model of a kind that is not known, a window that the encoder does not have,
            or the folder exists.
    """
    encoder, language_model, folder = Path(encoder), Path(language_model), Path(folder)
    for source in (encoder, language_model):
        require_files(source, ["config.json"])
    require_files(encoder, ["preprocessor_config.json"])
    audio_config = AutoConfig.from_pretrained(encoder)
    if audio_config.model_type not in ("whisper", *WAVEFORM_ENCODERS):
        known = ", ".join(("whisper", *WAVEFORM_ENCODERS))
        raise UserError(
            f"{encoder / 'config.json'}: model_type {audio_config.model_type!r}; known encoders are {known}"
        )
    if window is not None and not (audio_config.model_type == "whisper" and 1 <= window <= _seconds(audio_config)):
        raise UserError(f"a window of {window} s: only Whisper has one, of 1 to 30 s")
    tower = AutoModel.from_pretrained(encoder, dtype="auto", use_safetensors=True)
    tower = tower.encoder if audio_config.model_type == "whisper" else tower
    model = AutoModelForCausalLM.from_pretrained(language_model, dtype="auto", use_safetensors=True)
    if model.base_model_prefix != "model" or not isinstance(getattr(model.base_model, "layers", None), nn.ModuleList):
        raise UserError(f"{language_model}: {type(model).__name__} does not have its layers at model.layers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adaptor = Projector(audio_config.hidden_size, stack, hidden, model.config.hidden_size).to(model.dtype)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    parts = {"encoder": tower, "adaptor": adaptor, "language_model": model}
    tensors = {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
        if part != "language_model" or name not in tied
    }
    if window is not None:
        audio_config.max_source_positions = window * STATES_PER_SECOND
        positions = tensors["encoder.embed_positions.weight"]
        tensors["encoder.embed_positions.weight"] = positions[: audio_config.max_source_positions].clone()
    config = {
        "model_type": MODEL_TYPE,
        "audio_config": audio_config.to_dict(),
        "text_config": model.config.to_dict(),
        "projector": {"stack": stack, "hidden_size": hidden},
    }
    with new_folder(folder) as partial:
        AutoTokenizer.from_pretrained(language_model).save_pretrained(partial)
        save_torch_state_dict(tensors, partial)
        copy_files(encoder, ["preprocessor_config.json"], partial)
        copy_files(language_model, ["generation_config.json"], partial)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder
