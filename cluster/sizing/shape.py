"""How large a model is, read from its checkpoint's headers: no weight is loaded."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech.errors import UserError
from speech.runtime.checkpoint_files import require_files, weight_files

LONGEST_HEADER = 100 * 2**20
"""Bytes; safetensors' own limit."""
# By what families and transformers call these parts, wherever they stand in the whole model.
_ADAPTOR = re.compile(r"(^|[._])(adaptor|adapter|projector|audio_projection)[._]|(^|\.)audio_tower\.proj\d?\.")
_ENCODER = re.compile(r"(^|[._])(audio_tower|(audio_|speech_)?encoder)[._]")
_NEITHER = re.compile(r"(^|[._])(ctc|talker|token2wav|visual)[._]")
"""What neither learner nor engine holds: the CTC head of supervised training, and an omni model's other parts."""
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's sizes.

    Attributes:
        language_model, adaptor, encoder: parameters; an embedding that is tied to the output layer counts once.
        layers, hidden, intermediate: of the language model.
        queries, keys: width of all query heads together, and of all key (or value) heads.
        vocabulary: rows of the output layer.
        root: parameters of the language model outside of its layers.
    """

    language_model: int
    adaptor: int
    encoder: int
    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    root: int

    @property
    def layer(self) -> float:
        """Parameters of one decoder layer."""
        return (self.language_model - self.root) / self.layers

    def adapters(self, rank: int, targets: Iterable[str] | None) -> int:
        """Parameters of the adapters of LoRA in all decoder layers, by the names that Qwen and Llama have for theirs.

        Args:
            targets: last parts of names; None for all.
        """
        widths = {"q_proj": self.queries, "k_proj": self.keys, "v_proj": self.keys, "o_proj": self.queries}
        widths |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), self.intermediate)
        chosen = widths.keys() if targets is None else {target.rpartition(".")[2] for target in targets}
        return rank * self.layers * sum(self.hidden + width for name, width in widths.items() if name in chosen)

    def trained(self, parts: Iterable[str]) -> int:
        """Parameters of some parts: `language_model`, `adaptor`, `encoder`."""
        return sum(int(getattr(self, part)) for part in parts)


def read_shape(folder: Path) -> ModelShape:
    """A checkpoint's sizes: from the headers of its safetensors files, or where it has none yet from the class that
    `architectures` names, built on the meta device.

    Raises:
        UserError: the folder is no checkpoint, or its language model is none of Qwen's and Llama's kind.
    """
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist")
    require_files(folder, ["config.json"])
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        whole = config.get("thinker_config", config)
        text = next((whole[name] for name in _TEXT_CONFIGS if name in whole), whole)
        hidden, layers = int(text["hidden_size"]), int(text["num_hidden_layers"])
        heads = int(text["num_attention_heads"])
        width = int(text.get("head_dim") or hidden // heads)
        keys = int(text.get("num_key_value_heads") or heads) * width
        vocabulary, intermediate = int(text["vocab_size"]), int(text["intermediate_size"])
        tied = bool(whole.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'}: not the sizes of a language model ({error!r})") from error
    has_weights = (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file()
    counts = _from_headers(folder) if has_weights else _from_class(folder, config)
    parts = {"language_model": 0, "adaptor": 0, "encoder": 0}
    root = 0
    for name, count in counts.items():
        if tied and name.endswith("lm_head.weight"):
            continue  # some checkpoints hold it twice
        part = _part(name)
        if part is not None:
            parts[part] += count
            root += count if part == "language_model" and ".layers." not in name else 0
    return ModelShape(
        **parts,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        queries=heads * width,
        keys=keys,
        vocabulary=vocabulary,
        root=root,
    )


def file_bytes(path: str) -> int | None:
    """Bytes of the weights in a model's folder, whatever their form; None where there is no such folder here."""
    folder = Path(path)
    if not path or not folder.is_dir():
        return None
    weights = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
    return sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in weights)


def _part(name: str) -> str | None:
    if _NEITHER.search(name):
        return None
    return "adaptor" if _ADAPTOR.search(name) else "encoder" if _ENCODER.search(name) else "language_model"


def _from_headers(folder: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in weight_files(folder):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > LONGEST_HEADER:
                    raise ValueError(f"a header of {length} bytes")
                header: Mapping[str, Any] = json.loads(file.read(length))
            counts |= {name: math.prod(item["shape"]) for name, item in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise UserError(f"{path}: damaged weights ({error})") from error
    return counts


def _from_class(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    import torch  # seconds, which a checkpoint with weights does without
    import transformers

    names = config.get("architectures") or [""]
    found = getattr(transformers, str(names[0]), None)
    if found is None:
        raise UserError(f"{folder}: has no weights, and transformers has no class {names[0]!r} to count them of")
    with torch.device("meta"):
        model = found(found.config_class.from_pretrained(folder))
    return {name: parameter.numel() for name, parameter in model.named_parameters()}
