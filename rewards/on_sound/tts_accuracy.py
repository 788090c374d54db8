"""R1 of TTS: what a judge reads in the synthesised speech, against the text (2509.18569; shapes of PAPER §5)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rewards.listening.group import Failure, SoundGroup
from rewards.listening.judge import Transcript
from rewards.listening.pinyin import pinyin_edits
from rewards.registry import PartScore, on_sound, reward
from rewards.shapes import RateShape, edit_details, shaped
from speech.edits import EditCounts, character_edits, word_edits
from speech.text import dominant_script, expected_scripts, units

Shape = Literal[RateShape, "harmonic"]
Unit = Literal["auto", "character", "pinyin"]


@reward("tts_accuracy")
@on_sound("judge")
@dataclass(frozen=True)
class TTSAccuracy:
    """A decreasing function of the judge's error rate `c`, clipped at `cap`; silence has c = 1.

    `one_minus`, `tanh`, `exp`, `exp_power`: see `rewards.shapes.shaped` · `harmonic` the harmonic mean of 1 − tanh(3c)
    and exp(−NLL/3), NLL being the judge's mean negative log-likelihood per token of the text (Llasa GRPO).
    """

    shape: Shape = field(default="one_minus", metadata={"help": "function of the error rate"})
    cap: float = field(default=1.0, metadata={"help": "error rates above it count as it, so that no outlier dominates"})
    unit: Unit = field(
        default="auto",
        metadata={"help": "auto: words, or characters in languages without spaces; pinyin: toneless, Chinese only"},
    )

    def __post_init__(self) -> None:
        if not 0 < self.cap < math.inf:
            raise ValueError(f"cap is a positive number, not {self.cap}")

    def __call__(self, group: SoundGroup) -> list[PartScore]:
        if problem := unscorable(group.text, group.language):
            return [PartScore(invalid=problem)] * len(group.sounds)
        return [
            PartScore(invalid=heard.reason) if isinstance(heard, Failure) else self._score(group, heard)
            for heard in group.transcripts(likelihood=self.shape == "harmonic")
        ]

    def _score(self, group: SoundGroup, heard: Transcript) -> PartScore:
        counts = judged_edits(group.text, heard.text, group.language, self.unit)
        details = edit_details(counts)
        if heard.mean_nll is not None and math.isfinite(heard.mean_nll):
            details["nll"] = heard.mean_nll
        if self.shape == "harmonic" and heard.mean_nll is None:
            return PartScore(invalid="the judge states no likelihood, which shape 'harmonic' needs", details=details)
        return PartScore(value=self._shaped(min(counts.rate, self.cap), heard.mean_nll), details=details)

    def _shaped(self, rate: float, nll: float | None) -> float:
        if self.shape != "harmonic":
            return shaped(rate, self.shape)
        exact, likely = shaped(rate, "tanh"), math.exp(-(nll or 0.0) / 3.0)
        return 2.0 * exact * likely / (exact + likely) if exact + likely > 0.0 else 0.0


def judged_edits(text: str, heard: str, language: str, unit: Unit = "auto") -> EditCounts:
    """Edits between the text and a judge's transcript in the chosen unit."""
    match unit:
        case "auto":
            return word_edits(text, heard, language)
        case "character":
            return character_edits(text, heard, language)
        case "pinyin":
            return pinyin_edits(text, heard, language)


def unscorable(text: str, language: str) -> str | None:
    """Why no judge can score this text, or None: it holds nothing to say, or is not in the language's script."""
    if not units(text, language):
        return f"the text has nothing to say in {language!r}: {text!r}"
    script, expected = dominant_script(text), expected_scripts(language)
    if script is not None and expected and script not in expected:
        return f"the text is in the script {script}, in which {language!r} is not written"
    return None
