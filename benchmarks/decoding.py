"""Milliseconds of a decoding step of an engine on the CPU, with the language model of the TTS demo.

    python -m benchmarks.decoding                       # 16 prompts × 8 samples of exactly 150 tokens, 1 thread
    python -m benchmarks.decoding --threads 2
    python -m benchmarks.decoding --prompts 8           # 64 sequences in each step
    python -m benchmarks.decoding --compile             # enforce_eager: false

The first round is left out. Variables of the environment go before those that an engine gets (`GOMP_SPINCOUNT=20000`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from pathlib import Path

from rollout.config import EngineConfig, SamplingConfig
from rollout.environment import engine_environment

ROOT = Path(__file__).parents[1]
PROMPT, RESPONSE, GROUP = 61, 150, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the model")
    args = parser.parse_args()
    config = EngineConfig(
        threads=args.threads, max_model_len=448, max_num_seqs=args.prompts * GROUP, enforce_eager=not args.compile
    )
    # Before torch and vLLM are imported, which read it once.
    os.environ.update(engine_environment(config) | dict(os.environ))
    rounds = measure(config, args.prompts, args.rounds)[1:]
    steps = [1000 * seconds / RESPONSE for seconds in rounds]
    print(f"{args.prompts * GROUP} sequences, {args.threads} thread(s), compiled: {args.compile}: ", end="")
    print(f"{statistics.median(steps):.1f} ms a step ({min(steps):.1f}–{max(steps):.1f})")


def measure(config: EngineConfig, prompts: int, rounds: int) -> list[float]:
    """Seconds of each round."""
    import torch

    from rollout.engine.engine import RolloutEngine
    from speech.families import load_family
    from speech.records import EncodedAudio, Prompt, PromptLayout, Utterance

    engine = RolloutEngine(load_family(ROOT / "assets" / "tts_demo"), config)
    sampling = SamplingConfig(group_size=GROUP, max_new_tokens=RESPONSE, min_new_tokens=RESPONSE)
    seconds = []
    with asyncio.Runner() as runner:
        runner.run(engine.start())
        for number in range(rounds):
            asked, encoded = [], []
            for place in range(prompts):
                seed = 1000 * number + 100 * place
                drawn = torch.randint(0, 20, (PROMPT,), generator=torch.Generator().manual_seed(seed))
                asked.append(
                    Prompt(
                        id=f"{number}/{place}",
                        utterance=Utterance(id="u", audio="", text=""),
                        epoch=number,
                        position=place,
                        seed=seed,
                    )
                )
                layout = PromptLayout(tuple(drawn.tolist()), 0, 0)
                encoded.append(EncodedAudio(layout, torch.zeros(0, 1), None, 0.0, 0.0))
            begun = time.perf_counter()
            groups = runner.run(engine.generate(asked, encoded, sampling))
            seconds.append(time.perf_counter() - begun)
            assert all(len(t.token_ids) == RESPONSE for group in groups for t in group.trajectories)
        engine.shutdown()
    return seconds


if __name__ == "__main__":
    main()
