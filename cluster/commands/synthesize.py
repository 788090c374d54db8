"""`speechrl synthesize`: one text, one voice, one sound file; a single process, without Ray and without an engine."""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from cluster.runs.durable import writing
from rollout.config import EncoderConfig
from rollout.encoders.encoder import SILENCE_PEAK
from rollout.encoders.voices import VoiceEncoder
from speech.audio import AudioLimits, audio_seconds, load_audio
from speech.codecs import Codec, load_codec
from speech.errors import InputError, Problem, UserError
from speech.families import SpeechFamily, load_family
from speech.records import BadUtterance, Utterance, split_instruction
from speech.runtime.hub import model_folder

LONGEST_S = 30.0
"""What a text may take unless `--max-new-tokens` says otherwise."""

_EXAMPLES = """examples:
  speechrl synthesize --model runs/my_tts/export --codec assets/tts_codec \\
      --text "turn on the light" --voice speaker.wav -o out.wav
  … --temperature 0            the likeliest token at every step: always the same, but apt to loop
  … --seed 1                   another reading of the same text
The voice is a recording of a few seconds, of any sample rate; most models also need its words (--voice-text).
The exit code is 2, and nothing is written, when the text or the voice cannot be used or no speech comes out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechrl synthesize`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder of a model that speaks")
    parser.add_argument(
        "--codec", required=True, metavar="DIR", help="folder of the codec whose tokens it speaks, as in model.codec"
    )
    parser.add_argument("--text", required=True, metavar="TEXT", help="what to say")
    parser.add_argument("--voice", required=True, metavar="FILE", help="recording of the voice to say it in")
    parser.add_argument("--voice-text", default="", metavar="TEXT", help="what is said in that recording")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="sound file to write: .wav, .flac or .ogg")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sampling; 0 is greedy (1.0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of sampling (0)")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"longest speech in tokens ({LONGEST_S:.0f} s of the codec)"
    )
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


@dataclass(frozen=True, slots=True)
class Speech:
    """A spoken text.

    Attributes:
        wave: float32 mono (samples,) in [−1, 1].
        sample_rate: Hz.
        tokens: the codec's.
        finished: the model ended it by itself, not the token budget.
    """

    wave: np.ndarray
    sample_rate: int
    tokens: tuple[int, ...]
    finished: bool


def run(args: argparse.Namespace) -> int:
    """Speak and write the file.

    Raises:
        UserError: an option makes no sense, the file exists, or there is no speech to write.
        InputError: the text cannot be spoken, or the voice cannot be used.
    """
    out = Path(args.out)
    if out.suffix.lower() not in (".wav", ".flac", ".ogg"):
        raise UserError(f"{out}: the name must end in .wav, .flac or .ogg")
    if out.exists() and not args.force:
        raise UserError(f"{out} exists; --force replaces it")
    if not (math.isfinite(args.temperature) and args.temperature >= 0):
        raise UserError(f"--temperature must be at least 0, is {args.temperature}")
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, is {args.max_new_tokens}")
    transformers.logging.disable_progress_bar()  # loading takes a second; errors should stand alone
    family = load_family(model_folder(args.model))
    if not isinstance(family, SpeechFamily):
        raise UserError(f"{args.model}: family {family.name!r} hears and does not speak")
    codec = load_codec(args.codec, family.codec)
    limit = args.max_new_tokens or round(LONGEST_S * codec.token_rate)
    speech = synthesise(family, codec, args.text, args.voice, args.voice_text, args.temperature, args.seed, limit)
    _write(out, speech)
    sys.stdout.write(f"{out}: {len(speech.wave) / speech.sample_rate:.2f} s, {len(speech.tokens)} tokens\n")
    if not speech.finished:
        sys.stderr.write(f"the model did not end by itself: cut off after {len(speech.tokens)} tokens\n")
    return 0


def synthesise(
    family: SpeechFamily,
    codec: Codec,
    text: str,
    voice: str,
    voice_text: str = "",
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 1000,
) -> Speech:
    """Say a text in a voice.

    Args:
        voice: path of a recording; another rate than the codec's is resampled.
        temperature: 0 takes the likeliest token.

    Raises:
        InputError: the text cannot be spoken, or the voice is missing, damaged, silent, too short or too long.
        UserError: model and codec do not go together, the prompt is too long, or no speech comes out.
    """
    complaint = AudioLimits().complaint(audio_seconds(voice))
    if complaint is not None:
        raise InputError("the voice cannot be used", [Problem(voice, None, None, complaint)])
    instruction, said = split_instruction(text)
    utterance = Utterance(
        id="--text", audio="", text=said, prompt_audio=voice, prompt_text=voice_text, instruction=instruction
    )
    encoder = VoiceEncoder(family, codec, EncoderConfig(), load_audio)
    (prepared,) = encoder.encode([utterance])
    if isinstance(prepared, BadUtterance):
        raise UserError(prepared.reason)
    prompt = prepared.encoded.layout.token_ids
    ids = sample_ids(family, family.load_language_model(), prompt, temperature, seed, max_new_tokens)
    tokens = family.speech_tokens(ids)
    if not tokens:
        raise UserError("the model ended without a single speech token; another --seed may help")
    try:
        (wave,) = codec.decode([tokens], [prepared.encoded.voice_tokens])
    except ValueError as error:  # tokens that make no sound together, of a codec whose frames have places
        raise UserError(
            f"the tokens that the model spoke cannot be decoded: {error}; another --seed may help"
        ) from error
    if float(np.abs(wave).max(initial=0.0)) < SILENCE_PEAK:
        raise UserError(f"the {len(tokens)} tokens that the model spoke decode to silence; another --seed may help")
    return Speech(wave, codec.sample_rate, tuple(tokens), ids[-1] in family.stop_token_ids)


class _OnlyAllowed(LogitsProcessor):
    """The mask of engine and learner: speech and stop tokens, nothing else."""

    def __init__(self, allowed: tuple[int, ...], rows: int) -> None:
        self._forbidden = torch.ones(rows, dtype=torch.bool)
        self._forbidden[list(allowed)] = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return scores.masked_fill(self._forbidden.to(scores.device), -torch.inf)


@torch.inference_mode()
def sample_ids(
    family: SpeechFamily,
    model: PreTrainedModel,
    prompt: tuple[int, ...],
    temperature: float,
    seed: int,
    max_new_tokens: int,
) -> list[int]:
    """Sampled ids, a stop token included if one was drawn.

    Args:
        model: the family's language model.
    """
    room = model.config.max_position_embeddings - len(prompt)
    if room < 1:
        raise UserError(
            f"text and voice make a prompt of {len(prompt)} tokens, but the model has room for "
            f"{model.config.max_position_embeddings}: take a shorter voice or text"
        )
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    settings = GenerationConfig(
        max_new_tokens=min(max_new_tokens, room),
        eos_token_id=list(family.stop_token_ids),
        pad_token_id=family.stop_token_ids[0],
        **(sampling or {"do_sample": False}),
    )
    tokens = torch.tensor([prompt])
    mask = _OnlyAllowed(family.allowed_token_ids, model.config.vocab_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            generation_config=settings,
            logits_processor=LogitsProcessorList([mask]),
        )
    ids: list[int] = found[0, len(prompt) :].tolist()
    return ids


def _write(out: Path, speech: Speech) -> None:
    """Write the file whole, or leave what is there."""
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.stem}.{os.getpid()}.tmp{out.suffix}")
        try:
            soundfile.write(partial, speech.wave, speech.sample_rate)
            partial.replace(out)
        except soundfile.SoundFileError as error:
            raise UserError(f"{out}: cannot write: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
