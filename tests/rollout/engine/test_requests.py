"""Our records as vLLM's requests, without an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import CompletionOutput, RequestOutput, WeightVersionSpan

from rollout.engine.requests import group, mixed_prompt, sampling_params
from speech.errors import UserError
from speech.families.demo.speaking import DemoTTSFamily
from speech.records import EncodedAudio, PromptLayout
from tests.rollout.tiny_lm import SAMPLING, make_prompts
from tests.speech.families.tts_checkpoints import write_demo_tts

STOPS, ALLOWED = (30,), tuple(range(10, 31))


@pytest.mark.parametrize("greedy", [False, True])
def test_the_familys_mask_goes_with_every_request(greedy: bool) -> None:
    (prompt,), _ = make_prompts(1)
    sampling = SAMPLING.greedy() if greedy else SAMPLING
    params = sampling_params(prompt, sampling, STOPS, ALLOWED)
    assert params.allowed_token_ids == list(ALLOWED)
    assert params.stop_token_ids == [30]
    assert params.all_stop_token_ids == {30}
    assert (params.n, params.temperature) == ((1, 0.0) if greedy else (4, 0.8))
    assert (params.top_p, params.ignore_eos) == (1.0, True)
    assert params.top_k <= 0  # off


def test_without_a_mask_the_whole_vocabulary_is_open() -> None:
    (prompt,), _ = make_prompts(1)
    assert sampling_params(prompt, SAMPLING, STOPS).allowed_token_ids is None


def test_a_mask_that_lets_no_response_end_is_refused() -> None:
    (prompt,), _ = make_prompts(1)
    with pytest.raises(UserError, match=r"none of the stop tokens \[5\] is among the allowed"):
        sampling_params(prompt, SAMPLING, (5,), ALLOWED)


def test_stop_tokens_are_masked_at_first_only_by_number() -> None:
    (prompt,), _ = make_prompts(1)
    assert sampling_params(prompt, replace(SAMPLING, min_new_tokens=3), STOPS, ALLOWED).min_tokens == 3


def test_a_prompt_without_sound_is_token_ids() -> None:
    layout = PromptLayout((1, 2, 3), 0, 0)
    assert mixed_prompt(EncodedAudio(layout, torch.zeros(0, 64), None, 1.0, 0.5), torch.float32) == {
        "prompt_token_ids": [1, 2, 3]
    }


def test_a_prompt_with_sound_holds_its_embeddings_in_place() -> None:
    _, (audio,) = make_prompts(1)
    prompt = mixed_prompt(audio, torch.float32)
    assert audio.embeddings is not None
    assert torch.equal(prompt["prompt_embeds"][2:-2], audio.embeddings)
    assert not prompt["prompt_embeds"][:2].any() and prompt["prompt_is_token_ids"].count(False) == 70


def finished(token_ids: list[int], reason: str) -> CompletionOutput:
    rows = FlatLogprobs()
    for token in token_ids:
        rows.append({token: Logprob(-0.5, rank=1)})
    versions = [WeightVersionSpan("3", 0, len(token_ids))]
    return CompletionOutput(0, "", token_ids, None, rows, finish_reason=reason, weight_versions=versions)


def test_samples_of_speech_carry_the_codecs_tokens(tmp_path: Path) -> None:
    family = DemoTTSFamily(write_demo_tts(tmp_path / "model"))
    (prompt,), _ = make_prompts(1)
    audio = EncodedAudio(family.layout("hi", "", [7]), torch.zeros(0, 64), None, 1.5, 0.5, voice_tokens=(7, 8))

    def answer(token_ids: list[int], reason: str) -> RequestOutput:
        return RequestOutput("r", None, None, None, [finished(token_ids, reason)], finished=True)

    ended = group(prompt, audio, answer(family.target_ids([4, 0, 19]), "stop"), family)
    (sample,) = ended.trajectories
    assert (sample.speech_tokens, sample.text, sample.language) == ((4, 0, 19), "", None)
    assert sample.logprobs == (-0.5,) * 4 and sample.version_last == 3
    assert (ended.voice_tokens, ended.seconds) == ((7, 8), 1.5)
    (silent,) = group(prompt, audio, answer(family.target_ids([]), "stop"), family).trajectories
    assert silent.speech_tokens == () and len(silent.token_ids) == 1
    with pytest.raises(ValueError, match="token 5 is neither speech nor stop"):
        group(prompt, audio, answer([5], "length"), family)
