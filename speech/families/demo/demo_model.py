"""The demo speech LM: log-mel → convolution + transformer encoder → adaptor → Qwen3 language model.

This file is copied into every export (`auto_map` in `config.json`), so that plain transformers loads the model
with `trust_remote_code=True`. It must therefore import nothing of this project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.qwen3 import Qwen3Config, Qwen3ForCausalLM

SAMPLE_RATE = 16_000
WINDOW = 400
HOP = 160


class DemoSpeechConfig(PretrainedConfig):
    model_type = "speechrl_demo"
    sub_configs = {"text_config": Qwen3Config}

    def __init__(
        self,
        text_config: dict[str, Any] | Qwen3Config | None = None,
        mel_bins: int = 64,
        encoder_dim: int = 128,
        encoder_layers: int = 3,
        encoder_heads: int = 4,
        encoder_ffn: int = 384,
        adaptor_stack: int = 2,
        audio_token_id: int = 2,
        **kwargs: Any,
    ) -> None:
        if text_config is None:
            text_config = {}
        if isinstance(text_config, dict):
            known = {k: v for k, v in text_config.items() if k != "model_type"}
            text_config = Qwen3Config(**known)
        self.text_config: Qwen3Config = text_config
        self.mel_bins = mel_bins
        self.encoder_dim = encoder_dim
        self.encoder_layers = encoder_layers
        self.encoder_heads = encoder_heads
        self.encoder_ffn = encoder_ffn
        self.adaptor_stack = adaptor_stack
        self.audio_token_id = audio_token_id
        super().__init__(**kwargs)


def mel_filterbank(bins: int, fft: int = 512, rate: int = SAMPLE_RATE) -> torch.Tensor:
    """Triangular filters on the mel scale (HTK formula), (bins, fft/2 + 1)."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    hertz = 700 * (10 ** (torch.linspace(0, top, bins + 2, dtype=torch.float64) / 2595) - 1)
    freqs = torch.linspace(0, rate / 2, fft // 2 + 1, dtype=torch.float64)
    rise = (freqs - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    fall = (hertz[2:, None] - freqs) / (hertz[2:] - hertz[1:-1])[:, None]
    return torch.clamp(torch.minimum(rise, fall), min=0).float()


class DemoEncoder(nn.Module):
    """Log-mel frames (100 Hz) → states (25 Hz): two strided convolutions and a pre-norm transformer."""

    def __init__(self, config: DemoSpeechConfig) -> None:
        super().__init__()
        dim = config.encoder_dim
        self.heads = config.encoder_heads
        self.conv1 = nn.Conv1d(config.mel_bins, dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(
            DemoEncoderLayer(dim, config.encoder_heads, config.encoder_ffn) for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.mel_bins = config.mel_bins

    def features(self, wave: np.ndarray) -> torch.Tensor:
        """Waveform (samples,) at 16 kHz → log-mel (frames, mel_bins), mean and variance normalised per utterance."""
        signal = torch.as_tensor(np.ascontiguousarray(wave), dtype=torch.float32)
        if signal.numel() < WINDOW:
            signal = F.pad(signal, (0, WINDOW - signal.numel()))
        spectrum = torch.stft(
            signal, 512, HOP, WINDOW, torch.hann_window(WINDOW), center=True, pad_mode="constant", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        mel = (mel_filterbank(self.mel_bins) @ power).clamp_min(1e-8).log().T
        return (mel - mel.mean(0)) / (mel.std() + 1e-5)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        lengths = torch.tensor([f.shape[0] for f in features], device=features[0].device)
        x = nn.utils.rnn.pad_sequence(list(features), batch_first=True).transpose(1, 2)
        for conv in (self.conv1, self.conv2):
            # Padding is re-zeroed after each convolution: a state must not depend on the batch it was in.
            valid = (torch.arange(x.shape[-1], device=x.device) < lengths[:, None])[:, None]
            x = F.gelu(conv(x * valid))
            lengths = (lengths - 1) // 2 + 1
        x = x.transpose(1, 2)
        # Scaled down: at full size positions drown the sound, and alignment takes twice as long to learn.
        x = x + 0.1 * sinusoids(x.shape[1], x.shape[2], x.device, x.dtype)
        mask = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        return [x[i, :n] for i, n in enumerate(lengths.tolist())]


class DemoEncoderLayer(nn.Module):
    def __init__(self, dim: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, ffn), nn.Linear(ffn, dim)
        self.depthwise = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        local = (x * mask[:, 0, 0, :, None]).transpose(1, 2)
        x = x + self.depthwise(local).transpose(1, 2)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def sinusoids(length: int, dim: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10_000.0) / dim))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)


class DemoAdaptor(nn.Module):
    """Stacks `adaptor_stack` neighbouring states and maps them to the LM's width: 25 Hz → 12.5 Hz."""

    def __init__(self, config: DemoSpeechConfig) -> None:
        super().__init__()
        self.stack = config.adaptor_stack
        hidden = config.text_config.hidden_size
        self.up = nn.Linear(config.encoder_dim * self.stack, hidden * 2)
        self.down = nn.Linear(hidden * 2, hidden)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(states, encoder_dim) → (⌈states / stack⌉, hidden)."""
        short = -states.shape[0] % self.stack
        stacked = F.pad(states, (0, 0, 0, short)).reshape(-1, states.shape[1] * self.stack)
        return self.down(F.gelu(self.up(stacked)))


class DemoSpeechLM(PreTrainedModel):
    """The whole model. The training system uses its parts; `forward` serves plain transformers users."""

    config_class = DemoSpeechConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _tied_weights_keys = {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}

    def __init__(self, config: DemoSpeechConfig) -> None:
        super().__init__(config)
        self.encoder = DemoEncoder(config)
        self.ctc = nn.Linear(config.encoder_dim, config.text_config.vocab_size)
        self.adaptor = DemoAdaptor(config)
        self.language_model = Qwen3ForCausalLM(config.text_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: each part has initialised itself. The base class would draw every weight with the language model's
        standard deviation, from which a narrow encoder learns far more slowly than from PyTorch's own."""

    def embed_audio(self, waves: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """16 kHz waveforms → embeddings, each (audio positions, hidden)."""
        states = self.encoder([self.encoder.features(w).to(self.device) for w in waves])
        return [self.adaptor(s) for s in states]

    def forward(self, input_ids: torch.Tensor, audio_embeddings: torch.Tensor, **kwargs: Any) -> Any:
        """One prompt: ids (1, N) with `audio_token_id` where the embeddings (A, hidden) go → the LM's output."""
        embeds = self.language_model.get_input_embeddings()(input_ids)
        mask = (input_ids == self.config.audio_token_id).unsqueeze(-1)
        embeds = embeds.masked_scatter(mask, audio_embeddings.to(embeds.dtype))
        return self.language_model(inputs_embeds=embeds, **kwargs)
