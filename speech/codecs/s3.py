"""The S3 tokens of CosyVoice 2 and 3 (arXiv 2412.10117, 2505.17589): 25 a second, 6,561 ids, one codebook.

Tokens are made by the ONNX file of CosyVoice's own folder, as its frontend does it. Sound is made of them by a flow
decoder and a vocoder that are no part of transformers; they come from the user's own function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soxr
import torch
import transformers

from speech.codecs.base import Codec
from speech.codecs.checks import check_tokens, check_waves
from speech.errors import UserError

HEARD_HZ = 16_000
LONGEST_S = 30.0
"""More the speech tokenizer does not read."""

Token2Wav = Callable[[Sequence[int], Sequence[int]], np.ndarray]
"""Tokens of an utterance and of its prompt voice → float32 mono samples at 24 kHz, 960 a token."""


class S3Codec(Codec):
    """A folder of CosyVoice with its `speech_tokenizer_v….onnx`; nothing else of it is read here.

    `use` gives it the function that makes sound. Without it, it can only encode (for SFT).

    Raises:
        UserError: the folder lacks the file.
    """

    tokenizer_file: ClassVar[str]
    model_types = ()  # a folder of CosyVoice has no config.json

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not self.recognises({}, path):
            raise UserError(f"codec folder {path} lacks {self.tokenizer_file}")
        self.sample_rate, self.token_rate, self.size = 24_000, 25.0, 6561
        self._hop = 960
        self._token2wav: Token2Wav | None = None

    @classmethod
    def recognises(cls, config: Mapping[str, Any], folder: Path) -> bool:
        return (folder / cls.tokenizer_file).is_file()

    def use(self, make: Callable[[Path], Token2Wav], name: str) -> None:
        """Make sound with what the user's own function or class makes of the folder.

        Raises:
            UserError: it makes nothing that can be called.
        """
        found = make(self.path)
        if not callable(found):
            raise UserError(f"codec {name!r}: made a {type(found).__name__} of {self.path}, not a function token2wav")
        self._token2wav = found

    def check_decoder(self) -> None:
        """See `Codec.check_decoder`."""
        if self._token2wav is None:
            raise UserError(
                f"{self.path}: nothing here turns tokens of {self.name!r} into sound. Name what does: "
                "model.codec=my_module:make@FOLDER, as docs/codecs.md shows"
            )

    def encode(self, waves: Sequence[np.ndarray]) -> list[list[int]]:
        """See `Codec.encode`. The waveform is padded with zeros to whole tokens.

        Raises:
            ValueError: a waveform is longer than 30 s, too.
            UserError: `onnxruntime` is not installed, or cannot read the file.
        """
        check_waves(waves)
        for index, wave in enumerate(waves):
            if len(wave) > LONGEST_S * self.sample_rate:
                raise ValueError(
                    f"waveform {index} is longer than {LONGEST_S:.0f} s, which the tokenizer does not read"
                )
        return [self._encode(wave) for wave in waves]

    def decode(self, tokens: Sequence[Sequence[int]], voices: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Codec.decode`.

        Raises:
            UserError: there is nothing to decode with.
            ValueError: `token2wav` made something else than a waveform of this length.
        """
        check_tokens(tokens, self.size)
        self.check_decoder()
        return [self._decode(ids, voice) for ids, voice in zip(tokens, voices, strict=True)]

    def _encode(self, wave: np.ndarray) -> list[int]:
        count = -(-len(wave) // self._hop)
        padded = np.pad(np.asarray(wave, np.float32), (0, count * self._hop - len(wave)))
        heard = soxr.resample(padded, self.sample_rate, HEARD_HZ)
        features = log_mel(heard)[None]
        names = [item.name for item in self._session.get_inputs()]
        lengths = np.array([features.shape[2]], np.int32)
        found = self._session.run(None, dict(zip(names, (features, lengths), strict=True)))[0].flatten().tolist()
        if len(found) != count:
            raise ValueError(f"the speech tokenizer made {len(found)} tokens of {count / self.token_rate:.2f} s")
        return found

    def _decode(self, ids: Sequence[int], voice: Sequence[int]) -> np.ndarray:
        if not ids:
            return np.zeros(0, np.float32)
        assert self._token2wav is not None
        wave = np.asarray(self._token2wav(list(ids), list(voice)), np.float32)
        wanted = len(ids) * self._hop
        if wave.ndim != 1 or abs(len(wave) - wanted) > self._hop:
            raise ValueError(f"token2wav made an array of shape {wave.shape} of {len(ids)} tokens, not ({wanted},)")
        wave = np.pad(wave[:wanted], (0, max(0, wanted - len(wave))))
        return np.clip(wave, -1, 1)

    @cached_property
    def _session(self) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"codec {self.name!r} needs the package onnxruntime: pip install 'speechrl[tts]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        file = self.path / self.tokenizer_file
        try:
            return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes, one for each kind of damage
            raise UserError(f"{file}: onnxruntime cannot read it: {error}") from error


class CosyVoice2Codec(S3Codec):
    """The tokens of CosyVoice2 (`speech_tokenizer_v2_25hz`)."""

    name = "cosyvoice2"
    tokenizer_file = "speech_tokenizer_v2.onnx"


class CosyVoice3Codec(S3Codec):
    """The tokens of CosyVoice3 (`speech_tokenizer_v3_25hz`): other tokens than those of CosyVoice2."""

    name = "cosyvoice3"
    tokenizer_file = "speech_tokenizer_v3.onnx"


def log_mel(wave: np.ndarray) -> np.ndarray:
    """Whisper's features of 128 bands: samples (S,) at 16 kHz → (128, S / 160) float32, whatever the length."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=128)
    batch = extractor(
        wave, sampling_rate=HEARD_HZ, padding="longest", truncation=False, return_tensors="np", do_normalize=False
    )
    features: np.ndarray = batch["input_features"][0].astype(np.float32)
    return features
