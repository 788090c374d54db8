"""Which files a checkpoint folder must hold. Loads no torch: what is missing is said before that takes its seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from speech.errors import UserError


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Raise a `UserError` that names every file which a checkpoint folder lacks."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"model folder {folder} lacks {', '.join(missing)}")


def refuse_chatterbox(folder: Path) -> None:
    """Raise a `UserError` that says why a folder of Chatterbox, which has no `config.json`, cannot be trained.

    docs/model-families.md says the same at more length.
    """
    found = sorted(file.name for file in folder.glob("t3_*.safetensors"))
    if not found:
        return
    if found[0].startswith(("t3_turbo", "t3_nano")):
        reason = (
            "whose output layer has a bias, for which neither vLLM's GPT-2 nor the learner has a place; its voice "
            "is an embedding that no part here makes"
        )
    else:
        reason = (
            "which the engine cannot sample: a speech token goes in as the sum of its embedding and of one for its "
            "place in the speech, and vLLM embeds a sampled token by its id alone"
        )
    raise UserError(f"{folder / found[0]} is Chatterbox's T3, {reason} (docs/model-families.md#refused)")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or not. Pickled weights are refused: data must not run code.

    Raises:
        UserError: files are missing, or the index of the shards is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: not an index of weights ({error})") from error
        require_files(folder, names)
        return [folder / name for name in names]
    require_files(folder, ["model.safetensors"])
    return [folder / "model.safetensors"]
