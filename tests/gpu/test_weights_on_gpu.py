"""Weights that stay on the learner's GPU. Not run yet: written without a machine that has one.

What of this runs on a CPU is in tests/speech/runtime/test_device_digest.py, test_device_weights.py and
tests/rollout/weights/test_device.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from speech.runtime.device_digest import ROW, ROWS, DeviceDigest, draw_seeds
from speech.runtime.device_weights import DeviceStage, staged_size
from tests.gpu import NEEDS_GPU

pytestmark = NEEDS_GPU
GPU = torch.device("cuda:0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("size", [1, 7, 1000, (ROWS + 2) * ROW + 3])
def test_a_digest_is_the_same_on_both_devices(size: int, dtype: torch.dtype) -> None:
    seeds = draw_seeds()
    tensor = torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8).view(dtype)
    assert DeviceDigest(seeds, GPU)(tensor.to(GPU)) == DeviceDigest(seeds, "cpu")(tensor)
    matrix = torch.randn(30, 50).to(GPU)
    assert DeviceDigest(seeds, GPU)(matrix.T[3:]) == DeviceDigest(seeds, "cpu")(matrix.cpu().T[3:])


def test_another_process_reads_the_buffer_again_and_again_and_a_wrong_handle_is_reported() -> None:
    """Two processes on one GPU; the second finds it by its UUID."""
    stage = DeviceStage("node", 2**20, GPU)
    try:
        for _ in range(2):
            stage.check()
            assert stage.reclaim()
        handle, *rest = stage._handle
        stage._handle = (str(handle)[:-32] + "00" * 16, *rest)
        with pytest.raises(RuntimeError, match="another process could not read the buffer"):
            stage.check()
    finally:
        stage.remove()


def test_an_engine_loads_from_the_buffer_and_refuses_a_wrong_tensor(tmp_path: Path) -> None:
    """Needs vLLM: in the environment of `make setup DEVICE=gpu`."""
    pytest.importorskip("vllm")
    from rollout.engine.engine import RolloutEngine
    from rollout.errors import UnreadableError
    from tests.rollout.tiny_lm import CONFIG, TinyFamily, probe_of, tiny_model

    tiny_model(0, tied=True).save_pretrained(tmp_path)
    config = replace(CONFIG, gpus_per_engine=1, dtype="bfloat16", gpu_memory_utilization=0.3)
    engine = RolloutEngine(TinyFamily(tmp_path), config)
    model = tiny_model(3, tied=True)
    sent = [(name, parameter.detach().to(GPU, torch.bfloat16)) for name, parameter in model.named_parameters()]
    stage = DeviceStage("node", staged_size(tensor.nbytes for _, tensor in sent), GPU)
    probe = replace(probe_of(model), tolerance=0.2)  # bfloat16 against float32
    with asyncio.Runner() as runner:
        try:
            runner.run(engine.start())
            for version in (1, 2):
                assert stage.reclaim()
                bucket = stage.fill(sent)
                assert runner.run(engine.update_weights(version, [bucket], probe)) <= 0.2
            name = "model.layers.1.mlp.down_proj.weight"
            stage._buffer[bucket.tensors[name][0] + 77] ^= 1
            torch.cuda.synchronize()
            with pytest.raises(UnreadableError, match=f"version 2 is served on: .*tensor {name} arrived changed"):
                runner.run(engine.update_weights(3, [bucket], probe))
            assert runner.run(engine.health()).stale is None
        finally:
            engine.shutdown()
            stage.remove()


def test_a_buffer_is_read_across_gpus() -> None:
    """A worker on another GPU opens it on its own device, without a look at the sender's."""
    if torch.cuda.device_count() < 2 or not torch.cuda.can_device_access_peer(1, 0):
        pytest.skip("needs two GPUs that can read each other")
    stage = DeviceStage("node", 2**20, GPU)
    script = """
import json, sys, torch
from speech.runtime.device_weights import DeviceBucket, OpenedWeights
opened = OpenedWeights(DeviceBucket(**json.load(sys.stdin)), torch.device("cuda:0"))
print(float(opened.verified("a").sum()))
"""
    try:
        bucket = stage.fill([("a", torch.ones(1000, device=GPU))])
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(asdict(bucket)),
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout.strip() == "1000.0", done.stderr
    finally:
        stage.remove()
