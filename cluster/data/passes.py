"""Passes over all records of a manifest: they take minutes where it is long, and what one found is kept.

It is kept beside the manifest's index, and is a cache as the index is: it counts only for the same lines, the same
settings and the same code of ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from speech.manifests import Manifest
from speech.manifests.index import INDEXED_FROM, code_digest, read_beside, write_beside
from speech.manifests.progress import progress_bar
from speech.manifests.store import stored
from speech.records import Utterance

CODE = ("speech/**/*.py", "cluster/data/*.py", "learner/token2text/*.py", "rollout/config.py")
"""What decides how a record is read and judged."""

_REPORT = 2_000


def kept_pass(
    manifest: Manifest, settings: Any, find: Callable[[Iterable[Utterance]], Any], indices: np.ndarray | None = None
) -> Any:
    """What `find` answers about utterances of a manifest, found now or at an earlier start.

    Args:
        settings: JSON values that decide, with the utterances, what is found.
        find: is given the utterances; its answer is of JSON values.
        indices: ascending indices of the utterances that are looked at; None takes all.
    """
    utterances = stored(manifest.utterances)
    chosen = utterances if indices is None else utterances.select(utterances.rows[indices])
    if len(chosen) < INDEXED_FROM:
        return find(chosen)
    name = f"{_digest(json.dumps(settings, default=repr).encode())[:16]}.checks"
    # Lengths may be known from headers, of which the lines say nothing.
    made_of = [chosen.fingerprint(), _digest(chosen.columns.seconds[chosen.rows].tobytes()), code_digest(*CODE)]
    key = json.dumps([settings, made_of], default=repr).encode()
    for data in read_beside(Path(manifest.path), name):
        seal, _, content = data.partition(b"\n")
        if seal.decode("latin-1") == _digest(key + content):
            return json.loads(content)
    with progress_bar(f"checking {Path(manifest.path).name}", len(chosen)) as advance:
        found = find(_reporting(chosen, advance))
    content = json.dumps(found).encode()
    write_beside(Path(manifest.path), name, _digest(key + content).encode() + b"\n" + content)
    return found


def _reporting(utterances: Iterable[Utterance], advance: Callable[[int], None]) -> Iterator[Utterance]:
    for number, utterance in enumerate(utterances, start=1):
        yield utterance
        if number % _REPORT == 0:
            advance(_REPORT)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
