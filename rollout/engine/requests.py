"""Our records ↔ vLLM's requests and outputs, without any state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from rollout.config import SamplingConfig, room_complaint
from speech.errors import UserError
from speech.families.base import LanguageModelFamily, SpeechFamily
from speech.records import EncodedAudio, Group, Prompt, Trajectory


def mixed_prompt(audio: EncodedAudio, dtype: torch.dtype) -> dict[str, Any]:
    """Token ids where there is text, embeddings where there is sound; a prompt without sound is token ids alone.

    Token positions are embedded by the engine with its *current* weights; the rows of the tensor there are unused,
    and zero because prefix caching hashes them.

    Raises:
        ValueError: the audio was not encoded, only its features were computed.
    """
    layout = audio.layout
    if layout.audio_length == 0:
        return {"prompt_token_ids": list(layout.token_ids)}
    if audio.embeddings is None:
        raise ValueError("a prompt needs embeddings; the encoder ran in a mode that leaves them to the learner")
    embeddings = torch.zeros(len(layout.token_ids), audio.embeddings.shape[1], dtype=dtype)
    embeddings[layout.audio_start : layout.audio_start + layout.audio_length] = audio.embeddings.to(dtype)
    return {
        "prompt_token_ids": list(layout.token_ids),
        "prompt_embeds": embeddings,
        "prompt_is_token_ids": layout.is_token,
    }


def check_room(prompt: Prompt, audio: EncodedAudio, sampling: SamplingConfig, max_model_len: int) -> None:
    """Refuse a prompt whose response could be cut short by the context rather than by its own budget.

    Raises:
        UserError: naming the prompt and the lengths.
    """
    complaint = room_complaint(len(audio.layout.token_ids), sampling.max_new_tokens, max_model_len)
    if complaint is not None:
        raise UserError(f"prompt {prompt.id} ({audio.seconds:.1f} s of audio): {complaint}")


def sampling_params(
    prompt: Prompt,
    sampling: SamplingConfig,
    stop_token_ids: Sequence[int],
    allowed_token_ids: Sequence[int] | None = None,
) -> SamplingParams:
    """Plain softmax sampling at a temperature: nothing that the learner would not reproduce.

    vLLM gives sample i of a group the seed `prompt.seed + i`.

    Args:
        stop_token_ids: the family's.
        allowed_token_ids: the family's; the distribution is over these alone, greedy decoding included. None allows
            the whole vocabulary.

    Raises:
        UserError: no stop token is allowed, so that no response could ever end.
    """
    if allowed_token_ids is not None and set(allowed_token_ids).isdisjoint(stop_token_ids):
        raise UserError(f"none of the stop tokens {list(stop_token_ids)} is among the allowed tokens")
    return SamplingParams(
        n=sampling.group_size,
        temperature=sampling.temperature,
        top_p=1.0,
        top_k=-1,
        seed=prompt.seed,
        max_tokens=sampling.max_new_tokens,
        min_tokens=sampling.min_new_tokens,
        # The checkpoint's own end token must not end a response unless the family says so.
        ignore_eos=True,
        stop_token_ids=list(stop_token_ids),
        allowed_token_ids=None if allowed_token_ids is None else list(allowed_token_ids),
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def probe_params() -> SamplingParams:
    """Ask for the prompt's own log-probs; vLLM cannot do so without sampling one token as well."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=0,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_logprobs(output: RequestOutput) -> list[float]:
    """log P(token i | tokens < i) for i ≥ 1, at temperature 1 and without masks."""
    token_ids, rows = output.prompt_token_ids, output.prompt_logprobs
    if token_ids is None or rows is None:
        raise RuntimeError("the engine returned no prompt log-probs")
    values: list[float] = []
    for token, row in zip(token_ids[1:], list(rows)[1:], strict=True):
        if row is None:
            raise RuntimeError("the engine left out a prompt log-prob")
        values.append(row[token].logprob)
    return values


def group(prompt: Prompt, audio: EncodedAudio, output: RequestOutput, family: LanguageModelFamily) -> Group:
    """An unscored group from a finished request."""
    outputs = sorted(output.outputs, key=lambda completion: completion.index)
    return Group(
        prompt=prompt,
        layout=audio.layout,
        trajectories=tuple(trajectory(prompt, completion, family) for completion in outputs),
        seconds=audio.seconds,
        peak=audio.peak,
        voice_tokens=audio.voice_tokens,
    )


def trajectory(prompt: Prompt, output: CompletionOutput, family: LanguageModelFamily) -> Trajectory:
    """One sample with the versions that vLLM recorded while it drew the first and the last token.

    Raises:
        RuntimeError: the engine did not end the sample by a stop token or the budget.
        ValueError: it sampled what the family does not allow.
    """
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"{prompt.id}#{output.index}: the engine ended the sample by {output.finish_reason!r}")
    if not isinstance(output.logprobs, FlatLogprobs) or not output.weight_versions:
        raise RuntimeError(f"{prompt.id}#{output.index}: the engine returned no log-probs or weight versions")
    token_ids = tuple(output.token_ids)
    text, language = family.parse_output(token_ids)
    rows = output.logprobs
    return Trajectory(
        prompt_id=prompt.id,
        index=output.index,
        token_ids=token_ids,
        # The first entry of a row is the sampled token.
        logprobs=tuple(rows.logprobs[start] for start in rows.start_indices),
        version_first=int(output.weight_versions[0].version),
        version_last=int(output.weight_versions[-1].version),
        finish_reason="stop" if output.finish_reason == "stop" else "length",
        seed=prompt.seed + output.index,
        text=text,
        language=language,
        speech_tokens=tuple(family.speech_tokens(token_ids)) if isinstance(family, SpeechFamily) else (),
    )
