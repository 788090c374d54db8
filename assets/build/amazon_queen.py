"""Recorded human speech: `python -m assets.build.amazon_queen FILE --out build/amazon_queen`.

FILE is `queen.1c` of Debian's package `flight-of-the-amazon-queen`, a game whose dialogues actors speak word for word:

    apt-get download flight-of-the-amazon-queen && dpkg -x flight-of-the-amazon-queen_*.deb build/queen
    python -m assets.build.amazon_queen build/queen/usr/share/scummvm/flight-of-the-amazon-queen/queen.1c

Its licence allows to use and to hand on the game for free, with its notices. The manifests and the audio made here stay
in `build/`; neither they nor a model's weights that ship hold any of it.

**Format.** `queen.1c` begins with `QTBL`; the table stands at byte 13: a count (u16), then 21 bytes a file: name (12),
bundle (u8), offset (u32), size (u32), all big-endian. A `NAME.DOG` is a dialogue: 20 bytes, then the header below, then
strings. A clip is `KKLLLLWS.SB`: the dialogue's talk key (2 decimal digits), the line's id (4 hex digits), who (J: Joe,
the player; P: the other person) and the segment; blanks are zeros. It is an MP3 of 11 kHz. A line is cut into segments
by the game's commands, `*` and two characters.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.progress import track

from assets.build.speech import write_manifest
from speech.errors import UserError

OUT = Path("build/amazon_queen")
TABLE, ENTRY = 13, struct.Struct(">12sBII")
BANK, LEVEL = 20, 96
"""Bytes before a dialogue's header, and of each level of its tree, behind which Joe's lines begin."""
JOE = "JOE"
NOT_ENGLISH = ("APE", "DOG")
"""Dialogues in which cries of animals are spelt."""
HELD_OUT = {"test": ("SPARKY", "FAYE", "CHIEF", "HENRY", "NAOMI"), "valid": ("LOU", "KLUNK", "PRIN")}
"""Women and men among both. Joe speaks in every dialogue, so he is of `train`. Whether an actor plays two of the other
people is not known."""
MIN_WORDS, MAX_SECONDS = 3, 15.0
"""Shorter lines are mostly cries; the model's window is 15 s long."""
WHERE = "it is in Debian's package flight-of-the-amazon-queen: see python -m assets.build.amazon_queen --help"

_COMMAND = re.compile(r"\*..")


@dataclass(frozen=True)
class Dialogue:
    """What two people say to each other.

    Attributes:
        person: the other's name: that of the file without the number at its end.
        key: of its clips.
        lines: by who (`J`, `P`) and id, with the game's commands in them.
    """

    person: str
    key: int
    lines: dict[tuple[str, int], str]


def read_table(data: bytes) -> dict[str, bytes]:
    """The files inside `queen.1c` by name.

    Raises:
        UserError: not such a file, or not a whole one.
    """
    if data[:4] != b"QTBL":
        raise UserError(f"not a file of the game (it begins with {data[:4]!r}, not b'QTBL'); {WHERE}")
    try:
        (count,) = struct.unpack_from(">H", data, TABLE)
        entries = [ENTRY.unpack_from(data, TABLE + 2 + i * ENTRY.size) for i in range(count)]
    except struct.error as error:
        raise UserError(f"the table of the game's files is cut off; {WHERE}") from error
    files = {name.split(b"\0")[0].decode("ascii"): (offset, size) for name, _, offset, size in entries}
    if any(offset + size > len(data) for offset, size in files.values()):
        raise UserError(f"the game's file is cut off; {WHERE}")
    return {name: data[offset : offset + size] for name, (offset, size) in files.items()}


def read_dialogue(name: str, data: bytes) -> Dialogue:
    """A `.DOG` file. Its header: levels (negative for a talking head), a key of the dialogue, the talk key, how many
    lines Joe and the other have; at bytes 22 of it where the other's lines begin."""
    data = data[BANK:]
    levels, _, key, of_joe, of_person = struct.unpack_from(">5h", data)
    (person_at,) = struct.unpack_from(">H", data, 22)
    lines = {("J", i): text for i, text in _strings(data, 32 + abs(levels) * LEVEL, of_joe)}
    lines |= {("P", i): text for i, text in _strings(data, person_at, of_person)}
    return Dialogue(name.removesuffix(".DOG").rstrip("0123456789"), key, lines)


def _strings(data: bytes, place: int, count: int) -> Iterator[tuple[int, str]]:
    """`count` + 1 times: id (u32), length (u8), the text, and zeros up to a multiple of 4; the first is a greeting."""
    for _ in range(count + 1):
        identity, length = struct.unpack_from(">IB", data, place)
        yield identity, data[place + 5 : place + 5 + length].decode("latin-1")
        place += -(-(5 + length) // 4) * 4


def segments(line: str) -> list[str]:
    """The parts of a line, in the order in which clips number them from 1; those between two commands are empty."""
    parts = [" ".join(part.split()) for part in _COMMAND.split(line)]
    return parts if parts[-1] else parts[:-1]


def clip_name(key: int, line: int, who: str, segment: int) -> str:
    """The file of a segment."""
    return f"{key:02d}{line:04X}{who}{segment}.SB"


def spoken(files: dict[str, bytes]) -> Iterator[tuple[str, str, str]]:
    """(clip, who speaks, text) of each segment that was recorded, each clip once."""
    seen: set[str] = set()
    for name in sorted(files):
        if not name.endswith(".DOG"):
            continue
        dialogue = read_dialogue(name, files[name])
        if dialogue.person in NOT_ENGLISH:
            continue
        for (who, identity), line in dialogue.lines.items():
            for number, text in enumerate(segments(line), 1):
                clip = clip_name(dialogue.key, identity, who, number)
                if text and clip in files and clip not in seen:
                    seen.add(clip)
                    yield clip, JOE if who == "J" else dialogue.person, text


def split_of(speaker: str) -> str:
    """The split of all that a person says."""
    return next((split for split, speakers in HELD_OUT.items() if speaker in speakers), "train")


def build(source: Path, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Write `out/audio` (FLAC, at the clips' own rate) and a manifest for each split; returns their lines.

    A text of `valid` or `test` that is also said in `train` is left out of the former.

    Raises:
        UserError: there is no such file, or it is of another kind.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file; {WHERE}")
    try:
        files = read_table(source.read_bytes())
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    said = [item for item in spoken(files) if len(item[2].split()) >= MIN_WORDS]
    learned = {text for _, speaker, text in said if split_of(speaker) == "train"}
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "audio").mkdir(parents=True)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], **{split: [] for split in HELD_OUT}}
    for clip, speaker, text in track(said, "clips"):
        split = split_of(speaker)
        if split != "train" and text in learned:
            continue
        wave, rate = soundfile.read(io.BytesIO(files[clip]), dtype="float32")
        if len(wave) > MAX_SECONDS * rate or not np.any(wave):
            continue
        path = f"audio/{clip.removesuffix('.SB')}.flac"
        soundfile.write(partial / path, wave, rate)
        line = {"id": Path(path).stem, "audio": path, "text": text, "language": "en", "speaker": speaker}
        splits[split].append(line | {"duration": round(len(wave) / rate, 3)})
    for split, lines in splits.items():
        write_manifest(partial / f"{split}.jsonl", lines)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return splits


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m assets.build.amazon_queen", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="FILE", help="queen.1c")
    parser.add_argument("--out", type=Path, default=OUT, help="(default: %(default)s)")
    arguments = parser.parse_args()
    try:
        splits = build(arguments.source, arguments.out)
    except UserError as error:
        raise SystemExit(str(error)) from error
    for split, lines in splits.items():
        hours, speakers = sum(line["duration"] for line in lines) / 3600, len({line["speaker"] for line in lines})
        print(f"{split}: {len(lines):,} utterances, {hours:.2f} h, {speakers} people")


if __name__ == "__main__":
    main()
