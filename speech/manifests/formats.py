"""Which manifest formats there are, and telling them apart by content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from speech.errors import InputError, Problem, utf8_complaint
from speech.manifests.entries import KEYS, Entry, nearest, split_language_prefix
from speech.manifests.foreign import common_voice, datasets, parquet, webdataset
from speech.manifests.foreign.chat import read_chat
from speech.manifests.foreign.funasr import read_funasr
from speech.manifests.foreign.kaldi import FILES, read_kaldi
from speech.manifests.foreign.lhotse import read_lhotse
from speech.manifests.foreign.nemo import read_nemo
from speech.manifests.foreign.qwen3_asr import read_qwen3_asr
from speech.manifests.foreign.seed_tts import is_seed_tts, read_seed_tts
from speech.manifests.jsonl import read_lines, read_objects, read_own
from speech.manifests.shards import is_pattern, shards


def _itself(path: Path) -> list[Path]:
    return [path]


@dataclass(frozen=True, slots=True)
class Format:
    """A manifest format.

    Attributes:
        read: yields the entries of a manifest and the problems that kept a line from becoming one.
        expects: one phrase for error messages.
        keys: a JSON object with all keys of one of these is a line of this format; empty for what is not JSON.
        of_lines: whether a manifest is one file of lines.
        files: the files that a manifest is made of, some of which may not be there.
    """

    read: Callable[[Path], Iterator[Entry | Problem]]
    expects: str
    keys: tuple[frozenset[str], ...] = ()
    of_lines: bool = True
    files: Callable[[Path], list[Path]] = _itself


def _keys(*alternatives: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(keys.split()) for keys in alternatives)


FORMATS = {
    "chat": Format(read_chat, "chat jsonl: messages, audios", _keys("messages")),
    "funasr": Format(read_funasr, "FunASR jsonl: source, target (key)", _keys("source target")),
    "nemo": Format(read_nemo, "NeMo jsonl: audio_filepath, text (duration, offset, lang)", _keys("audio_filepath")),
    "lhotse": Format(read_lhotse, "Lhotse cuts (jsonl): recording, supervisions",
                     _keys("supervisions recording", "supervisions features", "tracks type")),
    "jsonl": Format(read_own, f"jsonl: id, audio, text ({', '.join(KEYS[3:])})", _keys("audio text")),
    "qwen3_asr": Format(read_qwen3_asr, "Qwen3-ASR's jsonl: audio, text with `language …<asr_text>`, no id"),
    "kaldi": Format(read_kaldi, "a Kaldi directory: wav.scp, text (utt2spk, segments)", of_lines=False,
                    files=lambda path: [path / name for name in FILES]),
    "seed_tts": Format(read_seed_tts, "seed-tts-eval's meta.lst: utt|prompt_text|prompt_wav|text(|wav)"),
    "common_voice": Format(common_voice.read_common_voice, "Common Voice's tsv: path, sentence (client_id, locale)"),
    "parquet": Format(parquet.read_parquet, "parquet, a file or a folder: audio (bytes or path), text", of_lines=False,
                      files=partial(shards, suffix=parquet.SUFFIX)),
    "datasets": Format(datasets.read_datasets, "a folder of Hugging Face's save_to_disk: audio, text", of_lines=False,
                       files=datasets.data_files),
    "webdataset": Format(webdataset.read_webdataset, "WebDataset tars, a file, a folder or shard-{000..003}.tar: "
                         "recordings, json or txt", of_lines=False, files=partial(shards, suffix=webdataset.SUFFIX)),
}  # fmt: skip
"""Registry of formats, by the name used in `format=`; their order is the order of detection."""

_LOOKED_AT = 20

_FOREIGN = {
    "wav": "looks like a WeNet data list: rename wav to audio, txt to text and key to id",
    "sources": "looks like recordings of Lhotse: combine them with their supervisions into cuts (`lhotse cut simple`)",
    "recording_id": "looks like supervisions of Lhotse: combine them with recordings into cuts (`lhotse cut simple`)",
}


def detect_format(path: Path) -> str:
    """Name of the format (a key of `FORMATS`) of a manifest, by its content.

    Raises:
        InputError: there is no such file, or it looks like no known format; the message says what was found.
    """
    if utf8_complaint(str(path.absolute())) is not None:
        # Paths stand in every record of a run.
        message = "the name is not UTF-8; rename the file or its folder"
        raise InputError("no manifest", [Problem(file=repr(str(path)), line=None, key=None, message=message)])
    if is_pattern(path):
        return _format_of_pattern(path)
    if not path.exists():
        raise InputError("no manifest", [Problem(file=str(path), line=None, key=None, message="no such file")])
    if path.is_dir():
        return _format_of_folder(path)
    if path.name in ("wav.scp", "segments", "utt2spk"):
        raise _unknown(path, None, f"is part of a Kaldi directory: give the directory, {path.parent}")
    return _format_of_container(path) or _format_of_lines(path)


def _format_of_pattern(path: Path) -> str:
    """Of the files that a pattern with braces names, all of which must be there."""
    for format, suffix in (("webdataset", webdataset.SUFFIX), ("parquet", parquet.SUFFIX)):
        if path.suffix == suffix:
            missing = [file for file in shards(path, suffix) if not file.is_file()]
            if missing:
                problems = [Problem(str(file), None, None, "no such file") for file in missing]
                raise InputError(f"{path}: files are missing", problems)
            return format
    raise _unknown(path, None, "is a pattern of files that are neither .tar nor .parquet, or no such file")


def _format_of_folder(path: Path) -> str:
    missing = [name for name in FILES[:2] if not (path / name).is_file()]
    if not missing:
        return "kaldi"
    if (path / datasets.STATE).is_file():
        return "datasets"
    if (path / datasets.SPLITS).is_file():
        splits = sorted(part.name for part in path.iterdir() if (part / datasets.STATE).is_file())
        raise _unknown(path, None, f"holds several saved data sets: give one of {', '.join(map(str, splits))}")
    for format, suffix in (("parquet", parquet.SUFFIX), ("webdataset", webdataset.SUFFIX)):
        if shards(path, suffix):
            return format
    wanted = f"{' and '.join(missing)}, without {datasets.STATE} (`save_to_disk`), and without .parquet or .tar files"
    raise _unknown(path, None, f"is a directory without {wanted}")


def _format_of_container(path: Path) -> str | None:
    """Of a file that is not text, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar" or path.suffix == webdataset.SUFFIX:
        return "webdataset"
    if head.startswith(b"\x1f\x8b") and path.name.endswith((".tar.gz", ".tgz")):
        raise _unknown(path, None, "is a compressed tar, in which nothing can be found without reading it all: "
                                   "unpack it, or decompress it to a .tar")  # fmt: skip
    return None


def _format_of_lines(path: Path) -> str:
    first = next((item for item in read_lines(path, strip=False) if not isinstance(item, Problem)), None)
    if first is not None and not first[1].startswith(("{", "[")):
        if "\t" in first[1] and set(common_voice.header_of(first[1])) >= common_voice.REQUIRED:
            return "common_voice"
        if is_seed_tts(first[1].strip()):
            return "seed_tts"
    found: tuple[int, list[str]] | None = None
    problems: list[Problem] = []
    for item in islice(read_objects(path), _LOOKED_AT):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        line, values = item
        for name, known in FORMATS.items():
            if any(keys <= values.keys() for keys in known.keys):
                return "qwen3_asr" if name == "jsonl" and _is_qwen3_asr(values) else name
        if values:
            found = found or (line, sorted(values))
    if found is None:
        if first is not None and first[1].strip().startswith("{") and first[1].strip() != "{":
            raise InputError(f"{path}: no line can be read", problems)
        raise _unknown(path, None, _describe_text(path, first))
    line, keys = found
    for key, hint in _FOREIGN.items():
        if key in keys:
            raise _unknown(path, line, hint)
    # Some key is missing or misspelt: take the likeliest format, whose validation then names the key on every line.
    for name, known in FORMATS.items():
        if not frozenset().union(*known.keys).isdisjoint(keys):
            return name
    if any(nearest(key, KEYS) for key in keys):
        return "jsonl"
    raise _unknown(path, line, f"has the keys {', '.join(keys)}")


def _is_qwen3_asr(values: dict[str, object]) -> bool:
    text = values["text"]
    return "id" not in values and isinstance(text, str) and split_language_prefix(text)[0] != text


def _describe_text(path: Path, first: tuple[int, str] | None) -> str:
    if first is None:
        return "holds no text" if path.stat().st_size else "is empty"
    text = first[1].strip()
    if text.startswith("["):
        return "looks like one JSON array; write one object a line"
    if text in ("{", "[{"):
        return "looks like JSON spread over several lines; write one object a line"
    for separator, name in (("\t", "tab-separated text"), (",", "comma-separated text")):
        if separator in text:
            return f"looks like {name}; write one JSON object a line"
    return "looks like plain text; write one JSON object a line"


def _unknown(path: Path, line: int | None, message: str) -> InputError:
    expected = "; ".join(known.expects for known in FORMATS.values())
    problem = Problem(file=str(path), line=line, key=None, message=message)
    return InputError(f"not a manifest of a known format. Expected one of: {expected}", [problem])
