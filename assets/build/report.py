"""Counts of a finished corpus, and the README that goes with it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

ENGINES = ("espeakng-loader", "hibari-tts", "soundfile", "soxr")

README = """\
# Embedded speech

Synthetic speech for the demo, made by `python -m assets.build.speech --seed {seed}`. No person was recorded.
{utterances:,} utterances, {hours:.1f} hours, {megabytes:.1f} MB: 16 kHz mono Ogg Opus at about 11 kbit/s, and one
`jsonl` manifest a split with `id, audio, text, language, speaker, duration` (seconds) and sometimes `keywords`.
`audio` is relative to the manifest's folder.

{table}

- **Texts** come from a template grammar (`assets/build/grammar.py`). Those of `sft` are general, and 15 % of its
  English ones are random words; the others are what people say to an assistant at home: devices, doors, music, alarms,
  numbers (`assets/build/texts.py`). No text occurs twice in the corpus, so `test` and `valid` have sentences of their
  own. About 8 % of each split is Mandarin, in simplified characters without spaces. About a third has `keywords`:
  names, places, devices in the text.
- **Voices** are accents and variants of espeak-ng, and pseudo-speakers made from the neural voice of hibari-tts by
  stretching its spectrum and scaling its pitch (`assets/build/voices.py`). `train` adds voices to those of `sft`;
  `valid` and `test` have voices that occur nowhere else.
- **Conditions**: white, pink or babble noise at 15 to 30 dB in `sft`; at 3 to 18 dB in the others, where half
  of the utterances are also in a synthetic room.

Built with {versions}. The same versions on the same kind of processor
give the same files; the neural engine's arithmetic may differ in the last bit elsewhere.

## Licences and notices

The texts, manifests and audio are part of this project, under its licence (Apache-2.0).

- **espeak-ng** is a GPL-3.0-or-later program, used while building only, through the `espeakng-loader` package. Neither
  the program nor its data is here; the GPL does not extend to the audio it puts out.
- **hibari-tts**, Copyright 2026 Maureese Williams, Apache-2.0. Its voice was distilled from **Kokoro-82M** (voice
  af_heart) by hexgrad, Apache-2.0. Neither the program nor its model is here.
- Encoded with **libopus** (BSD-3-Clause) by libsndfile (LGPL-2.1-or-later) through `soundfile`.
"""


def statistics(folder: Path, manifests: dict[str, list[dict[str, Any]]], seed: int) -> dict[str, Any]:
    """Totals and a record a split; durations in seconds, `words` counts English, `characters` Mandarin."""
    splits = {}
    for name, lines in manifests.items():
        english = [line["text"] for line in lines if line["language"] == "en"]
        mandarin = [line["text"] for line in lines if line["language"] == "zh"]
        speakers = [line["speaker"] for line in lines]
        splits[name] = {
            "utterances": len(lines),
            "english": len(english),
            "mandarin": len(mandarin),
            "with_keywords": sum("keywords" in line for line in lines),
            "seconds": round(sum(line["duration"] for line in lines), 3),
            "words": sum(len(text.split()) for text in english),
            "characters": sum(map(len, mandarin)),
            "bytes": sum((folder / line["audio"]).stat().st_size for line in lines),
            "voices": {speaker: speakers.count(speaker) for speaker in sorted(set(speakers))},
        }
    return {
        "seed": seed,
        "versions": {package: version(package) for package in ENGINES},
        "utterances": sum(split["utterances"] for split in splits.values()),
        "seconds": round(sum(split["seconds"] for split in splits.values()), 3),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "splits": splits,
    }


def table(statistics: dict[str, Any]) -> str:
    """The splits as a Markdown table."""
    rows = [
        "| split | utterances | Mandarin | with keywords | seconds | mean | English words | voices | audio bytes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, split in statistics["splits"].items():
        rows.append(
            f"| {name} | {split['utterances']} | {split['mandarin']} | {split['with_keywords']} "
            f"| {split['seconds']:.0f} | {split['seconds'] / split['utterances']:.2f} "
            f"| {split['words']} | {len(split['voices'])} | {split['bytes']:,} |"
        )
    return "\n".join(rows)


def write(folder: Path, statistics: dict[str, Any]) -> None:
    """`stats.json` and `README.md` in the corpus's folder."""
    (folder / "stats.json").write_text(json.dumps(statistics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = README.format(
        seed=statistics["seed"],
        utterances=statistics["utterances"],
        hours=statistics["seconds"] / 3600,
        megabytes=statistics["bytes"] / 1e6,
        table=table(statistics),
        versions=", ".join(f"{package} {number}" for package, number in statistics["versions"].items()),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
