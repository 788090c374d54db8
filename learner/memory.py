"""What to say when a node has no memory left for a learner rank."""

from __future__ import annotations

import re

LESS = (
    "learner.micro_batch_tokens or learner.logits_chunk (smaller), learner.activation_checkpointing=true, "
    "checkpoint.asynchronous=false (no copy of the state), learner.loss.kl_coef=0 (no reference policy), "
    "engines.kv_cache_gb (smaller), or learner.ranks on more nodes"
)
_USE = re.compile(r"was (\S+) used / (\S+) limit")
_PROCESS = re.compile(r"^\d+\t([\d.]+)\t(\S+)", re.MULTILINE)
_SHOWN = 4


def out_of_memory(said: str) -> str:
    """Ray's report of a node without memory, in a line: how much, who had it, and which keys need less."""
    use, processes = _USE.search(said), _PROCESS.findall(said)
    amount = f" ({use[1]} of {use[2]} in use)" if use else ""
    largest = ", ".join(f"{name} {gigabytes} GB" for gigabytes, name in processes[:_SHOWN])
    who = f"; the largest: {largest}" if largest else ""
    return f"its node ran out of memory{amount}{who}. What needs less: {LESS}"
