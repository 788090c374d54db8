"""A node without memory for a rank is named with what it was used for, not restarted three times."""

from __future__ import annotations

import pytest
import ray

from learner import gang
from learner.gang import LearnerGroup, LearnerOutOfMemoryError
from learner.memory import out_of_memory

SAID = """2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was \
22.85GB used / 23.59GB limit (0.968587)
OOM kill reason: Memory usage 24168632320B exceeded threshold of 24059004928B (95.0% of 25325268992B limit)
To see more information about memory usage on this node, use `ray logs raylet.out -ip 192.0.2.2`
Top 10 memory users: PID	MEM(GB)	COMMAND
2496	11.90	ray::LearnerActor
2650	4.72	VLLM::EngineCore
2466	1.23	ray::EngineActor.update_weights
2463	1.09	ray::EncoderActor
2210	0.38	/usr/bin/python -m cluster.cli train
Refer to the documentation on how to address the out of memory issue
"""
"""Ray 2.60's words, abridged."""


def test_the_report_becomes_one_line_that_names_keys() -> None:
    line = out_of_memory(SAID)
    assert "\n" not in line
    assert "(22.85GB of 23.59GB in use); the largest: ray::LearnerActor 11.90 GB, VLLM::EngineCore 4.72 GB" in line
    assert "python" not in line and "checkpoint.asynchronous=false" in line
    assert out_of_memory("no words that are known").startswith("its node ran out of memory. What needs less")


def test_a_rank_that_was_ended_for_memory_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(call: object) -> None:
        raise ray.exceptions.OutOfMemoryError(SAID)

    monkeypatch.setattr(gang.ray, "wait", lambda calls, timeout: (calls[:1], calls[1:]))
    monkeypatch.setattr(gang.ray, "get", get)
    group = LearnerGroup.__new__(LearnerGroup)
    with pytest.raises(LearnerOutOfMemoryError, match=r"learner update: rank 0 is lost: .*ray::LearnerActor 11\.90 GB"):
        group._get(["call"], "update", timeout=1.0)  # type: ignore[list-item]
