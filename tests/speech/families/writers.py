"""A writer of a tiny random checkpoint for every model family, by the name of the family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.demo_checkpoint import write_demo_checkpoint
from tests.speech.families.hearing_checkpoints import CASES
from tests.speech.families.qwen3_asr_checkpoint import write_checkpoint
from tests.speech.families.test_composed import write_composed
from tests.speech.families.tts_checkpoints import WRITERS

ENGINE: dict[str, Callable[..., Path]] = {name: case.write for name, case in CASES.items()} | {
    "composed": write_composed,
    "qwen3_asr": partial(write_checkpoint, text={"max_position_embeddings": 1024}),
}
HEARING = ENGINE | {"demo": partial(write_demo_checkpoint, scale=1.5)}
SPEAKING = WRITERS
