"""The Ray shells, with a real encoder, a real engine of an *untied* model, and audio files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import soundfile
import torch
from transformers import PreTrainedModel

from rollout.actors import EncodedRef, EncoderActor, Encoding, EngineActor
from rollout.config import EncoderConfig
from rollout.engine.stats import EngineHealth, EngineStats
from rollout.environment import encoder_options, engine_options
from rollout.errors import EngineLostError, PublicationError, RefusedError, StaleEngineError
from rollout.leftovers import VARIABLE, held_by
from speech.records import BadUtterance, Group, Prompt, Utterance
from speech.runtime.owned_folders import SHARED_MEMORY
from speech.runtime.weights import AdapterBucket
from tests.rollout.tiny_lm import (
    CONFIG,
    SAMPLE_RATE,
    SAMPLING,
    adapter_of,
    buckets_of,
    probe_of,
    reference_logprobs,
    tiny_model,
    with_adapter,
)

pytestmark = pytest.mark.slow  # an engine of its own, and its last test kills it; whole runs use these actors too


@dataclass
class System:
    """Actors and inputs; `version` and `model` are what the engine holds."""

    encoder: Any
    engine: Any
    utterances: list[Utterance]
    model: PreTrainedModel
    encoded: list[EncodedRef]
    folder: str
    version: int | None = None

    def generate(self) -> list[Group]:
        prompts = [
            Prompt(id=f"0/{u.id}", utterance=u, epoch=0, position=i, seed=100 * i)
            for i, u in enumerate(self.utterances)
        ]
        stream = self.engine.generate.options(num_returns="streaming")
        placed = [ray.get(ref) for ref in stream.remote(prompts, [item.ref for item in self.encoded], SAMPLING)]
        return [group for _, group in sorted(placed, key=lambda item: item[0])]

    def publish(self, version: int, model: PreTrainedModel) -> float:
        buckets = [ray.put(bucket) for bucket in buckets_of(model)]
        delta: float = ray.get(self.engine.update_weights.remote(version, buckets, probe_of(model)))
        self.version, self.model = version, model
        return delta


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("untied")
    model = tiny_model(0, tied=False)
    model.save_pretrained(folder / "model")
    utterances = []
    for i, seconds in enumerate((0.9, 0.5, 0.7)):
        wave = np.random.default_rng(i).uniform(-0.5, 0.5, int(seconds * SAMPLE_RATE)).astype(np.float32)
        soundfile.write(folder / f"{i}.flac", wave, SAMPLE_RATE)
        utterances.append(Utterance(id=f"u{i}", audio=str(folder / f"{i}.flac"), text=""))
    # The tests' model family, and this tree: another may be installed.
    environment = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])}
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        runtime_env={"env_vars": environment, "worker_process_setup_hook": "tiny_lm.register"},
    )
    try:
        encoder_config = EncoderConfig()
        encoder = EncoderActor.options(**encoder_options(encoder_config)).remote(
            str(folder / "model"), "tiny", encoder_config
        )
        engine = EngineActor.options(**engine_options(CONFIG)).remote(str(folder / "model"), "tiny", CONFIG)
        ray.get(engine.start.remote(None))
        encoding = Encoding.ask(encoder, utterances, "embeddings")
        encoded = [item for item in encoding.collect(ray.get(encoding.summaries)) if isinstance(item, EncodedRef)]
        yield System(encoder, engine, utterances, model, encoded, str(folder / "model"))
        ray.get(engine.shutdown.remote())
    finally:
        ray.shutdown()


def test_audio_is_encoded_once_into_the_object_store(system: System) -> None:
    encoding = Encoding.ask(system.encoder, system.utterances, "embeddings")
    answer = ray.get(encoding.summaries)
    encoded = [item for item in encoding.collect(answer) if isinstance(item, EncodedRef)]
    assert [round(item.seconds, 3) for item in encoded] == [0.9, 0.5, 0.7]
    assert [item.layout.audio_length for item in encoded] == [90, 50, 70]
    assert all(ray.get(item.ref).layout == item.layout for item in encoded)
    assert answer.recordings == 3


def test_a_recording_that_cannot_be_read_spoils_no_other(system: System, tmp_path: Path) -> None:
    content = Path(system.utterances[0].audio).read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    gone, cut = (Utterance(id=name, audio=str(tmp_path / f"{name}.flac"), text="") for name in ("gone", "cut"))
    encoding = Encoding.ask(system.encoder, [system.utterances[0], gone, cut, system.utterances[1]], "embeddings")
    first, missing, broken, second = encoding.collect(ray.get(encoding.summaries))
    assert isinstance(first, EncodedRef) and isinstance(second, EncodedRef)
    assert [ray.get(item.ref).layout.audio_length for item in (first, second)] == [90, 50]
    assert missing == BadUtterance("gone", f"{gone.audio}: no such file")
    assert isinstance(broken, BadUtterance) and str(cut.audio) in broken.reason


def test_an_engine_that_joins_serves_only_after_its_first_publication(system: System) -> None:
    with pytest.raises(StaleEngineError, match="awaits its first publication"):
        system.generate()
    assert system.publish(7, system.model) <= 1e-4
    groups = system.generate()
    assert {t.version_first for group in groups for t in group.trajectories} == {7}
    health: EngineHealth = ray.get(system.engine.health.remote())
    assert (health.version, health.stale) == (7, None)


def gap(system: System) -> float:
    return max(
        float((reference_logprobs(system.model, ray.get(item.ref), t, SAMPLING) - torch.tensor(t.logprobs)).abs().max())
        for group, item in zip(system.generate(), system.encoded, strict=True)
        for t in group.trajectories
    )


def test_an_untied_model_follows_its_publications(system: System) -> None:
    assert gap(system) <= 1e-4
    system.publish(8, tiny_model(1, tied=False))
    assert gap(system) <= 1e-4
    stats: EngineStats = ray.get(system.engine.stats.remote())
    assert stats.updates == 2 and stats.update_seconds > 0
    assert stats.prefix_hits > 0 and stats.tokens > 0 and stats.generate_seconds > 0


def test_a_corrupted_publication_of_an_untied_model_is_caught_and_healed(system: System) -> None:
    model = tiny_model(2, tied=False)
    buckets = buckets_of(model)
    buckets[-1].tensors["lm_head.weight"].view(torch.int32)[0, 0] ^= 1 << 20
    call = system.engine.update_weights.remote(9, [ray.put(bucket) for bucket in buckets], probe_of(model))
    with pytest.raises(PublicationError, match=r"lm_head\.weight"):
        ray.get(call)
    with pytest.raises(StaleEngineError):
        system.generate()
    system.publish(9, model)
    assert gap(system) <= 1e-4


def test_an_adapter_comes_to_an_engine_through_the_object_store(system: System) -> None:
    config = replace(CONFIG, lora_rank=8)
    adapter = adapter_of(tiny_model(0, tied=False), seed=1)
    good, model = ray.put(adapter), with_adapter(tiny_model(0, tied=False), adapter)
    bad = ray.put(AdapterBucket(adapter.tensors, dict.fromkeys(adapter.digests, "other"), adapter.config))
    kept = replace(system)
    kept.engine = EngineActor.options(**engine_options(config)).remote(system.folder, "tiny", config)
    ray.get(kept.engine.start.remote(None))
    with pytest.raises(RefusedError, match="nothing is served on"):
        ray.get(kept.engine.update_weights.remote(4, [bad], probe_of(model)))
    with pytest.raises(StaleEngineError):
        kept.generate()
    assert ray.get(kept.engine.update_weights.remote(5, [good], probe_of(model))) <= 1e-4
    kept.model = model
    with pytest.raises(RefusedError, match="version 5 is served on"):
        ray.get(kept.engine.update_weights.remote(6, [bad], probe_of(model)))
    assert gap(kept) <= 1e-4
    assert {(t.version_first, t.version_last) for g in kept.generate() for t in g.trajectories} == {(5, 5)}
    ray.get(kept.engine.shutdown.remote())


def test_calls_that_overlap_do_not_mix(system: System) -> None:
    first, second = ([group.prompt.id for group in groups] for groups in (system.generate(), system.generate()))
    assert first == second == ["0/u0", "0/u1", "0/u2"]


def test_a_lost_engine_says_so_and_leaves_nothing(system: System) -> None:
    """Last: it kills vLLM's engine process, which then cannot remove its semaphore, sockets and files."""
    # Of this engine alone: the session's engine may run in the same process tree.
    actor = psutil.Process(ray.get(system.engine.__ray_call__.remote(lambda _: os.getpid())))
    (core,) = [p for p in actor.children(recursive=True) if "EngineCore" in " ".join(p.cmdline())]
    held = held_by(core.pid)
    files = [file for file in SHARED_MEMORY.iterdir() if (file.stat().st_dev, file.stat().st_ino) in held]
    assert {file.name[:4] for file in files} == {"sem."}
    home = Path(core.environ()[VARIABLE])
    assert len(list(home.iterdir())) > 3, "sockets, and the notes"
    core.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            ray.get(system.engine.health.remote())
        except EngineLostError:
            break
        time.sleep(0.5)
    with pytest.raises(EngineLostError, match="processes are gone"):
        system.generate()
    ray.get(system.engine.shutdown.remote())
    assert not any(file.exists() for file in [home, *files])
