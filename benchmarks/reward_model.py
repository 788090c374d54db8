"""What DiffRO's reward model reads in the speech of several models, beside what the judges hear, as a Markdown table.

    python benchmarks/reward_model.py start=assets/tts_demo grpo=runs/paper/tts-grpo-seed1/export

Each model says every text of the configuration's `data.test` once, sampled at temperature 1 with the text's number as
seed. The reward model reads the speech tokens, the two judges the decoded waveforms. A model that DiffRO improved is
read more easily than the start; whether it also speaks better is for the judges to say. The rank correlation (Spearman,
over the texts of one model) says how far the reward model's likelihood orders speech as a judge's errors do.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass

import numpy as np
import torch
import transformers
from scipy.stats import spearmanr

from cluster.commands.synthesize import sample_ids
from cluster.config import RunConfig, load_config
from learner.token2text.model import Token2Text
from rewards.listening.judge import Judge, build_judge
from rollout.config import EncoderConfig
from rollout.encoders.voices import VoiceEncoder
from speech.audio import load_audio
from speech.codecs import Codec, load_codec
from speech.edits import EditCounts, word_edits
from speech.families import SpeechFamily, load_family
from speech.manifests.load import load_manifest
from speech.records import Utterance

HEADER = (
    "reward model: nats a character | its WER | training judge, WER | second judge, WER "
    "| rank correlation with the training judge | with the second"
)


@dataclass(frozen=True)
class Ears:
    """All that listens."""

    codec: Codec
    reward_model: Token2Text
    judges: tuple[Judge, Judge]

    @classmethod
    def build(cls, config: RunConfig) -> Ears:
        sound, reward_model = config.rewards.sound, config.learner.diffro.reward_model
        assert config.model.codec and reward_model and sound.second_judge
        return cls(
            load_codec(config.model.codec),
            Token2Text.load(reward_model),
            (build_judge(sound.judge), build_judge(sound.second_judge)),
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="LABEL=DIR", help="models that speak, by the label of their row")
    parser.add_argument("--config", default="configs/tts_demo.yaml", help="names judges, codec, reward model, texts")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    config = load_config(args.config)
    ears = Ears.build(config)
    assert config.data.test
    utterances = load_manifest(config.data.test, check_audio="none").utterances
    print(f"| | {HEADER} |\n|---|{'--:|' * 6}", flush=True)
    for item in args.models:
        label, _, folder = item.partition("=")
        family = load_family(folder)
        if not isinstance(family, SpeechFamily):
            raise SystemExit(f"{folder}: family {family.name!r} does not speak")
        print(f"| {label} | {' | '.join(row(family, utterances, ears, config.sampling.max_new_tokens))} |", flush=True)


def row(family: SpeechFamily, utterances: tuple[Utterance, ...], ears: Ears, most: int) -> list[str]:
    """The cells of one model. Texts longer than their speech have no likelihood and are left out of its columns."""
    voices = VoiceEncoder(family, ears.codec, EncoderConfig(), load_audio).encode(utterances)
    model = family.load_language_model()
    nats, characters = np.zeros(len(utterances)), np.zeros(len(utterances))
    read: list[EditCounts] = []
    heard: list[list[EditCounts]] = [[], []]
    for index, (utterance, voice) in enumerate(zip(utterances, voices, strict=True)):
        prompt = voice.encoded.layout.token_ids
        tokens = family.speech_tokens(sample_ids(family, model, prompt, 1.0, seed=index, max_new_tokens=most))
        if not tokens:
            raise SystemExit(f"{family.path} said nothing for the text {utterance.text!r}")
        text, language = utterance.text, utterance.language or "en"
        labels = ears.reward_model.config.text_ids(text, language)
        with torch.no_grad():
            output = ears.reward_model(torch.tensor([tokens]), torch.tensor([len(tokens)]))
        nats[index], characters[index] = -float(output.text_log_likelihood([labels])), len(labels)
        reading = ears.reward_model.config.text(output.greedy_labels()[0])
        read.append(word_edits(text, reading, language))
        (wave,) = ears.codec.decode([tokens], [voice.encoded.voice_tokens])
        for judge, edits in zip(ears.judges, heard, strict=True):
            (transcript,) = judge.transcribe([wave], ears.codec.sample_rate, language)
            edits.append(word_edits(text, transcript.text, language))
    possible = np.isfinite(nats)  # not where a text is longer than its speech
    rates = [sum(edits, EditCounts()).rate for edits in (read, *heard)]
    ranks = [
        spearmanr((nats / characters)[possible], np.array([e.rate for e in edits])[possible]).statistic
        for edits in heard
    ]
    mean = nats[possible].sum() / characters[possible].sum()
    return [f"{mean:.3f}", *(f"{100 * rate:.1f}%" for rate in rates), *(f"{rank:.2f}" for rank in ranks)]


if __name__ == "__main__":
    main()
