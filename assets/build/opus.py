"""Small, reproducible Ogg Opus files.

libsndfile encodes; it also writes some 700 bytes of padding into each file's comment header, and a random stream
number. On utterances of two seconds that is a quarter of the file, and no two builds are alike, so the packets are
put into a fresh Ogg stream (RFC 3533, RFC 7845) with an empty comment list and a given stream number.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import soundfile

from assets.build.acoustics import SAMPLE_RATE, Waveform

HEADER = struct.Struct("<4sBBqIIIB")  # magic, version, flags, granule position, stream, page, checksum, segments
CONTINUED, FIRST, LAST = 1, 2, 4
POLYNOMIAL = 0x04C11DB7


def checksum_table() -> list[int]:
    """CRC-32 as Ogg wants it: most significant bit first, no inversion."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ POLYNOMIAL if value & 0x80000000 else value << 1
        table.append(value & 0xFFFFFFFF)
    return table


TABLE = checksum_table()


def checksum(data: bytes) -> int:
    """Of a page whose checksum field is zero."""
    value = 0
    for byte in data:
        value = ((value << 8) & 0xFFFFFFFF) ^ TABLE[(value >> 24) ^ byte]
    return value


def packets(data: bytes) -> tuple[list[bytes], int]:
    """The packets of a file with one stream, and its last granule position (samples at 48 kHz)."""
    result, partial, granule, start = [], b"", 0, 0
    while start < len(data):
        magic, _, _, granule, _, _, _, count = HEADER.unpack_from(data, start)
        if magic != b"OggS":
            raise ValueError(f"no Ogg page at byte {start}")
        lengths = data[start + HEADER.size : start + HEADER.size + count]
        start += HEADER.size + count
        for length in lengths:
            partial += data[start : start + length]
            start += length
            if length < 255:
                result.append(partial)
                partial = b""
    return result, granule


def page(body: list[bytes], flags: int, granule: int, stream: int, number: int) -> bytes:
    """One page that holds whole packets only."""
    lengths = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in body)
    if len(lengths) > 255:
        raise ValueError("a page holds at most 255 segments")
    fields = (b"OggS", 0, flags, granule, stream, number)
    payload = lengths + b"".join(body)
    value = checksum(HEADER.pack(*fields, 0, len(lengths)) + payload)
    return HEADER.pack(*fields, value, len(lengths)) + payload


def samples_of(packet: bytes) -> int:
    """Duration of an Opus packet of one frame, in samples at 48 kHz (RFC 6716, section 3.1)."""
    configuration, frames = packet[0] >> 3, packet[0] & 3
    if frames:
        raise ValueError("packets of several frames are not expected from libsndfile")
    if configuration < 12:
        return (480, 960, 1920, 2880)[configuration % 4]
    if configuration < 16:
        return (480, 960)[configuration % 2]
    return (120, 240, 480, 960)[configuration % 4]


def repack(data: bytes, stream: int) -> bytes:
    """The same audio packets in a stream with minimal headers, pages of up to 200 packets."""
    (identification, comments, *audio), end = packets(data)
    vendor_length = struct.unpack_from("<I", comments, 8)[0]
    tags = comments[: 12 + vendor_length] + struct.pack("<I", 0)  # the encoder's name stays, and no comments
    pages = [page([identification], FIRST, 0, stream, 0), page([tags], 0, 0, stream, 1)]
    granule = 0
    for first in range(0, len(audio), 200):
        body = audio[first : first + 200]
        granule += sum(map(samples_of, body))
        last = first + 200 >= len(audio)
        pages.append(page(body, LAST if last else 0, end if last else granule, stream, len(pages)))
    return b"".join(pages)


def write(path: Path, waveform: Waveform, stream: int, compression_level: float) -> Waveform:
    """Encode 16 kHz mono audio into `path`; returns what a reader gets back.

    libsndfile turns `compression_level` into a bit rate of 256 kbit/s at 0 down to 6 kbit/s at 1.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=compression_level)
    path.write_bytes(repack(buffer.getvalue(), stream))
    decoded, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE or decoded.shape != waveform.shape:
        raise RuntimeError(f"{path}: reads back as {decoded.shape} at {rate} Hz, wrote {waveform.shape}")
    return np.asarray(decoded, np.float32)
