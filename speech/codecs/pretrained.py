"""Codecs that transformers carries: XCodec2, NeuCodec, Mimi, DAC, each read from an ordinary checkpoint folder.

A frame of a codec with several codebooks becomes as many tokens, the coarsest first: the token of codebook q with code
c has the id q · codebook_size + c. On the way back the *position* of a token says which codebook it belongs to and its
id, modulo the size of a codebook, which entry: so any sequence of valid ids decodes. A last frame that lacks some
of its tokens is dropped.

An optional `codec.json` beside `config.json` sets `{"codebooks": n}`: use the first n only, since 32 (Mimi) or 12 (DAC)
tokens a frame are more than a language model wants to speak.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soxr
import torch
import transformers

from speech.codecs.base import Codec
from speech.codecs.checks import check_tokens, check_waves, read_json
from speech.errors import UserError


class PretrainedCodec(Codec):
    """What the adapters share. Move `model` to a device to work there.

    Waveforms are coded one by one: most of these networks look at padding, and a result may not depend on neighbours.
    """

    model_class: ClassVar[str]
    """Of transformers, which imports it when it is asked for: its models take seconds, and who looks for a codec looks
    at all of them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        config_path = path / "config.json"
        model_type = read_json(config_path).get("model_type")
        if model_type not in self.model_types:
            raise UserError(f"{config_path}: model_type is {model_type!r}, not {self.model_types[0]!r}")
        try:
            model_class = getattr(transformers, self.model_class)
            model, report = model_class.from_pretrained(path, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: {self.name} checkpoint cannot be loaded: {error}") from error
        if report["missing_keys"]:
            raise UserError(f"{path}: weights are missing: {', '.join(sorted(report['missing_keys'])[:5])} …")
        self.model: Any = model.eval()
        self.sample_rate, self._hop, available, self._codebook_size = self._describe(model.config)
        self._codebooks = _chosen_codebooks(path, available)
        self.size = self._codebooks * self._codebook_size
        self.token_rate = self.sample_rate / self._hop * self._codebooks

    @abstractmethod
    def _describe(self, config: Any) -> tuple[int, int, int, int]:
        """(Hz, samples of a frame at that rate, codebooks, entries of a codebook)."""

    @abstractmethod
    def _codes(self, wave: torch.Tensor) -> torch.Tensor:
        """Samples (1, 1, frames · hop) → codes (codebooks, frames)."""

    def _wave(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (1, codebooks, frames) → samples (…, samples)."""
        return self.model.decode(audio_codes=codes).audio_values

    @torch.inference_mode()
    def encode(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        """See `Codec.encode`. The waveform is padded with zeros to whole frames."""
        check_waves(waves)
        result = []
        offsets = torch.arange(self._codebooks)[:, None] * self._codebook_size
        for wave in waves:
            padded = np.pad(np.asarray(wave, np.float32), (0, -len(wave) % self._hop))
            codes = self._codes(torch.from_numpy(padded)[None, None].to(self.model.device)).cpu()
            frames = -(-len(wave) // self._hop)
            result.append((codes[: self._codebooks, :frames] + offsets).T.flatten().tolist())
        return result

    @torch.inference_mode()
    def decode(self, tokens: Sequence[Sequence[int]], voices: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Codec.decode`. The tokens carry the voice, so `voices` is ignored."""
        check_tokens(tokens, self.size)
        return [self._decode(ids) for ids in tokens]

    def _decode(self, ids: Sequence[int]) -> np.ndarray:
        frames = len(ids) // self._codebooks
        if not frames:
            return np.zeros(0, np.float32)
        codes = torch.tensor(ids[: frames * self._codebooks], device=self.model.device) % self._codebook_size
        wave = self._wave(codes.view(frames, self._codebooks).T[None]).flatten()
        # Some decoders round the length a little up or down; a token must stand for a fixed time.
        wave = torch.nn.functional.pad(wave[: frames * self._hop], (0, max(0, frames * self._hop - len(wave))))
        return wave.clamp(-1, 1).float().cpu().numpy()


def _chosen_codebooks(path: Path, available: int) -> int:
    settings_path = path / "codec.json"
    if not settings_path.is_file():
        return available
    settings = read_json(settings_path)
    unknown = ", ".join(sorted(settings.keys() - {"codebooks"}))
    if unknown:
        raise UserError(f"{settings_path}: unknown key {unknown}; known: codebooks")
    chosen = settings.get("codebooks", available)
    if not isinstance(chosen, int) or not 1 <= chosen <= available:
        raise UserError(f"{settings_path}: codebooks: {chosen!r} is not a number from 1 to {available}")
    return chosen


class MimiCodec(PretrainedCodec):
    """Kyutai's Mimi (Défossez et al. 2024): 24 kHz, 12.5 frames a second; codebook 0 is semantic."""

    name = "mimi"
    model_class = "MimiModel"
    model_types = ("mimi",)

    def _describe(self, config: Any) -> tuple[int, int, int, int]:
        return config.sampling_rate, config.frame_size, config.num_quantizers, config.codebook_size

    def _codes(self, wave: torch.Tensor) -> torch.Tensor:
        return self.model.encode(wave, num_quantizers=self._codebooks).audio_codes[0]


class DacCodec(PretrainedCodec):
    """Descript's DAC (Kumar et al. 2023) at 16, 24 or 44.1 kHz: a residual stack of codebooks for any sound."""

    name = "dac"
    model_class = "DacModel"
    model_types = ("dac",)

    def _describe(self, config: Any) -> tuple[int, int, int, int]:
        return config.sampling_rate, config.hop_length, config.n_codebooks, config.codebook_size

    def _codes(self, wave: torch.Tensor) -> torch.Tensor:
        return self.model.encode(wave, n_quantizers=self._codebooks).audio_codes[0]


class _SemanticCodec(PretrainedCodec):
    """Codecs with one codebook that join a waveform encoder and w2v-BERT, which reads 80 log-mel bands.

    The features come from `SeamlessM4TFeatureExtractor`, as in the authors' own code: transformers' extractors for
    these two models need torchaudio, which the CPU environment goes without.
    """

    feature_rate = 16_000

    def _semantic(self, wave: np.ndarray) -> torch.Tensor:
        """Samples at 16 kHz → features (1, frames of 20 ms, 160), normalised per utterance."""
        extractor = transformers.SeamlessM4TFeatureExtractor()
        batch = extractor(wave, sampling_rate=self.feature_rate, return_tensors="pt")
        return batch["input_features"].to(self.model.device)


class Xcodec2Codec(_SemanticCodec):
    """XCodec2 (Ye et al. 2025), the codec of Llasa: 16 kHz, 50 tokens a second, 65,536 ids."""

    name = "xcodec2"
    model_class = "Xcodec2Model"
    model_types = ("xcodec2",)

    def _describe(self, config: Any) -> tuple[int, int, int, int]:
        return config.sampling_rate, config.hop_length, 1, int(np.prod(config.quantization_levels))

    def _codes(self, wave: torch.Tensor) -> torch.Tensor:
        # Half a frame of silence on both sides gives as many semantic frames as acoustic ones.
        edges = np.pad(wave[0, 0].cpu().numpy(), (self._hop // 2, self._hop // 2))
        return self.model.encode(wave, input_features=self._semantic(edges)).audio_codes[0]


class NeuCodec(_SemanticCodec):
    """Neuphonic's NeuCodec (Julian et al. 2025): hears 16 kHz, speaks 24 kHz, 50 tokens a second, 65,536 ids."""

    name = "neucodec"
    model_class = "NeuCodecModel"
    model_types = ("neucodec",)

    def _describe(self, config: Any) -> tuple[int, int, int, int]:
        return config.output_sampling_rate, config.hop_length, 1, int(np.prod(config.quantization_levels))

    def _codes(self, wave: torch.Tensor) -> torch.Tensor:
        config = self.model.config
        heard = soxr.resample(wave[0, 0].cpu().numpy(), self.sample_rate, config.input_sampling_rate)
        # The semantic branch, which has no padding of its own here, yields one frame less than the acoustic one.
        heard = np.pad(heard, (0, config.encoder_hop_length - len(heard) % config.encoder_hop_length))
        values = torch.from_numpy(heard)[None, None].to(self.model.device)
        return self.model.encode(values, input_features=self._semantic(heard)).audio_codes[0]
