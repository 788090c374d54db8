"""What stops a run on this machine is said at once, all of it, before anything starts."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster import preflight
from cluster.cli import main
from cluster.config import RunConfig, load_config
from cluster.preflight import gpus_wanted, problems_here

ROOT = Path(__file__).parents[2]


class Memory(NamedTuple):
    total: int
    available: int


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "train.jsonl"
    file.touch()
    return str(file)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GiB, of which 6 are free, in no container, on no cluster."""
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: Memory(8 * 2**30, 6 * 2**30))
    monkeypatch.setattr(preflight, "container_limits", lambda: [])
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path: Path, demo_checkpoint: Path) -> Path:
    """A copy that a test may spoil, with positions for an engine's default context."""
    folder = tmp_path / "model"
    shutil.copytree(demo_checkpoint, folder)
    positions(folder, 1024)
    return folder


def positions(model: Path, count: int, **more: Any) -> None:
    file = model / "config.json"
    values = json.loads(file.read_text())
    values["text_config"] |= {"max_position_embeddings": count, **more}
    file.write_text(json.dumps(values))


def config(model: Path, data: str, *overrides: str) -> RunConfig:
    return load_config(None, ["name=n", f"model.path={model}", f"data.train={data}", *overrides])


def keys(run: RunConfig, **arguments: Any) -> list[str]:
    return [key for key, _ in problems_here(run, **arguments)]


def test_a_run_that_can_start(model: Path, data: str) -> None:
    assert problems_here(config(model, data)) == []


def test_all_of_it_in_one_message_and_no_traceback(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/t" * 40)
    path = tmp_path / "run.yaml"
    path.write_text(f"name: n\nmodel:\n  path: nowhere\ndata:\n  train: {data}\n  test: absent.jsonl\n")
    arguments = ["engines.kv_cache_gb=9", "engines.max_model_len=9000", "learner.gpus_per_rank=2"]
    assert main(["train", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert "the configuration has 6 problems" in error and "Traceback" not in error
    assert f"{path}:3: model.path: folder nowhere does not exist" in error
    assert f"{path}:6: data.test: absent.jsonl does not exist" in error
    assert "command line: engines.kv_cache_gb: 9 GiB: this machine has 8.0 GiB of memory" in error
    assert "engines.max_num_batched_tokens: 4096 must be at least max_model_len=9000" in error
    assert "command line: learner.gpus_per_rank: asks for GPUs, 2 in all; this machine has 0" in error
    assert "environment: TMPDIR: /t" in error and "has 80 bytes" in error and "room for 39" in error


def test_what_is_missing_is_said_before_torch_is_loaded(data: str) -> None:
    program = (
        "import sys\nfrom cluster.cli import main\n"
        f"assert main(['train', 'configs/asr_demo.yaml', 'model.path=nowhere', 'data.train={data}']) == 2\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "folder nowhere does not exist" in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_folder_that_lacks_a_file(model: Path, data: str, name: str) -> None:
    (model / name).unlink()
    ((key, text),) = problems_here(config(model, data))
    assert key == "model.path" and name in text and str(model) in text


def test_a_shard_that_is_missing(model: Path, data: str) -> None:
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps(shards))
    (model / "model-1.safetensors").touch()
    assert problems_here(config(model, data)) == [("model.path", f"model folder {model} lacks model-2.safetensors")]
    index.write_text("[]")
    ((_, text),) = problems_here(config(model, data))
    assert text.startswith(f"{index}: not an index of weights")


def test_a_family_of_ones_own_may_have_other_files(model: Path, data: str) -> None:
    (model / "model.safetensors").unlink()
    assert keys(config(model, data, "model.family=mine:Family")) == []


def test_folders_of_speech(model: Path, data: str) -> None:
    speech = ["model.codec=nocodec", "objective=diffro", "learner.diffro.reward_model=nojudge",
              "rewards.items=[{name: tts_accuracy}]", "rewards.sound.judge={kind: demo, path: nowhere}"]  # fmt: skip
    assert keys(config(model, data, *speech)) == ["model.codec", "learner.diffro.reward_model",
                                                  "rewards.sound.judge.path"]  # fmt: skip
    hub = "rewards.sound.judge={kind: transformers, path: openai/whisper-tiny}"
    assert "rewards.sound.judge.path" not in keys(config(model, data, *speech[:-1], hub))
    token2text = ["objective=token2text", "model.codec=nocodec", "model.path=new"]
    assert keys(config(model, data, *token2text)) == ["model.codec"]


def test_a_context_longer_than_the_models_positions(model: Path, data: str) -> None:
    positions(model, 512)
    assert problems_here(config(model, data, "engines.max_model_len=513")) == [
        ("engines.max_model_len", f"513 is more than the 512 positions of {model}")
    ]
    assert keys(config(model, data, "engines.max_model_len=512")) == []
    positions(model, 512, rope_scaling={"type": "yarn", "factor": 4.0})
    assert keys(config(model, data, "engines.max_model_len=513")) == []


def test_the_positions_are_the_models_and_not_the_codecs(model: Path, data: str, tmp_path: Path) -> None:
    """A folder of CosyVoice, as a codec, has no config.json at all."""
    positions(model, 512)
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "speech_tokenizer_v2.onnx").touch()
    speech = f"model.codec=my_vocoder:make@{tmp_path / 'codec'}"
    assert keys(config(model, data, speech, "engines.max_model_len=512")) == []
    assert keys(config(model, data, speech, "engines.max_model_len=513")) == ["engines.max_model_len"]


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["engines.kv_cache_gb=6"], False),
        (["engines.kv_cache_gb=6.5"], True),  # more than is free
        (["engines.kv_cache_gb=3", "engines.max=3"], True),  # more than there is
        (["engines.kv_cache_gb=4", "engines.count=2"], False),  # fits, once others have gone
        (["engines.kv_cache_gb=99", "engines.gpus_per_engine=1", "ray.address=auto"], False),
    ],
)
def test_memory(model: Path, data: str, overrides: list[str], refused: bool) -> None:
    assert keys(config(model, data, *overrides)) == ["engines.kv_cache_gb"] * refused


def test_adapters_need_a_package(model: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(model, data, "learner.lora={}")
    for found, expected in ((object(), []), (None, ["learner.lora"])):
        monkeypatch.setattr(preflight, "find_spec", lambda package, found=found: found)
        assert keys(run) == expected
    assert keys(run, training=False) == []


def test_a_trackers_package(model: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda package: None)
    run = config(model, data, "trackers=[my_module:MyTracker, wandb]")
    assert keys(run) == ["trackers.1"]
    assert keys(run, training=False) == []


def test_an_evaluation_reads_one_manifest(model: Path, data: str) -> None:
    run = config(model, data, "data.test=absent.jsonl", "data.valid=absent.jsonl", "evaluation.every=1")
    assert keys(run) == ["data.valid", "data.test"]
    assert keys(run, training=False) == []


def test_gpus_that_are_asked_for(model: Path, data: str) -> None:
    run = config(model, data, "engines.gpus_per_engine=2", "engines.count=2", "encoder.gpus=0.5",
                 "learner.gpus_per_rank=1", "learner.ranks=3")  # fmt: skip
    wanted = {"engines.gpus_per_engine": 4.0, "encoder.gpus": 0.5, "learner.gpus_per_rank": 3.0}
    assert gpus_wanted(run, training=True) == wanted
    assert gpus_wanted(run, training=False) == {key: wanted[key] for key in list(wanted)[:2]}
    assert keys(run) == list(wanted), "there is none here"
    judged = config(model, data, "objective=grpo", "rewards.count=2", "rewards.sound.judge.gpus=0.25")
    assert gpus_wanted(judged, training=True) == {"rewards.sound.judge.gpus": 0.5}
    assert gpus_wanted(judged, training=False) == {}
    shared = config(model, data, "placement=colocated", "engines.gpus_per_engine=1", "learner.gpus_per_rank=1",
                    "encoder.gpus=1")  # fmt: skip
    assert gpus_wanted(shared, training=True) == {"engines.gpus_per_engine": 1.0}


def test_addresses(model: Path, data: str) -> None:
    def message(address: str) -> str:
        found = problems_here(config(model, data, f"ray.address={address}"))
        assert [key for key, _ in found] == ["ray.address"] * len(found)
        return found[0][1] if found else ""

    with socket.create_server(("127.0.0.1", 0)) as server:
        listening = f"127.0.0.1:{server.getsockname()[1]}"
        assert message(listening) == message(f"ray://{listening}") == message("auto") == message("local") == ""
    began = time.monotonic()
    assert f"no Ray cluster answers at '{listening}'" in message(listening)
    assert "speechrl submit --address" in message("http://127.0.0.1:8265")
    assert "no Ray cluster answers" in message("127.0.0.1:notaport")
    assert "no Ray cluster answers" in message("no.such.host.invalid:6379")
    assert time.monotonic() - began < 60


def test_a_web_server_is_no_head(model: Path, data: str) -> None:
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        ((key, text),) = problems_here(config(model, data, f"ray.address={address}"))
        server.shutdown()
    assert key == "ray.address" and f"at {address!r} an HTTP server answers" in text


def test_temporary_folders(tmp_path: Path, model: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/" + "t" * 50)
    ((key, text),) = problems_here(config(model, data))
    assert key == "TMPDIR" and "has 51 bytes" in text and "room for 39" in text
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert keys(config(model, data)) == [], "Ray has a folder of its own, and vLLM's sockets find room by themselves"
    monkeypatch.delenv("RAY_TMPDIR")
    assert keys(config(model, data, "ray.address=auto")) == [], "the nodes have folders of their own"
