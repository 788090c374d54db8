"""`speechrl plan` against what this machine measures, and against the figures of docs/measurements.md."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ASRConfig

from benchmarks.real_size import AUDIO, settings, text_shape
from cluster.cli import main
from cluster.config import RunConfig, load_config
from cluster.sizing.estimate import Amount, Estimate, activation_bytes, estimate
from cluster.sizing.shape import ModelShape, read_shape
from learner.batches.batch import Sample, TrainGroup
from learner.batches.packing import pack
from learner.batches.plan import plan_updates
from learner.config import LoraConfig, LossConfig
from learner.model.lora import inject
from learner.model.policy import Policy
from learner.model.sampler import SamplerSettings
from learner.rank import LearnerRank
from speech.errors import UserError
from speech.families import load_family
from speech.records import PromptLayout
from tests.learner.ranks import run_ranks
from tests.learner.test_rank import make_spec
from tests.speech.families.hearing_checkpoints import CASES
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint

ROOT = Path(__file__).parents[3]
MEDIUM = {"vocab_size": 4000, "hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6}
MEDIUM |= {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64}


def config_of(model: Path, *overrides: str) -> RunConfig:
    return load_config(None, ["name=a", f"model.path={model}", "data.train=x.jsonl", *overrides])


def learner(found: Estimate, *kinds: str) -> list[float]:
    """Bytes of the amounts of a learner rank whose names begin so."""
    (component,) = (c for c in found.components if c.name == "learner rank" and c.device == "host")
    return [next(a.size for a in component.amounts if a.what.startswith(kind)) for kind in kinds]


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sizing") / "model", text=MEDIUM, scale=1.0)


@pytest.mark.parametrize("name", ["tied", "untied", *CASES])
def test_parameters_by_part_are_those_of_the_loaded_parts(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "m"
    write = CASES[name].write if name in CASES else partial(write_checkpoint, tied=name == "tied")
    write(folder)
    shape, family = read_shape(folder), load_family(folder)

    def count(module: torch.nn.Module) -> int:
        stored = {tensor.data_ptr(): tensor.numel() for tensor in module.state_dict().values()}  # tied ones once
        return sum(stored.values())

    language_model = family.load_language_model()
    assert shape.language_model == count(language_model)
    assert shape.layer == count(language_model.base_model.layers[0])
    assert (shape.adaptor, shape.encoder) == (count(family.load_adaptor()), count(family.load_encoder()))  # type: ignore[attr-defined]


def test_the_demo_models() -> None:
    shape = read_shape(ROOT / "assets" / "asr_demo")
    assert (shape.layers, shape.hidden, shape.queries, shape.keys, shape.vocabulary) == (3, 128, 128, 64, 512)
    assert shape.language_model * 4 < (ROOT / "assets" / "asr_demo" / "model.safetensors").stat().st_size
    speaking = read_shape(ROOT / "assets" / "tts_demo")
    assert speaking.adaptor == speaking.encoder == 0


def test_the_sizes_of_0_6_billion_parameters(tmp_path: Path) -> None:
    """docs/measurements.md: 1.19 GB in bfloat16, 9.5 GB of weights, gradients and moments, 23.0 GB in use at most.

    The checkpoint has no weights: the parameters are counted on the meta device.
    """
    tied = {"tie_word_embeddings": True}
    written = Qwen3ASRConfig(audio_config=AUDIO, text_config={**text_shape(1024), **tied}, **tied)
    written.architectures = ["Qwen3ASRForConditionalGeneration"]
    written.save_pretrained(tmp_path / "model")
    shape = read_shape(tmp_path / "model")
    assert shape.language_model == 596_049_920
    overrides = [f"{key}={value}" for key, value in settings(tmp_path, tmp_path / "model", 3).items()]
    config = load_config(ROOT / "configs" / "asr_demo.yaml", overrides)
    found = estimate(config, shape, {})
    state = learner(found, "weights", "gradients", "Adam")
    assert sum(state) == 16 * shape.language_model and sum(state) / 1e9 == pytest.approx(9.5, abs=0.05)
    assert found.publication / 1e9 == pytest.approx(1.19, abs=0.005)
    assert found.host() / 1e9 == pytest.approx(23.0, rel=0.25), "of all processes on one machine"


def groups_of(count: int) -> list[TrainGroup]:
    samples = tuple(Sample((8,) * 48, (-1.0,) * 48, float(i)) for i in range(4))
    return [TrainGroup(PromptLayout((7,) * 64, 0, 0), samples, -1) for _ in range(count)]


def saved_bytes(policy: Policy) -> tuple[int, int]:
    """Bytes that autograd keeps of a forward pass, parameters left out, and the positions of its row."""
    batch, kept = pack(groups_of(4)), {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # alive, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(batch, {}, SamplerSettings(), 512)
    return sum(storage.nbytes() for storage in kept.values()), len(batch.input_ids)


SIZES = ("sampling.group_size=4", "sampling.max_new_tokens=48", "engines.max_model_len=112", "learner.logits_chunk=512")


@pytest.mark.parametrize(
    "text", [{}, MEDIUM, {**MEDIUM, "num_attention_heads": 12}, {**MEDIUM, "num_key_value_heads": 6}]
)
def test_activations_are_what_autograd_keeps(tmp_path: Path, text: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path / "m", text=text, scale=1.0)
    saved, positions = saved_bytes(Policy.load(load_family(folder), ["language_model"], torch.float32))  # type: ignore[arg-type]
    assert activation_bytes(config_of(folder, *SIZES), read_shape(folder), positions) == pytest.approx(saved, rel=0.05)


def measure_rank(rank: int, world: int, meeting: str, model: str, checkpointing: bool, out: str) -> None:
    spec = make_spec(
        Path(model),
        micro_batch_tokens=1024,
        logits_chunk=512,
        loss=LossConfig(),
        activation_checkpointing=checkpointing,
    )
    learner = LearnerRank(spec, rank, world, f"file://{meeting}")
    learner.update(1, plan_updates(groups_of(16), [], 1, world)[rank], {})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(f"{out}-{rank}").write_text(json.dumps(peak))
    learner.close()


def test_a_real_rank_needs_what_is_planned(medium: Path, tmp_path: Path) -> None:
    """Peak resident memory of a process that learns, all of it; without what a publication and a checkpoint add."""
    shape = read_shape(medium)
    for world, checkpointing in ((1, False), (2, True)):
        meeting, out = str(tmp_path / f"meet-{world}-{checkpointing}"), str(tmp_path / f"{world}-{checkpointing}")
        run_ranks(measure_rank, world, world, meeting, str(medium), checkpointing, out)
        changed = [f"learner.ranks={world}", f"learner.activation_checkpointing={checkpointing}"]
        config = config_of(medium, *SIZES, "learner.micro_batch_tokens=1024", *changed)
        (component,) = (c for c in estimate(config, shape, {}).components if c.name == "learner rank")
        planned = sum(a.size for a in component.amounts if not a.what.startswith(("checkpoint", "publication")))
        for rank in range(world):
            assert planned == pytest.approx(json.loads(Path(f"{out}-{rank}").read_text()), rel=0.15)


def test_what_does_not_fit_is_named_with_keys(medium: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["plan", "configs/asr_demo.yaml", f"model.path={medium}", "engines.max_model_len=512"]
    assert main([*base, "--memory", "64"]) == 0
    out = capsys.readouterr().out
    assert "fits" in out and "language model 11.9, adaptor 0.0" in out and "GPUs: none" in out
    assert main([*base, "--memory", "5"]) == 1
    out = capsys.readouterr().out
    assert "does not fit: all processes on one machine" in out
    assert "learner.activation_checkpointing=True: saves" in out and "learner.ranks" not in out.split("does not fit")[1]
    gpus = ["engines.gpus_per_engine=1", "learner.gpus_per_rank=1", "learner.ranks=3"]
    assert main([*base, *gpus, "--gpus", "2", "--memory", "1.2"]) == 1
    out = capsys.readouterr().out
    assert "does not fit: GPUs: needs 4, has 2" in out and "does not fit: learner rank on its GPU" in out
    assert "does not fit: engine on its GPU: needs" in out and "engines.gpu_memory_utilization=0.9" in out


def test_a_remedy_that_is_said_to_fit_does(medium: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["plan", "configs/asr_demo.yaml", f"model.path={medium}", "engines.max_model_len=512"]
    assert main([*base, "--memory", "7.6"]) == 1
    lines = capsys.readouterr().out.splitlines()
    remedies = [line.split(":")[0].strip() for line in lines if line.endswith("then it fits")]
    assert remedies
    for remedy in remedies:
        assert main([*base, "--memory", "7.6", remedy]) == 0


def test_estimates_scale_as_the_state_does() -> None:
    shape = ModelShape(10**9, 0, 0, 10, 1000, 3000, 1000, 500, 50_000, 10**8)
    config = config_of(Path("m"), "learner.loss.kl_coef=0.1")

    def held(ranks: int) -> Sequence[Amount]:
        config.learner.ranks = ranks
        return estimate(config, shape, {}).components[0].amounts

    one, four = held(1), held(4)
    for before, after in zip(one[:4], four[:4], strict=True):
        assert before.what == after.what and before.size == 4 * after.size
    assert sum(amount.size for amount in one[:4]) == 20 * shape.language_model, "with a reference policy"


def test_of_adapters_alone_there_are_gradients_and_moments(medium: Path) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    shape = read_shape(medium)
    for targets in (None, ["q_proj", "mlp.down_proj"]):
        policy = Policy.load(load_family(medium), ["language_model"], torch.float32)
        inject(policy, LoraConfig(rank=4, targets=targets), ["language_model"], seed=0)
        count = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        assert shape.adapters(4, targets) == count > 0
        keys = ["learner.loss.kl_coef=0.1", "learner.lora.rank=4"]
        keys += [] if targets is None else [f"learner.lora.targets=[{','.join(targets)}]"]
        found = estimate(config_of(medium, *keys), shape, {})
        whole = 4 * (shape.language_model + count)
        assert learner(found, "weights", "gradients", "Adam", "checkpoint") == [whole, 4 * count, 8 * count, 12 * count]
        assert not any("reference" in amount.what for c in found.components for amount in c.amounts)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"num_hidden_layers": None}, "not the sizes of a language model"),
        ({"architectures": ["Qwen9"]}, "transformers has no class 'Qwen9'"),
    ],
)
def test_models_that_cannot_be_measured(tmp_path: Path, spoil: dict[str, Any], message: str) -> None:
    config = json.loads((ROOT / "assets" / "tts_demo" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | spoil))
    with pytest.raises(UserError, match=message):
        read_shape(tmp_path)
