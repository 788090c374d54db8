"""What hears on a CUDA device against the CPU: encoders before the language model, judges, and SFT of every part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from learner.batches.batch import Sample, TrainGroup
from learner.batches.plan import plan_updates
from learner.config import LearnerConfig
from learner.rank import LearnerRank
from learner.spec import RankSpec
from rewards.config import JudgeConfig
from rewards.listening.judge import build_judge
from rollout.config import EncoderConfig
from rollout.encoders.encoder import UtteranceEncoder
from speech.audio import load_audio
from speech.families import ModelFamily, load_family
from tests.gpu import NEEDS_GPU
from tests.learner.ranks import keep_gradients
from tests.rewards.listening.judge_checkpoints import write_whisper
from tests.rewards.listening.sound_fixtures import ASR_DEMO, RATE, recordings
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint

pytestmark = NEEDS_GPU

UTTERANCES = recordings(8)


def hearing_family(folder: Path) -> ModelFamily:
    family = load_family(folder)
    assert isinstance(family, ModelFamily)
    return family


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["demo", "qwen3_asr"])
def test_embeddings_agree_with_the_cpu(name: str, dtype: str, tmp_path: Path) -> None:
    family = hearing_family(ASR_DEMO if name == "demo" else write_checkpoint(tmp_path / "model"))
    found = {}
    for device, precision in (("cpu", "float32"), ("cuda", dtype)):
        encoder = UtteranceEncoder(family, EncoderConfig(dtype=precision), load_audio, device)
        encoded = encoder.encode(encoder.load(UTTERANCES), UTTERANCES)
        assert all(item.embeddings is not None and item.embeddings.device.type == "cpu" for item in encoded)
        found[device] = [item.embeddings.float() for item in encoded if item.embeddings is not None]
    for cpu, cuda in zip(found["cpu"], found["cuda"], strict=True):
        # Convolutions take TF32 on a GPU.
        assert float(F.cosine_similarity(cpu.flatten(), cuda.flatten(), dim=0)) > (
            0.9999 if dtype == "float32" else 0.99
        )


def test_the_demo_judge_hears_the_same() -> None:
    waves, texts = [load_audio(u, RATE) for u in UTTERANCES], [u.text for u in UTTERANCES]
    heard = [
        build_judge(JudgeConfig("demo", str(ASR_DEMO), device=device)).transcribe(waves, RATE, "en", texts)
        for device in ("cpu", "cuda")
    ]
    same = [cpu.text == cuda.text for cpu, cuda in zip(*heard, strict=True)]
    assert sum(same) >= len(same) - 1, "at most one close call goes the other way"
    for cpu, cuda in zip(*heard, strict=True):
        assert cuda.mean_nll == pytest.approx(cpu.mean_nll, rel=0.02)


def test_a_transformers_judge_works_in_half_precision(tmp_path: Path) -> None:
    path = str(write_whisper(tmp_path / "whisper"))
    waves, texts = [load_audio(u, RATE) for u in UTTERANCES[:3]], [u.text for u in UTTERANCES[:3]]
    cpu, cuda = (
        build_judge(JudgeConfig("transformers", path, device=device)).transcribe(waves, RATE, "en", texts)
        for device in ("cpu", "cuda")
    )
    for a, b in zip(cpu, cuda, strict=True):
        assert (a.mean_nll is None) == (b.mean_nll is None)
        assert a.mean_nll is None or b.mean_nll == pytest.approx(a.mean_nll, rel=0.05)


def test_sft_of_all_parts_points_where_the_cpus_does(tmp_path: Path) -> None:
    """Encoder, adaptor and language model learn together, with the auxiliary CTC loss."""
    family = hearing_family(ASR_DEMO)
    encoder = UtteranceEncoder(family, EncoderConfig(), load_audio)
    encoded = encoder.encode(encoder.load(UTTERANCES), UTTERANCES, "features")
    stop = family.stop_token_ids[0]
    groups = []
    for index, item in enumerate(encoded):
        tokens = (*item.ctc_ids, stop)
        groups.append(TrainGroup(item.layout, (Sample(tokens, (0.0,) * len(tokens), 1.0),), index))
    found = {}
    for gpus in (0.0, 1.0):
        config = LearnerConfig(
            threads=1, train=["language_model", "adaptor", "encoder"], ctc_weight=0.3, gpus_per_rank=gpus
        )
        spec = RankSpec(
            str(ASR_DEMO), None, "sft", config, 1.0, 0, tuple(family.stop_token_ids), 10, replay_weight=0.0, seed=1
        )
        rank = LearnerRank(spec, 0, 1, f"file://{tmp_path / f'meet-{gpus}'}")
        gradients = keep_gradients(rank.policy, rank.optimiser)
        try:
            metrics = rank.update(1, plan_updates(groups, [], 1, 1)[0], dict(enumerate(encoded))).metrics
        finally:
            rank.close()
        found[gpus] = ({name: gradient.float().cpu() for name, gradient in gradients.items()}, metrics)
    (cpu, on_cpu), (cuda, on_cuda) = found[0.0], found[1.0]
    assert cpu.keys() == cuda.keys()
    for part in ("encoder", "adaptor", "language_model", "ctc"):
        names = sorted(name for name in cpu if name.startswith(part))
        assert names, part
        a, b = (torch.cat([grads[name].flatten() for name in names]) for grads in (cpu, cuda))
        assert float(F.cosine_similarity(a, b, dim=0)) > 0.95, part
    for name in ("learner/nll", "learner/ctc"):
        assert on_cuda[name] == pytest.approx(on_cpu[name], rel=0.05), name
