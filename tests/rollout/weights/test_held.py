"""What vLLM's models hold after a reload, for the forms of weights that the families have: biases, untied and tied
heads, in both precisions. One process without an engine: only the models, and vLLM's own reload."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rollout.weights.held import check_held
from tests.learner.batches.packed_cases import MODELS

pytestmark = pytest.mark.slow
CASES = (("qwen2", False, "bfloat16"), ("llama", True, "float32"), ("qwen3", True, "bfloat16"))
NORM, KEY, HEAD = "model.norm.weight", "model.layers.1.self_attn.k_proj", "lm_head.weight"


def small(kind: str, tied: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    configuration, causal_lm = MODELS[kind]
    form = configuration(
        hidden_size=160,  # more columns than are compared of a packed matrix
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=1000,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
    )
    model: PreTrainedModel = causal_lm(form)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def load(folder: Path, dtype: str) -> tuple[Any, Any]:
    """vLLM's model of a folder, and its configuration."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    torch.accelerator.empty_cache = lambda: None  # asks for an accelerator; vLLM's CPU worker does the same
    arguments = EngineArgs(model=str(folder), skip_tokenizer_init=True, dtype=dtype, enforce_eager=True)
    config = arguments.create_engine_config()
    with set_current_vllm_config(config):
        if not parallel_state.model_parallel_is_initialized():
            init_distributed_environment(1, 0, f"file://{folder / 'meet'}", 0, "gloo")
            initialize_model_parallel(1, 1)
        return get_model(vllm_config=config), config


@torch.no_grad()
def verdicts(kind: str, tied: bool, dtype: str) -> dict[str, str]:
    """What `check_held` says of a sound reload, and of reloads that leave something out; empty where it accepts."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    from rollout.weights.transfer import refresh_packed_heads

    with tempfile.TemporaryDirectory() as name:
        original = small(kind, tied)
        original.save_pretrained(name)
        model, config = load(Path(name), dtype)
    sent = {n: (p * 1.25).to(getattr(torch, dtype)) for n, p in original.named_parameters()}

    def reload(tensors: Iterable[tuple[str, torch.Tensor]], refresh: bool = True) -> None:
        with set_current_vllm_config(config):
            initialize_layerwise_reload(model)
            model.load_weights(tensors)
            finalize_layerwise_reload(model, config.model_config)
            if refresh:
                refresh_packed_heads(model)

    def judged() -> str:
        try:
            check_held(model, sent, sent.__getitem__)
        except ValueError as error:
            return str(error)
        return ""

    found = {}
    for step in ("first", "second"):
        reload(sent.items())
        found[f"sound, {step}"] = judged()
    for left_out in (NORM, f"{KEY}.weight", f"{KEY}.bias", HEAD):
        if left_out in sent or left_out == HEAD:
            reload((n, t * 2) for n, t in sent.items())
            reload(((n, t) for n, t in sent.items() if n != left_out), refresh=left_out != HEAD)
            found[left_out] = judged()
    return found


def run(connection: Any) -> None:
    connection.send([verdicts(*case) for case in CASES])


def test_what_a_reload_leaves_out_is_named_and_a_whole_one_is_accepted() -> None:
    context = multiprocessing.get_context("spawn")  # vLLM's state is the process's
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(theirs,))
    process.start()
    theirs.close()
    results = ours.recv()
    process.join()
    for (kind, tied, _), found in zip(CASES, results, strict=True):
        assert found.pop("sound, first") == found.pop("sound, second") == ""
        assert found.keys() == {NORM, f"{KEY}.weight", HEAD} | ({f"{KEY}.bias"} if kind == "qwen2" else set())
        fused = "model.layers.1.self_attn.qkv_proj"
        assert f"were sent: {NORM} does not hold {NORM}" in found[NORM]
        for part in ("weight", "bias") if kind == "qwen2" else ("weight",):
            assert f"were sent: {fused}.{part} does not hold" in found[f"{KEY}.{part}"]
        assert f"were sent: {HEAD} does not hold {'model.embed_tokens.weight' if tied else HEAD}" in found[HEAD]
