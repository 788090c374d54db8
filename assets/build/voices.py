"""Who speaks in which split.

A voice of `valid` or `test` shares neither espeak-ng variant (its timbre) nor spectrum stretch with any voice of
another split. Left out are espeak-ng's whispering, croaking, echoing and Klatt variants. A general recogniser
(Whisper tiny, a few clean sentences) helped to weed out hard voices of `test`; some that it found hard are in `train`
and `valid` on purpose (m4, shelby, f1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class EspeakVoice:
    """An accent (`voice` before the plus) and a variant of espeak-ng; see `Espeak.speak` for the numbers."""

    voice: str
    rate: int = 180
    pitch: int = 50
    pitch_range: int = 50

    @property
    def name(self) -> str:
        """What manifests call the speaker."""
        return "espeak-" + self.voice.replace("+", "-").lower()

    @property
    def language(self) -> str:
        """`en` or `zh`."""
        return "zh" if self.voice.startswith("cmn") else "en"


@dataclass(frozen=True)
class NeuralVoice:
    """A pseudo-speaker of the neural English voice; see `Neural.speak` for the numbers."""

    name: str
    speed: float
    pitch: float
    formants: float
    language: str = "en"


Voice = EspeakVoice | NeuralVoice

SFT: tuple[Voice, ...] = (
    NeuralVoice("hibari-a", 1.2, 1.0, 1.0),
    NeuralVoice("hibari-b", 1.25, 0.58, 0.86),
    EspeakVoice("en-us+m3", 175),
    EspeakVoice("en-us+f2", 175),
    EspeakVoice("en-us+Gene", 185, 45),
    EspeakVoice("en-us+m6", 175),
    EspeakVoice("en+m1", 180, 55),
    EspeakVoice("en+Michael", 170, 40),
    EspeakVoice("en-gb-x-rp+f4", 170),
    EspeakVoice("en-gb-scotland+m7", 170, 45),
    EspeakVoice("cmn+m3", 175),
    EspeakVoice("cmn+f2", 185),
)
TRAIN: tuple[Voice, ...] = (
    *SFT,
    NeuralVoice("hibari-c", 1.3, 0.78, 0.94),
    EspeakVoice("en-us+steph", 185, 55, 60),
    EspeakVoice("en-us-nyc+m4", 175, 60),
    EspeakVoice("en-gb-x-gbclan+Denis", 165, 50, 70),
    EspeakVoice("en-gb-x-rp+shelby", 175, 60),
    EspeakVoice("en-029+m5", 165),
    EspeakVoice("cmn+steph", 165),
)
VALID: tuple[Voice, ...] = (
    NeuralVoice("hibari-d", 1.2, 0.88, 0.97),
    EspeakVoice("en-us+Alex", 175),
    EspeakVoice("en+quincy", 175, 60),
    EspeakVoice("en-gb-scotland+f1", 170),
    EspeakVoice("cmn+f1", 175),
)
TEST: tuple[Voice, ...] = (
    NeuralVoice("hibari-e", 1.25, 0.67, 0.90),
    NeuralVoice("hibari-f", 1.2, 1.12, 1.05),
    EspeakVoice("en-us+Mario", 180),
    EspeakVoice("en-us+f5", 170, 45),
    EspeakVoice("en+robert", 175, 55),
    EspeakVoice("en-gb-x-rp+pablo", 175),
    EspeakVoice("en-gb-scotland+Nguyen", 175, 45),
    EspeakVoice("en-gb-x-gbclan+ed", 170),
    EspeakVoice("cmn+robert", 175, 55),
    EspeakVoice("cmn+f5", 170, 45),
)

# Voices of the pretraining speech, which is not shipped: many, so that the encoder meets more timbres than it can learn
# by heart. None has a variant or a spectrum stretch of `valid` or `test`.
_ACCENTS = ("en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-gb-x-gbclan", "en-029")
_VARIANTS = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f2 f3 f4 Gene Michael steph Denis shelby adam Alicia Andrea Andy Annie Diogo Henrique "
    "Hugo Jacky Lee Marco Mike Reed anika antonio aunty belinda benjamin boris caleb david edward grandma grandpa "
    "gustave ian john linda marcelo max michel miguel norbert paul pedro rob sandro travis victor zac"
).split()
_STRETCHES = (0.84, 0.86, 0.92, 0.94, 1.0, 1.02, 1.08)


def _pretraining_voices() -> Iterator[Voice]:
    for index, variant in enumerate(_VARIANTS):
        for accent in (_ACCENTS[index % len(_ACCENTS)], _ACCENTS[(index + 3) % len(_ACCENTS)]):
            yield EspeakVoice(f"{accent}+{variant}", 165 + 7 * (index % 4), 42 + 6 * (index % 4))
    for index, variant in enumerate(("m3", "f2", "steph", "m7", "f4", "Gene")):
        yield EspeakVoice(f"cmn+{variant}", 165 + 5 * (index % 4))
    for index, stretch in enumerate(_STRETCHES * 4):
        pitch = 0.55 + 0.6 * (index % 11) / 10
        yield NeuralVoice(f"hibari-p{index}", 1.15 + 0.05 * (index % 4), pitch, stretch)


PRETRAIN: tuple[Voice, ...] = tuple(_pretraining_voices())
