"""Language models that the learner computes as transformers does, and those that it must refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from learner.batches.batch import Sample, TrainGroup
from learner.batches.packing import pack
from learner.model.fidelity import check_language_model
from learner.model.policy import Policy
from learner.model.sampler import SamplerSettings
from speech.errors import UserError
from speech.records import PromptLayout

SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SCALED = {"logits_scaling": 6.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2}
FULL = {"layer_types": ["full_attention"] * 2}


def model(kind: type[PreTrainedConfig], **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**{**SIZES, **options})).eval()


@pytest.mark.parametrize(
    "kind, options",
    [(Qwen2Config, {}), (Qwen3Config, {}), (LlamaConfig, {}), (MistralConfig, {"sliding_window": None}),
     (GraniteConfig, SCALED), (LlamaConfig, {"rope_parameters": {
         "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16}})],
    ids=["qwen2", "qwen3", "llama", "mistral", "granite", "llama3_rope"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_known_models_are_computed_as_they_are(kind, options, dtype):
    language_model = model(kind, **options).to(dtype)
    ids, response = (7, 8, 9, 10), (3, 11, 5)
    with torch.no_grad():
        own = language_model(torch.tensor([[*ids, *response]])).logits[0, len(ids) - 1 : -1].float().log_softmax(-1)
        check_language_model(language_model, Path("folder"))
        batch = pack([TrainGroup(PromptLayout(ids, 0, 0), (Sample(response, (), 0.0),) * 2, audio=-1)])
        ours = Policy(language_model)(batch, {}, SamplerSettings(), 16).logprobs
    expected = own.gather(1, torch.tensor(response)[:, None])[:, 0].repeat(2)
    assert own.std() > 0.1
    assert (ours - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize(
    "kind, options, fault",
    [
        (PhiConfig, {}, "its output layer has a bias"),
        (Gemma2Config, {**FULL, "attn_logit_softcapping": None, "sliding_window": 8}, "its logits are not the pr"),
        (Gemma2Config, {**FULL, "final_logit_softcapping": None, "sliding_window": 8}, "does not support softcap"),
        (Gemma3TextConfig, {}, "its layers are of the kinds sliding_attention"),
        (CohereConfig, {}, "its logits are not the product of output layer and hidden state, by "),
        (MistralConfig, {"sliding_window": 8}, "does not support sliding_window"),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding_attention"),
        (BloomConfig, {}, "its decoder layers are not at base_model.layers"),
        (FalconConfig, {"alibi": True}, "its decoder layers are not at base_model.layers"),
        (LlamaConfig, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         r"rotary embedding \(dynamic\) depends on how many positions"),
    ],
    ids=["bias", "soft_cap", "attention_cap", "windows", "scale", "window", "qwen2_window", "bloom", "alibi", "rope"],
)  # fmt: skip
def test_others_are_refused_by_name(kind, options, fault):
    language_model = model(kind, **options)
    with pytest.raises(UserError, match=rf"^folder: .*{type(language_model).__name__}.*{fault}"):
        check_language_model(language_model, Path("folder"))


def test_a_small_soft_cap_on_small_logits_is_found():
    """At the size that this model's logits have, a cap of 1000 would change less than rounding does."""
    language_model = model(
        Gemma2Config, **FULL, attn_logit_softcapping=None, sliding_window=8, final_logit_softcapping=1000.0
    )
    with pytest.raises(UserError, match="its logits are not the product"):
        check_language_model(language_model, Path("folder"))


def test_a_bias_in_the_attention_is_found():
    """ALiBi and its like, in a model that has its layers in the usual place."""
    language_model = model(LlamaConfig)
    for layer in language_model.model.layers:
        attention = layer.self_attn
        own = attention.forward

        def biased(*args: Any, own: Any = own, attention_mask: Any = None, **rest: Any) -> Any:
            hidden = args[0] if args else rest["hidden_states"]
            length = hidden.shape[1]
            distance = torch.arange(length)[None] - torch.arange(length)[:, None]
            mask = distance.float().masked_fill(distance > 0, -torch.inf)
            return own(*args, attention_mask=None if rest.get("blocks") else mask[None, None], **rest)

        attention.forward = biased
    with pytest.raises(UserError, match="its hidden states differ in packed rows, by"):
        check_language_model(language_model, Path("folder"))


def test_models_that_share_a_configuration_are_all_compared():
    """The second is loaded when the first one's attention is already that for packed rows."""
    first = model(LlamaConfig)
    check_language_model(first, Path("folder"))
    second = type(first)(first.config).eval()
    check_language_model(second, Path("folder"))
    broken = type(first)(first.config).eval()
    broken.lm_head = torch.nn.Linear(64, 61)
    with pytest.raises(UserError, match="its output layer has a bias"):
        check_language_model(broken, Path("folder"))
