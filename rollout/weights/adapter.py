"""What an engine checks of a LoRA adapter before a worker sees it. Names are those of peft's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rollout.errors import RefusedError, listed
from rollout.weights.shapes import shape_faults

PREFIX = "base_model.model."
NEUTRAL = frozenset(
    {"task_type", "base_model_name_or_path", "inference_mode", "lora_dropout", "init_lora_weights", "peft_version"}
)
"""Keys of adapter_config.json that say nothing about what a loaded adapter computes."""
READ = frozenset({"peft_type", "r", "lora_alpha", "target_modules", "bias"})


def check_adapter(
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    largest_rank: int,
) -> None:
    """Compare an adapter with the checkpoint that the engine was started from, and with its own configuration.

    Args:
        shapes: of the adapter's tensors, by name.
        config: its adapter_config.json.
        expected: shape by name of every tensor of that checkpoint.
        largest_rank: `engines.lora_rank`.

    Raises:
        RefusedError: listing what is wrong; nothing was loaded.
    """
    faults = list(_config_faults(config, largest_rank)) or list(_tensor_faults(shapes, config, expected))
    if faults:
        raise RefusedError(f"the adapter does not fit the engine: {listed(faults)}")


def _config_faults(config: Mapping[str, Any], largest_rank: int) -> Iterator[str]:
    if not largest_rank:
        yield "the engine was started without engines.lora_rank"
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        yield f"its kind is {config.get('peft_type')!r} with bias {config.get('bias')!r}, not LORA without bias"
    rank, targets = config.get("r"), config.get("target_modules")
    if not isinstance(rank, int) or not 1 <= rank <= max(largest_rank, 1):
        yield f"its rank is {rank}, that of the engine at most {largest_rank}"
    if not isinstance(config.get("lora_alpha"), (int, float)):
        yield f"lora_alpha is {config.get('lora_alpha')!r}"
    if isinstance(targets, str) or not targets:
        yield f"target_modules is {targets!r}, not a list of names"
    for key, value in config.items():
        if value and key not in READ | NEUTRAL:
            yield f"{key}={value!r} is not supported"


def _tensor_faults(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Every target has both of its matrices, of the right shape, and there is nothing else."""
    rank, wanted = config["r"], dict[str, tuple[int, ...]]()
    for target in config["target_modules"]:
        of = [name for name in expected if f".{name}".endswith(f".{target}.weight")]
        if not of:
            yield f"the model has no module {target}"
        for name in of:
            width_out, width_in = expected[name][0], expected[name][-1]
            module = PREFIX + name.removesuffix(".weight")
            wanted[f"{module}.lora_A.weight"] = (rank, width_in)
            wanted[f"{module}.lora_B.weight"] = (width_out, rank)
    yield from shape_faults(shapes, wanted)
