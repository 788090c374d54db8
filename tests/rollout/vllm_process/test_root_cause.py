"""What vLLM's processes say at their end is found in what they wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.vllm_process.root_cause import causes_named, last_error
from speech.errors import UserError

ROOT = Path(__file__).parents[3]
STDERR = """(EngineCore pid=4242) Process EngineCore:
(EngineCore pid=4242) Traceback (most recent call last):
(EngineCore pid=4242)   File "vllm/v1/worker/cpu_worker.py", line 219, in determine_available_memory
(EngineCore pid=4242)     raise ValueError(
(EngineCore pid=4242) ValueError: Explicit KV cache size exceeds available memory (900.0/20.1 GiB).
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""
PROGRAM = """
import subprocess, sys
from rollout.vllm_process.root_cause import causes_named
print("ValueError: of another engine", file=sys.stderr, flush=True)
with causes_named():
    subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write(sys.argv[1])", sys.argv[1]], check=True)
    raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
"""


def test_the_last_error_of_a_text() -> None:
    assert last_error(STDERR) == "ValueError: Explicit KV cache size exceeds available memory (900.0/20.1 GiB)."
    assert last_error("torch.OutOfMemoryError: CUDA out of memory.\n") == "OutOfMemoryError: CUDA out of memory."
    assert last_error("all is well\nRuntimeError: Engine core initialization failed. See root cause above.") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STDERR, "EngineLostError: engines.kv_cache_gb: ValueError: Explicit KV cache size exceeds available memory"),
        ("killed\n", "EngineLostError: Engine core initialization failed. See root cause above."),
    ],
)
def test_a_child_says_it_on_stderr(tmp_path: Path, text: str, message: str) -> None:
    """In a file, as Ray has it of each worker."""
    with (tmp_path / "worker.err").open("w+") as file:
        done = subprocess.run([sys.executable, "-c", PROGRAM, text], cwd=ROOT, stderr=file, check=False)
        file.seek(0)
        written = file.read()
    assert done.returncode == 1
    assert message in written.splitlines()[-1]


def test_settings_that_vllm_refuses() -> None:
    refused = "1 validation error for ModelConfig\n  Value error, User-specified max_model_len (4096) is greater"
    with pytest.raises(UserError, match=r"cannot start so: engines\.max_model_len: .*\(4096\)"), causes_named():
        raise ValueError(refused)


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), causes_named():
        raise KeyError(os.devnull)
