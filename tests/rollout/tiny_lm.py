"""A tiny but real language model behind a family of the tests' own, and what transformers says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from rollout.config import EngineConfig, SamplingConfig
from speech.families import FAMILIES
from speech.families.base import AudioEncoder, ModelFamily
from speech.records import EncodedAudio, Prompt, PromptLayout, Trajectory, Utterance
from speech.runtime.weights import AdapterBucket, Probe, WeightBucket

HIDDEN, VOCAB, STOP_IDS, OWN_EOS = 64, 512, (3, 7), 11
SAMPLE_RATE, FRAME = 16000, 160
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


CONFIG = EngineConfig(threads=1, max_model_len=256, max_num_seqs=32, max_num_batched_tokens=512, kv_cache_gb=0.25)
SAMPLING = SamplingConfig(group_size=4, temperature=0.8, max_new_tokens=24)


class TinyEncoder(AudioEncoder):
    """Frames of 10 ms through a linear layer, padded to the longest of the batch as real encoders are."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(FRAME, 32)

    def features(self, wave: np.ndarray) -> torch.Tensor:
        frames = wave.shape[0] // FRAME
        return torch.from_numpy(wave[: frames * FRAME]).reshape(frames, FRAME)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        padded = nn.utils.rnn.pad_sequence(list(features), batch_first=True)
        return [row[: len(item)] for row, item in zip(self.project(padded), features, strict=True)]


class TinyFamily(ModelFamily):
    name = "tiny"
    sample_rate = SAMPLE_RATE
    model_types = ("qwen3",)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        raise NotImplementedError("the tests speak in token ids")

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return STOP_IDS

    def load_encoder(self, dtype: torch.dtype = torch.float32) -> AudioEncoder:
        torch.manual_seed(1)
        return TinyEncoder().to(dtype)

    def load_adaptor(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(2)
        return nn.Linear(32, HIDDEN).to(dtype)

    def load_language_model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        return Qwen3ForCausalLM.from_pretrained(self.path, dtype=dtype).eval()

    def frames(self, samples: int) -> int:
        return samples // FRAME

    def audio_length(self, frames: int) -> int:
        return frames

    def layout(self, utterance: Utterance, audio_length: int) -> PromptLayout:
        return PromptLayout((20, 21, *[0] * audio_length, 22, 23), 2, audio_length)

    def target_ids(self, utterance: Utterance) -> list[int]:
        raise NotImplementedError

    def parse_output(self, token_ids: Sequence[int]) -> tuple[str, str | None]:
        return " ".join(str(token) for token in token_ids if token not in STOP_IDS), None

    def write_engine_model(self, folder: Path) -> None:
        self.load_language_model().save_pretrained(folder)

    def export(self, folder: Path, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        raise NotImplementedError


def tiny_model(seed: int, *, tied: bool) -> Qwen3ForCausalLM:
    """Random weights, scaled up so that the next-token distribution is far from uniform."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=VOCAB,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        eos_token_id=OWN_EOS,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3 if "embed" in name or "head" in name else 0.2)
    return model


def buckets_of(model: nn.Module) -> list[WeightBucket]:
    """Two buckets, cut anywhere: a layer may arrive in pieces."""
    tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    names = list(tensors)
    halves = (names[: len(names) // 2 + 1], names[len(names) // 2 + 1 :])
    return [WeightBucket.of({n: tensors[n] for n in half}) for half in halves]


def adapter_of(model: nn.Module, seed: int, rank: int = 4, targets: Sequence[str] = ATTENTION + MLP) -> AdapterBucket:
    """Random matrices, in peft's naming, that change what the model says by much."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in model.named_parameters():
        if name.removesuffix(".weight").rpartition(".")[2] in targets:
            module = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, weight.shape[1], generator=generator) * 0.1
            tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], rank, generator=generator) * 0.1
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 10, "target_modules": list(targets), "bias": "none"}
    return AdapterBucket.pack(tensors, config)


@torch.no_grad()
def with_adapter(model: PreTrainedModel, adapter: AdapterBucket) -> PreTrainedModel:
    """The same model, with W + (α/r)·B·A in the place of each W."""
    for name, weight in model.named_parameters():
        module = "base_model.model." + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in adapter.tensors:
            a, b = (adapter.tensors[f"{module}.lora_{which}.weight"] for which in "AB")
            weight += adapter.config["lora_alpha"] / adapter.config["r"] * b @ a
    return model


@torch.no_grad()
def probe_of(model: PreTrainedModel, before: PreTrainedModel | None = None, tolerance: float = 1e-4) -> Probe:
    """Two sequences; those of `before`, if given, are the weights that were published before."""
    ids = torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(9))

    def values(model: PreTrainedModel) -> tuple[float, ...]:
        logprobs = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        return tuple(logprobs.gather(2, ids[:, 1:, None]).flatten().tolist())

    previous = () if before is None else values(before)
    return Probe(tuple(map(tuple, ids.tolist())), values(model), tolerance / 2, tolerance, previous)


def make_prompts(count: int, positions: int = 70) -> tuple[list[Prompt], list[EncodedAudio]]:
    generator = torch.Generator().manual_seed(5)
    prompts, audio = [], []
    for i in range(count):
        length = positions + 3 * i
        utterance = Utterance(id=f"u{i}", audio="none.wav", text="")
        prompts.append(Prompt(id=f"0/u{i}", utterance=utterance, epoch=0, position=i, seed=1000 * i + 17))
        layout = PromptLayout((20, 21, *[0] * length, 22, 23), 2, length)
        embeddings = torch.randn(length, HIDDEN, generator=generator) * 0.3
        audio.append(EncodedAudio(layout, embeddings, None, length * 0.08, 0.5))
    return prompts, audio


@torch.no_grad()
def reference_logprobs(
    model: PreTrainedModel, audio: EncodedAudio, trajectory: Trajectory, sampling: SamplingConfig
) -> torch.Tensor:
    """The same response scored by transformers from `inputs_embeds`."""
    layout = audio.layout
    assert audio.embeddings is not None
    embed = model.get_input_embeddings()
    prompt = embed(torch.tensor(layout.token_ids))
    prompt[layout.audio_start : layout.audio_start + layout.audio_length] = audio.embeddings
    ids = torch.tensor(trajectory.token_ids)
    logits = model(inputs_embeds=torch.cat([prompt, embed(ids)])[None]).logits[0, len(prompt) - 1 : -1]
    logits[: sampling.min_new_tokens, list(STOP_IDS)] = -torch.inf
    return (logits / (sampling.temperature or 1.0)).log_softmax(-1).gather(1, ids[:, None])[:, 0]


def register() -> None:
    """Make the family known to a Ray worker process."""
    FAMILIES[TinyFamily.name] = TinyFamily
