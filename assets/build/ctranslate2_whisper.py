"""Whisper's encoder out of a CTranslate2 file (`model.bin`), in transformers' form.

The layout of the file is that of `ModelSpec._serialize` in CTranslate2 4.8 (MIT): a header, the variables one after
another with name, shape, type and bytes, and a list of aliases. All integers are little-endian.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from speech.errors import UserError

BINARY_VERSION = 6
TYPES = {0: np.dtype("<f4"), 1: np.dtype("i1"), 2: np.dtype("<i2"), 3: np.dtype("<i4"), 4: np.dtype("<f2")}
"""By CTranslate2's number; bfloat16 (5) has no type in NumPy and no file here."""

_ATTENTION = {"linear_1": "self_attn.out_proj", "layer_norm": "self_attn_layer_norm"}
_FEED_FORWARD = {"linear_0": "fc1", "linear_1": "fc2", "layer_norm": "final_layer_norm"}
_LAST = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """All variables of a `model.bin`, views into one copy of the file; scalars have the shape ().

    Raises:
        UserError: not such a file, or one of another version, or with a type that is not known.
    """
    data = path.read_bytes()
    place = 0

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from("<" + form, data, place)
        place += struct.calcsize("<" + form)
        return int(value)

    def text() -> str:
        nonlocal place
        length = number("H")
        place += length
        return data[place - length : place - 1].decode()

    try:
        version, _name, _revision = number("I"), text(), number("I")
        if version != BINARY_VERSION:
            raise UserError(f"{path}: CTranslate2's binary version is {version}, only {BINARY_VERSION} is known")
        variables = {}
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            kind, size = number("B"), number("I")
            if kind not in TYPES:
                raise UserError(f"{path}: {name} has CTranslate2's type {kind}, known are {sorted(TYPES)}")
            variables[name] = np.frombuffer(data, TYPES[kind], size // TYPES[kind].itemsize, place).reshape(shape)
            place += size
    except (struct.error, ValueError) as error:
        raise UserError(f"{path}: not a whole model.bin of CTranslate2 ({error})") from error
    return variables


def encoder_state(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Weights of transformers' `WhisperEncoder`, float32.

    Queries, keys and values are one matrix in CTranslate2. Whisper's keys have no bias; CTranslate2 holds zeros there.
    """
    state = {}
    for name, values in variables.items():
        first, *rest = name.split("/")
        if first != "encoder" or rest[0] == "num_heads":
            continue
        tensor = torch.from_numpy(values.astype(np.float32))
        last = _LAST.get(rest[-1], "")
        if rest[0] == "position_encodings":
            state["embed_positions.weight"] = tensor
        elif rest[0] in ("conv1", "conv2", "layer_norm"):
            state[f"{rest[0]}.{last}"] = tensor
        else:
            layer, block, part = rest[0].replace("layer_", "layers."), rest[1], rest[2]
            if block == "self_attention" and part == "linear_0":
                for own, values_of in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                    if (own, last) != ("k_proj", "bias"):
                        state[f"{layer}.self_attn.{own}.{last}"] = values_of.clone()
            else:
                names = _ATTENTION if block == "self_attention" else _FEED_FORWARD
                state[f"{layer}.{names[part]}.{last}"] = tensor
    return state


def write_encoder(source: Path, folder: Path) -> Path:
    """Write a Whisper folder for `compose`: the encoder of `source`, float32, and no decoder layer.

    Raises:
        UserError: `source` is not an English Whisper of CTranslate2 in the form that is known.
    """
    variables = read_variables(source)
    state = encoder_state(variables)
    width, mels = state["conv1.weight"].shape[:2]
    layers = sum(name.endswith(".fc1.weight") for name in state)
    config = WhisperConfig(
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        encoder_ffn_dim=len(state["layers.0.fc1.weight"]),
        max_source_positions=len(state["embed_positions.weight"]),
        # Nothing of a decoder is kept; one token, because an embedding must have one.
        decoder_layers=0,
        vocab_size=1,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    model = WhisperModel(config)
    try:
        model.encoder.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{source}: not Whisper's encoder: {error}") from error
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)
    return folder
