"""How vLLM is set up, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from vllm.config import WeightTransferConfig
from vllm.config.lora import MaxLoRARanks
from vllm.engine.arg_utils import AsyncEngineArgs

from rollout.config import EngineConfig
from rollout.engine.one_process import OneProcessExecutor
from rollout.weights.adapter_worker import AdapterWorker
from rollout.weights.transfer import BACKEND
from speech.errors import UserError

CPU_BLOCK_SIZE = 32
"""Positions per key-value block on CPU. vLLM's default of 128 would cache nothing of a short utterance's prompt; its
kernels want multiples of 32."""

LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""Modules that can have an adapter, by the last part of their names."""


def check(config: EngineConfig) -> None:
    """Refuse settings that do not go together.

    Raises:
        UserError: naming the keys.
    """
    problems = config.problems()
    if problems:
        raise UserError("; ".join(f"engines.{key}: {text}" for key, text in problems))


def engine_args(folder: Path, config: EngineConfig, sleeps: bool = False) -> AsyncEngineArgs:
    """Arguments of `AsyncLLM` for the language model in a folder.

    Args:
        sleeps: allocate so that weights and key-value cache can leave the GPU; means nothing on CPU.
    """
    if config.gpus_per_engine:
        placement: dict[str, Any] = {
            "tensor_parallel_size": config.gpus_per_engine,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enable_sleep_mode": sleeps,
        }
    else:
        placement = {
            "kv_cache_memory_bytes": int(config.kv_cache_gb * 2**30),
            "block_size": CPU_BLOCK_SIZE,
            # vLLM 0.32 rewinds the generator of a seeded request whose prompt it computed only in part, which
            # CPU generators refuse; the engine dies of it.
            "enable_chunked_prefill": False,
            "distributed_executor_backend": OneProcessExecutor,
        }
    if config.lora_rank:
        placement |= {
            "enable_lora": True,
            "max_loras": 1,
            # Without embeddings and heads: vLLM 0.32 embeds the tokens between sounds alone, but looks their adapters
            # up for the whole batch, and the engine dies of it.
            "lora_target_modules": LORA_MODULES,
            "max_lora_rank": min(rank for rank in get_args(MaxLoRARanks) if rank >= config.lora_rank),
            "worker_extension_cls": f"{AdapterWorker.__module__}.{AdapterWorker.__qualname__}",
        }
    return AsyncEngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        enforce_eager=config.enforce_eager,
        enable_prompt_embeds=True,
        enable_prefix_caching=True,
        # Log-probs of the distribution that was sampled from: after temperature and masks.
        logprobs_mode="processed_logprobs",
        # No sampling defaults from the checkpoint.
        generation_config="vllm",
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        # Async scheduling overlaps steps by what happens to be finished, which would make batches a matter of time.
        async_scheduling=False,
        enable_log_requests=False,
        disable_log_stats=True,
        **placement,
    )
