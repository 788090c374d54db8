"""A speech tokenizer as an ONNX file, written by hand: no package that writes such files is needed.

The numbers are those of the fields in onnx.proto.
"""

from __future__ import annotations

from pathlib import Path

FLOAT, INT32, INT64 = 1, 6, 7


def write_s3_tokenizer(file: Path, mels_per_token: int = 4) -> Path:
    """In the form of CosyVoice's: features (1, 128, T) and their length → tokens (1, T / 4), here the loudest band."""
    pool = _node("MaxPool", ["feats"], "pooled", kernel_shape=[mels_per_token], strides=[mels_per_token])
    loudest = _node("ArgMax", ["pooled"], "tokens", axis=1, keepdims=0)
    graph = b"".join(
        [
            *(_field(1, node) for node in (pool, loudest)),
            _field(2, b"s3"),
            _field(11, _value("feats", FLOAT, [1, 128, "T"])),
            _field(11, _value("feats_length", INT32, [1])),
            _field(12, _value("tokens", INT64, [1, "N"])),
        ]
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_number(1, 8) + _field(7, graph) + _field(8, _number(2, 13)))
    return file


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _node(kind: str, inputs: list[str], output: str, **attributes: int | list[int]) -> bytes:
    parts = [_field(1, name.encode()) for name in inputs]
    parts += [_field(2, output.encode()), _field(4, kind.encode())]
    for name, value in attributes.items():
        held = _number(3, value) + _number(20, 2) if isinstance(value, int) else b""
        if isinstance(value, list):
            held = b"".join(_number(8, item) for item in value) + _number(20, 7)
        parts.append(_field(5, _field(1, name.encode()) + held))
    return b"".join(parts)


def _value(name: str, kind: int, shape: list[int | str]) -> bytes:
    dims = [_number(1, d) if isinstance(d, int) else _field(2, d.encode()) for d in shape]
    tensor = _number(1, kind) + _field(2, b"".join(_field(1, dim) for dim in dims))
    return _field(1, name.encode()) + _field(2, _field(1, tensor))
