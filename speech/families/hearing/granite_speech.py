"""Granite-Speech (2505.08699): conformer encoder, a query transformer over windows of states, Granite."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GraniteSpeechCTCEncoder
from transformers.audio_utils import mel_filter_bank
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechEncoderProjector

from speech.errors import UserError
from speech.families.base import AudioEncoder
from speech.families.checkpoint import LowRank, copy_files, replaced
from speech.families.hearing.native import NESTED_PLACES, NativeFamily
from speech.records import Utterance
from speech.runtime.checkpoint_files import require_files

MELS = {"sample_rate": 16_000, "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80}
"""Defaults of `GraniteSpeechFeatureExtractor`."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_ADAPTED = re.compile(r"\.(layers\.\d+\..+)\.lora_([AB])\.weight$")


class GraniteSpeechConformer(AudioEncoder):
    """The encoder, one utterance at a time: its blocks of attention and its convolutions know no padding.

    Args:
        mels: of the log-mel spectrogram, as `preprocessor_config.json` has them.
    """

    def __init__(self, tower: GraniteSpeechCTCEncoder, mels: Mapping[str, int]) -> None:
        super().__init__()
        self.tower = tower
        self.mels = dict(mels)
        filters = mel_filter_bank(
            num_frequency_bins=mels["n_fft"] // 2 + 1,
            num_mel_filters=mels["n_mels"],
            min_frequency=0.0,
            max_frequency=mels["sample_rate"] / 2,
            sampling_rate=mels["sample_rate"],
            norm=None,
            mel_scale="htk",
        )
        self.filters = torch.from_numpy(filters).float()  # no buffer: it is used in float32 whatever the encoder is in

    def features(self, wave: np.ndarray) -> torch.Tensor:
        """Waveform (samples,) at 16 kHz → two log-mel frames side by side (frames, 2 · mel bins), 50 rows a second.

        As `GraniteSpeechFeatureExtractor` does with torchaudio's `MelSpectrogram`, which is not needed here.
        """
        hop, width = self.mels["hop_length"], self.mels["win_length"]
        wave = np.pad(wave.astype(np.float32), (0, max(0, 2 * hop - len(wave))))
        spectrum = torch.stft(
            torch.from_numpy(wave),
            self.mels["n_fft"],
            hop,
            width,
            window=torch.hann_window(width),
            pad_mode="reflect",
            return_complex=True,
        )
        mel = (spectrum.abs().square().T @ self.filters).clamp(min=1e-10).log10()
        mel = torch.maximum(mel, mel.max() - 8.0) / 4 + 1
        return mel[: len(mel) // 2 * 2].reshape(-1, 2 * mel.shape[1]).contiguous()

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        weight = self.tower.input_linear.weight
        return [self.tower(item[None].to(weight)).last_hidden_state[0] for item in features]


class GraniteSpeechProjector(nn.Module):
    """`GraniteSpeechEncoderProjector` for the states of one utterance."""

    def __init__(self, projector: GraniteSpeechEncoderProjector) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(states, encoder_hidden) → (audio_length, hidden)."""
        embeddings: torch.Tensor = self.projector(states[None])[0]
        return embeddings


class GraniteSpeechFamily(NativeFamily):
    """Granite-Speech. The response is the transcript and the tokenizer's end token.

    Granite multiplies its embeddings, residuals and attention scores, and divides its logits, by factors of its
    configuration. transformers 5.19 leaves the last division out of `GraniteSpeechForConditionalGeneration`, though not
    out of `GraniteForCausalLM`; here and in the engine it is done.

    A released checkpoint has a LoRA adapter for its language model, which is on whenever there is audio. It is merged
    when the language model is loaded. An export of a trained language model is the merged one, without an adapter.

    Args:
        path: checkpoint folder.
        instruction: what the user's turn says after the audio.

    Raises:
        UserError: a file is missing, or the checkpoint is not of this form.
    """

    name = "granite_speech"
    model_types = ("granite_speech",)
    text_types = ("granite",)
    ties = True
    places = {
        **NESTED_PLACES,
        "adaptor": ("projector.", "model.projector."),
        "encoder": ("encoder.", "model.encoder."),
    }
    audio_token_key = "audio_token_index"
    own_names = {"language_model": "model.", "adaptor": "projector.", "encoder": "tower."}

    def __init__(self, path: Path, instruction: str = "can you transcribe the speech into a written format?") -> None:
        super().__init__(path)
        self.instruction = instruction
        if self.model_config.has_lora_adapter:
            require_files(path, ADAPTER_FILES)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._stops(self.tokenizer.eos_token)

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        tower = self._load_tower(GraniteSpeechCTCEncoder, self.model_config.encoder_config, dtype)
        stored = next(self.path / n for n in ("preprocessor_config.json", "processor_config.json") if self._has(n))
        settings = json.loads(stored.read_text(encoding="utf-8"))
        settings = settings.get("audio_processor") or settings.get("feature_extractor") or settings
        return GraniteSpeechConformer(tower, MELS | settings.get("melspec_kwargs", {})).eval()

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        projector = GraniteSpeechEncoderProjector(self.model_config)
        return GraniteSpeechProjector(self._fill(projector, "adaptor", dtype)).eval()

    def frames(self, samples: int) -> int:
        return (max(samples, 320) // 160 + 1) // 2

    def audio_length(self, frames: int) -> int:
        """Three for each window of 15 states begun, in the released checkpoints: 10 a second."""
        config = self.model_config
        return -(-frames // config.window_size) * (config.window_size // config.downsample_rate)

    def prompt_text(self, utterance: Utterance) -> str:
        return self._user_turn(self.tokenizer, f"<|audio|>{self.instruction}")

    def _language_tensors(self) -> dict[str, torch.Tensor]:
        tensors = super()._language_tensors()
        if self.model_config.has_lora_adapter:
            for name, own in _adapter(self.path).items():
                if name not in tensors:
                    raise UserError(f"{self.path / ADAPTER_FILES[1]}: {name} adapts nothing in the language model")
                tensors[name] = replaced(tensors[name], own)
        return tensors

    def _write(self, folder: Path, new: Mapping[str, torch.Tensor | LowRank]) -> None:
        if not self.model_config.has_lora_adapter:
            super()._write(folder, new)
            return
        if not any(name.startswith(self._place("language_model")) for name in new):
            super()._write(folder, new)
            copy_files(self.path, ADAPTER_FILES, folder)
            return
        # What was learned stands on weights with the adapter, and the stored ones are without it.
        merged = dict(new)
        for name, own in _adapter(self.path).items():
            stored = self.stored_name("language_model", name)
            learned = merged.get(stored)
            if not isinstance(learned, torch.Tensor):
                merged[stored] = own if learned is None else own.plus(learned)
        super()._write(folder, merged)
        config = self.config() | {"has_lora_adapter": False}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _has(self, name: str) -> bool:
        return (self.path / name).is_file()


def _adapter(path: Path) -> dict[str, LowRank]:
    """A LoRA adapter as peft stores it, by the names of the weights in the language model that it adapts.

    Raises:
        UserError: the adapter is of a form that is not known here, or does not fit.
    """
    file = path / ADAPTER_FILES[0]
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    unknown = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out",
                               "layer_replication", "lora_bias") if config.get(key)]  # fmt: skip
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unknown:
        more = f", not one with {', '.join(unknown)}" if unknown else ""
        raise UserError(f"{file}: only a plain LoRA adapter is known{more}")
    rank = config["r"]
    factor = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(path / ADAPTER_FILES[1]).items():
        match = _ADAPTED.search(name)
        if match is None:
            raise UserError(f"{path / ADAPTER_FILES[1]}: {name} adapts nothing in the language model")
        pairs.setdefault(f"model.{match[1]}.weight", {})[match[2]] = tensor
    return {target: LowRank(pair["A"], pair["B"], factor) for target, pair in pairs.items()}
