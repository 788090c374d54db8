"""Judges that funasr loads: SenseVoice, Paraformer."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.config import JudgeConfig
from rewards.listening.judge import Judge, Transcript, Wave, resample
from rewards.registries import JUDGES
from speech.errors import UserError
from speech.runtime.importing import import_extra

_TAG = re.compile(r"<\|[^|]*\|>")
_SAMPLE_RATE = 16_000
_LEAST = _SAMPLE_RATE // 5  # its spectrogram stacks frames, and fails on less than a few of them
_LANGUAGES = {
    "SenseVoiceSmall": frozenset({"zh", "yue", "en", "ja", "ko"}),
    "Paraformer": frozenset({"zh", "en"}),
    "SeacoParaformer": frozenset({"zh", "en"}),
    "BiCifParaformer": frozenset({"zh", "en"}),
    "ContextualParaformer": frozenset({"zh", "en"}),
}


def load_auto_model(path: str, device: str, threads: int, **overrides: Any) -> Any:
    """funasr's AutoModel from a folder, or from the hub.

    Args:
        overrides: keys that replace those of the model's own configuration.

    Raises:
        UserError: funasr is not installed, or cannot load the model.
    """
    funasr = import_extra("tts", "funasr", "funasr==1.4.16", "a funasr model")
    if importlib.util.find_spec("torchaudio") is None:  # either makes its spectrograms; found out at the first wave
        import_extra("tts", "kaldi_native_fbank", "kaldi-native-fbank==1.23.0", "funasr without torchaudio")
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise UserError(f"funasr model: no such folder: {path}")
    try:
        return funasr.AutoModel(
            model=path,
            device=device,
            ncpu=threads,
            disable_update=True,
            disable_pbar=True,
            trust_remote_code=False,  # otherwise the folder's own config.yaml can ask for its code to be run
            log_level="ERROR",
            **overrides,
        )
    except Exception as error:  # funasr asserts, and fails by KeyError on a folder that is no model
        # What its download raises it only prints, and goes on with the name.
        absent = "" if Path(path).is_dir() else " (no folder here, and its hub did not give it)"
        raise UserError(f"funasr cannot load the model {path}{absent}: {type(error).__name__}: {error}") from error


@JUDGES.register("funasr")
class FunASRJudge(Judge):
    """SenseVoice's markers (language, emotion, event) are dropped. States no likelihood."""

    def __init__(self, config: JudgeConfig, threads: int) -> None:
        # funasr adds random noise of one 16-bit step to every wave it reads: the same wave would be read in two ways.
        self._model = load_auto_model(config.path, config.device, threads, frontend_conf={"dither": 0.0})
        self.languages = _LANGUAGES.get(type(self._model.model).__name__)
        super().__init__(config, threads)

    def transcribe(
        self, waves: Sequence[Wave], sample_rate: int, language: str, references: Sequence[str] | None = None
    ) -> list[Transcript]:
        signals = [_long_enough(resample(wave, sample_rate, _SAMPLE_RATE)) for wave in waves]
        # Its batch size is 1 on CPU unless every call says otherwise.
        results = self._model.generate(signals, batch_size=len(signals), language=language, use_itn=False)
        if len(results) == 1 and not results[0]["text"]:  # a batch in all of which Paraformer hears no token
            results *= len(signals)
        return [Transcript(" ".join(_TAG.sub(" ", result["text"]).split())) for result in results]


def _long_enough(signal: Wave) -> Wave:
    return np.pad(signal, (0, max(_LEAST - len(signal), 0)))
