"""Small data sets of other tools, each made of the same three recordings by the tool itself where it has a writer."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile

from speech.records import Utterance

RATE = 16_000


def write_recordings(folder: Path, suffix: str = "wav") -> list[Utterance]:
    """Three recordings of different pitch and length, the second in stereo, and what is said in them."""
    folder.mkdir(parents=True, exist_ok=True)
    said = [("turn on the light", "en"), ("几点了", "zh"), ("más luz, señor", "es")]
    utterances = []
    for number, (text, language) in enumerate(said, start=1):
        time = np.arange(round((0.5 + 0.2 * number) * RATE)) / RATE
        wave = 0.5 * np.sin(2 * np.pi * 150 * number * time)
        file = folder / f"r{number}.{suffix}"
        soundfile.write(file, np.stack([wave, 0.5 * wave], axis=1) if number == 2 else wave, RATE)
        utterances.append(Utterance(id=file.name, audio=str(file), text=text, language=language, speaker=f"s{number}",
                                    duration=len(time) / RATE))  # fmt: skip
    return utterances


def _lines(path: Path, rows: list[dict[str, object]]) -> Path:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _cuts(folder: Path, utterances: list[Utterance], name: str) -> Path:
    from lhotse import CutSet, MonoCut, MultiCut, Recording, SupervisionSegment

    cuts = []
    for u in utterances:
        recording = Recording.from_file(u.audio, recording_id=f"rec-{u.id}")
        channels = list(range(recording.num_channels))
        fields = {"recording_id": recording.id, "text": u.text, "language": u.language, "speaker": u.speaker}
        channel = channels if len(channels) > 1 else 0
        said = SupervisionSegment(id=f"sup-{u.id}", start=0.0, duration=recording.duration, channel=channel, **fields)
        kind = MultiCut if len(channels) > 1 else MonoCut
        cuts.append(kind(id=u.id, start=0.0, duration=recording.duration, channel=channel, recording=recording,
                         supervisions=[said]))  # fmt: skip
    path = folder / name
    CutSet.from_cuts(cuts).to_file(path)
    return path


def lhotse(folder: Path, utterances: list[Utterance]) -> Path:
    return _cuts(folder, utterances, "cuts.jsonl")


def lhotse_gz(folder: Path, utterances: list[Utterance]) -> Path:
    return _cuts(folder, utterances, "cuts.jsonl.gz")


def data_set(utterances: list[Utterance], with_bytes: bool = True):
    """A `datasets.Dataset` with the columns audio, sentence, locale, speaker_id and id."""
    from datasets import Audio, Dataset, Features, Value

    rows = {
        "audio": [{"bytes": Path(u.audio).read_bytes() if with_bytes else None, "path": u.audio} for u in utterances],
        "sentence": [u.text for u in utterances],
        "locale": [u.language for u in utterances],
        "speaker_id": [u.speaker for u in utterances],
        "id": [u.id for u in utterances],
    }
    features = Features(
        {"audio": {"bytes": Value("binary"), "path": Value("string")}}
        | {name: Value("string") for name in rows if name != "audio"}
    )
    return Dataset.from_dict(rows, features=features).cast_column("audio", Audio(decode=False))


def saved_bytes(folder: Path, utterances: list[Utterance]) -> Path:
    data_set(utterances).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


def saved_paths(folder: Path, utterances: list[Utterance]) -> Path:
    data_set(utterances, with_bytes=False).save_to_disk(folder / "saved")
    return folder / "saved"


def parquet_file(folder: Path, utterances: list[Utterance]) -> Path:
    data_set(utterances).to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def parquet_folder(folder: Path, utterances: list[Utterance]) -> Path:
    """Files of several row groups, with plain bytes in some and a path in the others."""
    (folder / "parts").mkdir()
    for number, part in enumerate((utterances[:2], utterances[2:])):
        sound = [f"../{u.id}" if number else Path(u.audio).read_bytes() for u in part]
        table = pyarrow.table(
            {
                "audio": pyarrow.array(sound, pyarrow.large_binary() if number == 0 else pyarrow.string()),
                "transcription": [u.text for u in part],
                "language": [u.language for u in part],
                "speaker": [u.speaker for u in part],
                "id": [u.id for u in part],
            }
        )
        pyarrow.parquet.write_table(table, folder / "parts" / f"train-{number:05}-of-00002.parquet", row_group_size=1)
    return folder / "parts"


def parquet_pattern(folder: Path, utterances: list[Utterance]) -> Path:
    return parquet_folder(folder, utterances) / "train-{00000..00001}-of-00002.parquet"


def nemo(folder: Path, utterances: list[Utterance]) -> Path:
    rows = [{"audio_filepath": Path(u.audio).name, "duration": u.duration, "text": u.text, "lang": u.language,
             "speaker": u.speaker} for u in utterances]  # fmt: skip
    return _lines(folder / "manifest.json", rows)


def nemo_gz(folder: Path, utterances: list[Utterance]) -> Path:
    path = nemo(folder, utterances)
    return _lines(path.with_name("manifest.json.gz"), [json.loads(line) for line in path.read_text().splitlines()])


def common_voice(folder: Path, utterances: list[Utterance]) -> Path:
    (folder / "clips").mkdir()
    columns = ["client_id", "path", "sentence", "up_votes", "locale", "segment"]
    with (folder / "train.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for u in utterances:
            Path(u.audio).rename(folder / "clips" / u.id)
            writer.writerow([u.speaker, u.id, u.text, 2, u.language, ""])
    for u in utterances:
        (folder / u.id).symlink_to(folder / "clips" / u.id)
    return folder / "train.tsv"


def fun_asr(folder: Path, utterances: list[Utterance]) -> Path:
    languages = {"en": "English", "zh": "Chinese", "es": "Spanish"}
    rows = [
        {
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": f"语音转写：<|startofspeech|>!{u.audio}<|endofspeech|>"},
                {"role": "assistant", "content": f"language {languages[u.language or '']}<asr_text>{u.text}"},
            ],
            "speech_length": 100,
            "key": u.id,
        }
        for u in utterances
    ]
    return _lines(folder / "train.jsonl", rows)


def qwen3_asr(folder: Path, utterances: list[Utterance]) -> Path:
    languages = {"en": "English", "zh": "Chinese", "es": "Spanish"}
    rows = [{"audio": u.id, "text": f"language {languages[u.language or '']}<asr_text>{u.text}"} for u in utterances]
    return _lines(folder / "train.jsonl", rows)


def own_gz(folder: Path, utterances: list[Utterance]) -> Path:
    keys = ("id", "text", "language", "speaker")
    rows = [{key: getattr(u, key) for key in keys} | {"audio": u.id} for u in utterances]
    return _lines(folder / "train.jsonl.gz", rows)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member of a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _tar(path: Path, utterances: list[Utterance], with_json: bool) -> None:
    with tarfile.open(path, "w") as tar:
        for u in utterances:
            key = Path(u.audio).stem
            add(tar, f"part/{key}.{u.audio.rpartition('.')[2]}", Path(u.audio).read_bytes())
            said = {"id": u.id, "language": u.language, "speaker": u.speaker} | ({"text": u.text} if with_json else {})
            add(tar, f"part/{key}.json", json.dumps(said).encode())
            if not with_json:
                add(tar, f"part/{key}.txt", f"{u.text}\n".encode())


def tar_file(folder: Path, utterances: list[Utterance]) -> Path:
    _tar(folder / "shard.tar", utterances, with_json=True)
    return folder / "shard.tar"


def tar_folder(folder: Path, utterances: list[Utterance]) -> Path:
    (folder / "shards").mkdir()
    for number, part in enumerate((utterances[:2], utterances[2:])):
        _tar(folder / "shards" / f"shard-{number:03}.tar", part, with_json=False)
    return folder / "shards"


def tar_pattern(folder: Path, utterances: list[Utterance]) -> Path:
    return tar_folder(folder, utterances) / "shard-{000..001}.tar"


MAKERS: dict[str, tuple[str, Callable[[Path, list[Utterance]], Path]]] = {
    "lhotse": ("lhotse", lhotse),
    "lhotse, gzip": ("lhotse", lhotse_gz),
    "save_to_disk, bytes": ("datasets", saved_bytes),
    "save_to_disk, paths": ("datasets", saved_paths),
    "parquet": ("parquet", parquet_file),
    "parquet, folder": ("parquet", parquet_folder),
    "parquet, pattern": ("parquet", parquet_pattern),
    "nemo": ("nemo", nemo),
    "nemo, gzip": ("nemo", nemo_gz),
    "common voice": ("common_voice", common_voice),
    "fun-asr": ("chat", fun_asr),
    "qwen3-asr": ("qwen3_asr", qwen3_asr),
    "ours, gzip": ("jsonl", own_gz),
    "tar": ("webdataset", tar_file),
    "tar, folder": ("webdataset", tar_folder),
    "tar, pattern": ("webdataset", tar_pattern),
}
"""(format, writer) by a name for the test."""
