"""Utterances in columns are the same as utterances in a list."""

from __future__ import annotations

import io
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.manifests import store
from speech.manifests.store import DamagedStoreError, StoreWriter, Utterances, joined, read_store, stored
from speech.records import Utterance

TEXTS = st.text(max_size=12)
PATHS = st.sampled_from(
    ["/data/a.wav", "/data/x/b.wav", "/other/c.wav", "/d.wav", "./e.wav", "f.wav", "/database/g.wav"]
)
UTTERANCES = st.builds(
    Utterance,
    id=st.text(min_size=1, max_size=8),
    audio=PATHS | st.just(""),
    text=TEXTS,
    language=st.sampled_from([None, "en", "yue"]),
    speaker=st.none() | TEXTS,
    start=st.floats(0, 1e4),
    duration=st.none() | st.floats(0, 1e4),
    keywords=st.lists(TEXTS, max_size=2).map(tuple),
    prompt_audio=st.none() | PATHS,
    prompt_text=TEXTS,
    attributes=st.dictionaries(TEXTS, TEXTS, max_size=2),
)


def written(utterances: list[Utterance], folder: str) -> Utterances:
    writer = StoreWriter(folder)
    for line, utterance in enumerate(utterances, start=1):
        writer.add(utterance, line)
    return writer.finish()


@given(
    utterances=st.lists(UTTERANCES, min_size=1, max_size=9),
    folder=st.sampled_from(["", "/", "/data"]),
    cut=st.integers(0, 9),
    block=st.integers(1, 4),
)
def test_what_is_stored_is_read_back(utterances: list[Utterance], folder: str, cut: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "BLOCK", block)
        whole = written(utterances, folder)
        parts = joined([written(utterances[:cut], folder), written(utterances[cut:], folder)], folder)
    again, header = read_store(io.BytesIO(parts.to_bytes({"ä": 1})), folder)
    assert whole == utterances and parts == utterances and again == utterances and header == {"ä": 1}
    assert [name.decode("utf-8") for name in again.ids()] == [u.id for u in utterances]
    assert whole.fingerprint() == parts.fingerprint() == again.fingerprint()
    assert list(reversed(again)) == utterances[::-1] and again[-1] == utterances[-1]
    assert again[1:] == tuple(utterances[1:])
    some = again.select(again.rows[cut:])
    groups = [(one.language, index) for one, indices in some.by_language() for index in indices.tolist()]
    assert sorted(groups, key=lambda pair: pair[1]) == [(u.language, i) for i, u in enumerate(utterances[cut:])]
    backwards = again.select(again.rows[::-1])
    assert backwards == utterances[::-1]
    assert read_store(io.BytesIO(backwards.to_bytes({})), folder)[0] == utterances[::-1]
    ids = [u.id for u in utterances]
    assert sorted(whole.repeated()) == [(i, ids.index(name)) for i, name in enumerate(ids) if ids.index(name) < i]


def test_the_fingerprint_is_of_everything_but_the_folders() -> None:
    one = Utterance(id="1", audio="/data/a.wav", text="x", start=1.0, duration=2.0, prompt_audio="/data/v.wav")
    changes = [
        {"id": "2"},
        {"audio": "/data/b.wav"},
        {"text": "y"},
        {"language": "en"},
        {"speaker": "s"},
        {"start": 0.0},
    ]
    changes += [{"duration": 1.0}, {"keywords": ("x",)}, {"prompt_audio": None}, {"prompt_text": "y"}]
    changes += [{"attributes": {"gender": "f"}}, {"channel": 0}, {"instruction": "softly"}]
    assert {name for change in changes for name in change} == {field.name for field in fields(Utterance)}
    prints = [stored([replace(one, **change)]).fingerprint() for change in [{}, *changes]]
    assert len(set(prints)) == 1 + len(changes)
    moved = replace(one, audio="/moved/a.wav", prompt_audio="/moved/v.wav")
    assert stored([moved]).fingerprint() == written([one], "/data").fingerprint() == prints[0]
    assert stored([one, moved]).fingerprint() != stored([moved]).fingerprint()


def test_a_list_of_any_paths_can_be_stored() -> None:
    utterances = [Utterance(id=path, audio=path, text="") for path in ("./e.wav", "f.wav", "x/g.wav", "../h.wav")]
    assert stored(utterances) == utterances and stored(stored(utterances)) == utterances


def test_measured_durations_do_not_change_the_record() -> None:
    utterances = written([Utterance(id="1", audio="/a.wav", text="x")], "/data")
    measured = Utterances(replace(utterances.columns, seconds=np.array([1.5])), "/data")
    assert measured[0].duration == 1.5 and list(measured.as_written()) == list(utterances)
    assert measured.fingerprint() == utterances.fingerprint()


def test_damage_is_found() -> None:
    good = written([Utterance(id="1", audio="/a.wav", text="x")], "").to_bytes({})
    for bad in (b"", good[:-1], good + b"x", good[:40] + bytes([good[40] ^ 1]) + good[41:]):
        with pytest.raises(DamagedStoreError):
            read_store(io.BytesIO(bad), "")


def test_fingerprints_stay_those_that_earlier_runs_have_kept() -> None:
    """A resume compares them: other bytes of the same record would pass for changed data."""
    utterances = [
        Utterance(
            id="a-1", audio="/data/x/a.flac", text='tür: "zwölf" 二', language="de", speaker="s", duration=1.25,
            keywords=("zwölf",),
        ),
        Utterance(
            id="b/ü", audio="", text="say it", prompt_audio="/v/p.wav", prompt_text="hi", instruction="softly",
            attributes={"gender": "f"},
        ),
    ]  # fmt: skip
    assert stored(utterances).fingerprint() == "c6e79bc81abb99036411780cf3cf7588"
