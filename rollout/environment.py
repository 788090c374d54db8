"""Environment variables and Ray options of the actors that compute."""

from __future__ import annotations

from typing import Any

from rollout.config import EncoderConfig, EngineConfig


def actor_environment(threads: int) -> dict[str, str]:
    """Environment of a process that computes with `threads` OpenMP threads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Threads that spin while they wait take the cores from the actor whose turn it is.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        # Pinning would put all engines of a machine on the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def engine_environment(config: EngineConfig) -> dict[str, str]:
    """Environment of an engine's process, and of vLLM's children in it."""
    environment = actor_environment(config.threads) | {
        "VLLM_ENGINE_READY_TIMEOUT_S": str(int(config.startup_timeout_s))
    }
    if config.enforce_eager and not config.gpus_per_engine:
        # vLLM compiles parts of its sampler even in eager mode. On CPU that costs 5 to 20 s at the first generation,
        # and the engine dies of it where the compiler, or what others left in inductor's cache, is not to its liking.
        environment["TORCHDYNAMO_DISABLE"] = "1"
    return environment


def engine_options(config: EngineConfig) -> dict[str, Any]:
    """Arguments of `EngineActor.options` for one engine of the fleet."""
    return {
        "num_cpus": 1 if config.gpus_per_engine else config.threads,
        "num_gpus": config.gpus_per_engine,
        "runtime_env": {"env_vars": engine_environment(config)},
    }


def encoder_options(config: EncoderConfig) -> dict[str, Any]:
    """Arguments of `EncoderActor.options` for one encoder."""
    return {
        "num_cpus": config.threads,
        "num_gpus": config.gpus,
        "runtime_env": {"env_vars": actor_environment(config.threads)},
    }
