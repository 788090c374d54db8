"""What evaluation and the run's folder want to know of synthesised samples: texts as well as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewards.config import RewardConfig
from rewards.listening.group import Failure, Sound, SoundGroup
from rewards.listening.judge import Transcript, check_second_judge
from rewards.listening.pitch import mean_f0, semitone_std
from rewards.listening.quality_model import dnsmos_installed
from rewards.on_sound.tts_accuracy import Unit, judged_edits, unscorable
from rewards.pipeline import CodecFactory, SoundPipeline, wave_path, write_waves
from rewards.registry import Need
from speech.edits import EditCounts
from speech.records import Group

_UNMEASURED: dict[str, float] = {}
_NEEDS: tuple[Need, ...] = ("judge", "speaker", "pitch")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """One synthesised sample. What could not be known is None, and `problems` says why.

    Attributes:
        prompt_id, index: which sample.
        text: what was to be said.
        language: code by which it is compared.
        heard, heard_second: transcripts of the training judge and of the judge that training never hears; empty text
            for silence.
        edits, edits_second: of both, against the text.
        speaker_similarity: cosine to the prompt voice as the codec gives it (SIM-r), 0 for silence; None without a
            prompt voice.
        speaker_similarity_original: the same to the recording of the prompt voice (SIM-o).
        seconds: length.
        f0_std: semitones.
        f0_mean: Hz, over the voiced frames; None where nothing is voiced.
        dnsmos: overall score, 1 to 5, where it was asked for; 1 for silence.
        finished: a stop token ended it.
        wave: where the sample was written, or None.
        problems: what failed on it.
    """

    prompt_id: str
    index: int
    text: str
    language: str
    heard: str | None
    heard_second: str | None
    edits: EditCounts | None
    edits_second: EditCounts | None
    speaker_similarity: float | None
    speaker_similarity_original: float | None
    seconds: float | None
    f0_std: float | None
    finished: bool
    f0_mean: float | None = None
    dnsmos: float | None = None
    wave: str | None = None
    problems: tuple[str, ...] = ()


class SoundReporter:
    """Reports on samples with both judges. A plain class: an actor may hold one, a notebook too.

    Args:
        config: `sound` says which models.
        codec: builds the run's codec.
        unit: in which errors are counted.
        quality: also measure DNSMOS where its package is installed. It takes longer than all else.

    Raises:
        UserError: a judge is missing, or both are the same one.
    """

    def __init__(self, config: RewardConfig, codec: CodecFactory, unit: Unit = "auto", quality: bool = False) -> None:
        check_second_judge(config.sound)
        self._pipeline = SoundPipeline(config, codec)
        self._quality = quality and dnsmos_installed()
        self._needs: tuple[Need, ...] = (*_NEEDS, "quality") if self._quality else _NEEDS
        self._pipeline.models.check(self._needs)
        self._unit = unit

    def load(self) -> None:
        """Load the codec and all models now.

        Raises:
            UserError: a model or a package is missing.
        """
        _ = self._pipeline.codec
        self._pipeline.models.load(self._needs)
        self._pipeline.models.judge("second_judge")

    def report(self, groups: Sequence[Group], folder: Path | None = None) -> list[list[SampleReport]]:
        """The samples of each group, in order.

        Args:
            folder: where their waves are written; None writes none.
        """
        heard = self._pipeline.listen(groups)
        if folder is not None:
            write_waves(heard, folder)
        return [self._group(group, folder) for group in heard]

    def _group(self, group: SoundGroup, folder: Path | None) -> list[SampleReport]:
        unscored = unscorable(group.text, group.language)
        voice = group.voice_embedding() if group.group.voice_tokens else None
        recorded = group.recording_embedding() if group.group.prompt.utterance.prompt_audio else None
        rows = zip(
            group.group.trajectories,
            group.sounds,
            group.transcripts("judge"),
            group.transcripts("second_judge"),
            group.embeddings() if voice is not None or recorded is not None else [None] * len(group.sounds),
            group.pitches(),
            group.qualities() if self._quality else [_UNMEASURED] * len(group.sounds),
            strict=True,
        )
        reports = []
        for trajectory, sound, first, second, embedding, pitch, quality in rows:
            found = (sound, first, second, embedding, pitch, quality, voice, recorded)
            problems = dict.fromkeys(item.reason for item in found if isinstance(item, Failure))
            report = SampleReport(
                prompt_id=group.group.prompt.id,
                index=trajectory.index,
                text=group.text,
                language=group.language,
                heard=first.text if isinstance(first, Transcript) else None,
                heard_second=second.text if isinstance(second, Transcript) else None,
                edits=None if unscored else self._edits(group, first),
                edits_second=None if unscored else self._edits(group, second),
                speaker_similarity=_similarity(voice, embedding),
                speaker_similarity_original=_similarity(recorded, embedding),
                seconds=sound.seconds if isinstance(sound, Sound) else None,
                f0_std=None if isinstance(pitch, Failure) else 0.0 if pitch is None else semitone_std(pitch),
                f0_mean=None if pitch is None or isinstance(pitch, Failure) else mean_f0(pitch),
                dnsmos=None if isinstance(quality, Failure) else 1.0 if quality is None else quality.get("overall"),
                finished=trajectory.finish_reason == "stop",
                problems=(*([unscored] if unscored else []), *problems),
            )
            if folder is not None and isinstance(sound, Sound):
                report = dataclasses.replace(report, wave=str(wave_path(folder, group.group, trajectory.index)))
            reports.append(report)
        return reports

    def _edits(self, group: SoundGroup, heard: Transcript | Failure) -> EditCounts | None:
        if isinstance(heard, Failure):
            return None
        return judged_edits(group.text, heard.text, group.language, self._unit)


def _similarity(voice: np.ndarray | Failure | None, embedding: np.ndarray | Failure | None) -> float | None:
    if voice is None or isinstance(voice, Failure) or isinstance(embedding, Failure):
        return None
    return 0.0 if embedding is None else float(np.dot(voice, embedding))
