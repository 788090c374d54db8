"""English sentences out of WordNet 3.0: the examples that stand in quotation marks in its glosses.

WordNet is free for any use with its notice (Princeton University, "WordNet 3.0 license"). Debian's package
`wordnet-base` holds the files; it need not be installed.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from speech.errors import UserError

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
HOW = "apt-get download wordnet-base && dpkg -x wordnet-base_*.deb build/wordnet"
WORDS = (4, 14)

_QUOTED = re.compile(r'"([^"]+)"\s*(?=(.?))')
_PLAIN = re.compile(r"[A-Za-z][A-Za-z' ,-]*[a-z]")
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b|\b[A-Z] [A-Z]\b")


def examples(gloss: str) -> list[str]:
    """The usable examples of a gloss, each with a capital at its beginning and a full stop at its end.

    Left out: citations (a dash and a name follow them; they are other people's texts), what holds digits, signs or
    abbreviations that voices read in different ways, and what is shorter or longer than WORDS.
    """
    found = []
    for quoted, follows in _QUOTED.findall(gloss):
        text = quoted.strip().rstrip(".!?;, ")
        words = len(text.split())
        plain = _PLAIN.fullmatch(text) and not _CAPITALS.search(text) and "--" not in text and "  " not in text
        if plain and follows != "-" and WORDS[0] <= words <= WORDS[1]:
            found.append(text[0].upper() + text[1:] + ".")
    return found


def sentences(folder: Path, seed: int) -> list[str]:
    """All examples under `folder` (somewhere in it lie FILES), each once, shuffled.

    Raises:
        UserError: the files are not there.
    """
    found: dict[str, None] = {}
    for name in FILES:
        paths = sorted(folder.rglob(name))
        if not paths:
            raise UserError(f"{folder}: no {name} of WordNet in it; get it by: {HOW}")
        for line in paths[0].read_text(encoding="latin-1").splitlines():
            for text in examples(line.partition(" | ")[2]):
                found.setdefault(text)
    texts = list(found)
    random.Random(f"{seed} wordnet").shuffle(texts)
    return texts
