"""Random groups, tiny language models, and the padded form that packed rows are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from learner.batches.batch import PackedBatch, Sample, TrainGroup
from learner.model import attention
from learner.model.logprobs import selected_logprobs
from speech.records import PromptLayout

VOCAB, HIDDEN = 61, 64
MODELS = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def tiny_model(kind: str, implementation: str, tie: bool = True) -> PreTrainedModel:
    """The same random weights for every implementation; large enough that the logits are far from uniform."""
    attention.register()
    config_class, model_class = MODELS[kind]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=tie,
        initializer_range=0.15,
        attn_implementation=implementation,
    )
    return model_class(config).eval()


def random_group(
    prompt: int, responses: Sequence[int], seed: int = 0, audio: int = 0, audio_length: int = 0
) -> TrainGroup:
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCAB, (length,), generator=generator).tolist())

    def sample(length: int) -> Sample:
        logprobs = (-4 * torch.rand(length, generator=generator)).tolist()
        return Sample(ids(length), tuple(logprobs), float(torch.randn((), generator=generator)))

    layout = PromptLayout(ids(prompt), min(1, prompt - audio_length), audio_length)
    return TrainGroup(layout, tuple(sample(length) for length in responses), audio)


def packed_logprobs(model: PreTrainedModel, batch: PackedBatch, temperature: float = 1.0) -> torch.Tensor:
    """(T,) log-probs of a packed row by a model with the `shared_prefix` attention."""
    hidden = model.base_model(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        blocks=batch.blocks,
        use_cache=False,
    ).last_hidden_state[0]
    return selected_logprobs(
        hidden[batch.predict_from],
        model.get_output_embeddings().weight,
        batch.targets,
        temperature=temperature,
        step_of=batch.step_of,
    )[0]


def padded_logprobs(model: PreTrainedModel, groups: Sequence[TrainGroup], temperature: float = 1.0) -> torch.Tensor:
    """(T,) log-probs of the same targets in the same order: one right-padded row per sample, ordinary attention."""
    rows = [(g.layout.token_ids, s.token_ids) for g in groups for s in g.samples]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, (prompt, response) in enumerate(rows):
        ids[i, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
        mask[i, : len(prompt) + len(response)] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits / temperature
    logprobs = logits.log_softmax(-1)
    chosen = []
    for i, (prompt, response) in enumerate(rows):
        places = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
        chosen.append(logprobs[i, places, torch.tensor(response)])
    return torch.cat(chosen)


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys() and a
    return max(float((a[name] - b[name]).abs().max()) for name in a)
