"""Reader for cuts of Lhotse (https://github.com/lhotse-speech/lhotse), as its `CutSet.to_file` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech.audio import SEGMENT_SLACK
from speech.errors import Problem
from speech.manifests.entries import Entry
from speech.manifests.foreign.rows import plain_language
from speech.manifests.jsonl import entries

CUTS = ("MonoCut", "MultiCut")
_NAMES = {"audio": "recording", "text": "supervisions", "language": "supervisions", "speaker": "supervisions",
          "start": "supervisions", "duration": "supervisions", "channel": "supervisions"}  # fmt: skip
_REFUSED = {
    "MixedCut": "is a mix of cuts, whose sound is in no file; save it as audio first (`cuts.save_audios`)",
    "PaddingCut": "is padding, and holds no speech",
}
_SOURCES = {
    "command": "is a command; commands in data files are not executed: run it yourself, and list the files it makes",
    "url": "is an address on the network; recordings must be files",
    "memory": "is inside the manifest; save it as audio first (`cuts.save_audios`)",
    "shar": "is in Lhotse Shar, whose recordings only Lhotse finds; save them as audio first (`cuts.save_audios`)",
}
_SAME_SOUND = ("Resample",)
"""Changes of a recording that leave its sound and times as they are."""


class _BadCutError(Exception):
    """What is wrong with a cut, and under which of its keys."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key, self.message = key, message


def read_lhotse(path: Path) -> Iterator[Entry | Problem]:
    """One utterance for each supervision of a cut: its text, and its part of the recording.

    The id is the cut's where it has one supervision, otherwise the supervision's. Relative paths are relative to the
    manifest. The JSON is read as it stands: to load Lhotse itself is to load torch, and its reader stops at the first
    bad line.
    """
    file, folder = str(path), path.parent

    def understand(number: int, cut: dict[str, Any]) -> Iterator[Entry | Problem]:
        try:
            recording, supervisions = _parts(cut)
        except _BadCutError as error:
            yield Problem(file=file, line=number, key=error.key, message=error.message)
            return
        for said in supervisions:
            name = (cut if len(supervisions) == 1 else said).get("id")
            try:
                yield Entry(file, number, folder, {"id": name, **_utterance(cut, recording, said)}, _NAMES)
            except _BadCutError as error:
                yield Problem(file=file, line=number, key=error.key, message=error.message)

    return entries(path, understand)


def _parts(cut: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The recording of a cut and its supervisions."""
    kind = cut.get("type", CUTS[0])
    if kind not in CUTS:
        raise _BadCutError("type", _REFUSED.get(str(kind), f"is {kind!r}; cuts are {' and '.join(CUTS)}"))
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        features = "holds features alone: " if "features" in cut else ""
        raise _BadCutError("recording", f"missing; {features}a recording is needed")
    if transforms := recording.get("transforms"):
        transforms = transforms if isinstance(transforms, list) else [transforms]
        changes = [part.get("name") if isinstance(part, dict) else part for part in transforms]
        if changes := [str(change) for change in changes if change not in _SAME_SOUND]:
            message = f"is changed when it is read ({', '.join(changes)}), by Lhotse alone; save it as audio first"
            raise _BadCutError("recording", f"{message} (`cuts.save_audios`)")
    supervisions = cut.get("supervisions")
    if not isinstance(supervisions, list) or not all(isinstance(said, dict) for said in supervisions):
        raise _BadCutError("supervisions", "must be a list of objects")
    if not supervisions:
        raise _BadCutError("supervisions", "is empty: nothing says what is spoken")
    return recording, supervisions


def _utterance(cut: dict[str, Any], recording: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    begin, length = _seconds(cut, "start"), _seconds(cut, "duration")
    start, duration = _seconds(said, "start", "supervisions"), _seconds(said, "duration", "supervisions")
    if start < -SEGMENT_SLACK or start + duration > length + SEGMENT_SLACK:
        message = (
            f"{said.get('id')!r} is at {start:g} s … {start + duration:g} s of a cut of {length:g} s: of what its text "
            "says a part is cut off"
        )
        raise _BadCutError("supervisions", message)
    first = max(0.0, start)
    values: dict[str, Any] = {
        "text": said.get("text"),
        "language": plain_language(said.get("language")),
        "speaker": said.get("speaker"),
        "start": round(begin + first, 8),
        "duration": round(min(start + duration, length) - first, 8),
    }
    values["audio"], values["channel"] = _place(recording, said.get("channel", cut.get("channel")))
    return values


def _place(recording: dict[str, Any], channel: Any) -> tuple[str, int | None]:
    """The file of a recording that holds a channel, and which of the file's channels it is; None for its only one."""
    sources = recording.get("sources")
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        raise _BadCutError("recording", "must have a list of sources")
    wanted = channel if isinstance(channel, list) else [channel]
    for source in sources:
        channels = source.get("channels")
        if not isinstance(channels, list):
            raise _BadCutError("recording", "must say which channels a source has")
        if not all(one in channels for one in wanted):
            continue
        kind, place = source.get("type"), source.get("source")
        if kind != "file" or not isinstance(place, str):
            raise _BadCutError("recording", f"its source {_SOURCES.get(str(kind), f'is of the kind {kind!r}')}")
        if len(wanted) == 1:
            return place, channels.index(wanted[0]) if len(channels) > 1 else None
        if len(wanted) == len(channels):
            return place, None
    raise _BadCutError("supervisions", f"names the channel {channel}, which no single source has; give one channel")


def _seconds(values: dict[str, Any], key: str, shown: str | None = None) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e12 < value < 1e12:
        raise _BadCutError(shown or key, f"{key!r} must be a number of seconds, is {value!r}")
    return float(value)
