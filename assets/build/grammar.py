"""A seeded template grammar that writes the sentences of the corpus.

A template is a line of space-separated items: a plain word, `{slot}` (a filler from `vocabulary`), `a|b` (one
of several words), any of them with a trailing `?` (present in OPTIONAL of the sentences). Mandarin templates
have the same items, joined without spaces.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

from assets.build.vocabulary import ENGLISH, HOMOPHONES, KEYWORD_SLOTS, MANDARIN

MIN_WORDS, MAX_WORDS = 3, 12
OPTIONAL = 0.35
RANDOM_SHARE = 0.15  # sentences of random words, so that a language model alone cannot guess everything
KEYWORD_SHARE = 0.63  # of the utterances that could have keywords; makes about 35 % of all

_GENERAL = """\
please? turn|switch on|off the {device}
turn|switch the {device} on|off in the {room}
turn on the {colour} {device} in the {room}
turn the {device} down|up {bit}?
set the {device} to {amount} please?
please? open|close|lock the {opening}
open|close the {opening} of the {room}
is the {opening} in the {room} open|closed
play some {music} in the {room}
play {music} by {name} please?
play the {ordinal} song again?
stop|pause the {music} now
stop the {device} in {amount} minutes
call {name} at {hour} {minute}
please? call my {person} {when}?
call {name} and {name} {when}
send a message to {name} please?
send {name} the {colour} {thing}
write a letter to my {person}
remind me to {task} at {hour}
remind {name} to {task} on {day}
remind me to buy {food} and {food}
wake me at {hour} {minute} on {day}
set an alarm for {hour} {minute}
set a timer for {amount} minutes
the number is {digit} {digit} {digit} {digit}
my number is {digit} {digit} {digit} {digit} {digit} {digit}
room {digit} {digit} {digit} is {colour}
dial {digit} {digit} {digit} {digit} {digit}
add {amount} {food} to the list
buy {amount} {food} and some {food}
we need {food} {food} and {food}
order some {food} for {name}
book a table for {amount} on {day}
book a ticket to {city} for {name}
{name} will fly to {city} on {day}
{name} lives in {city} with her|his {animal}
the train to {city} leaves at {hour}
how far is the {venue} from {city}
where is the {venue} in {city}
find the {venue} near the {venue}
show me the way to the {venue}
{subject} will|can {place_verb} to the {venue} {when}
meet {name} at the {venue} at {hour}
the meeting with {name} is on {day}
the meeting is on {month} {ordinal}
{name} was born in {month}
it is {weather} in {city} {when}?
will it be {weather} in {city} on {day}
what is the weather in {city}
the {colour} {thing} is in the {room}
there is a {size} {animal} in the {room}
the {animal} has a {colour} {thing}
my {person} has a {size} {colour} {thing}
{name} and {name} like {food}
{subject} will|can {task} with {name} {when}
can you bring the {colour} {thing}
who has the {size} {thing}
read the news of {day} please?
put the {thing} on the {colour} {thing}
the {person} will wait at the {venue}
take the {ordinal} street after the {venue}
{name} did not find the {thing}
give my {thing} to {name} please
no i said {digit} not {digit}
yes {name} can {task} {when}
please? stop the {device}
open the {colour} {thing}
where is {name} {when}?
is {name} in {city}
call my {person} {when}
{name} and the {animal}
{person} {name} can {task}
find my {colour} {thing}
buy {size} {food} {when}
{weather} in {city} {when}
play {name} some {music}
{month} {ordinal} is {day}
go to the {venue}
{place_verb} from {city} to {city}
{subject} like my {animal}
dial {digit} {digit} {digit}
please remind my {person} and {name} to meet at the {venue} on {day}
send {name} a message that the train from {city} leaves at {hour} {minute}
"""

GENERAL_TEMPLATES = tuple(_GENERAL.splitlines())

_HOUSEHOLD = """\
please? turn|switch on|off the {device}
turn|switch the {device} on|off in the {room}
turn on the {colour} {device} in the {room}
turn the {device} down|up {bit}?
set the {device} to {amount} please?
please? open|close|lock the {opening}
open|close the {opening} of the {room}
is the {opening} in the {room} open|closed
play some {music} in the {room}
play {music} by {name} please?
play the {ordinal} song again?
stop|pause the {music} now
stop the {device} in {amount} minutes
call {name} at {hour} {minute}
please? call my {person} {when}?
wake me at {hour} {minute} on {day}
set an alarm for {hour} {minute}
set a timer for {amount} minutes
the number is {digit} {digit} {digit} {digit}
dial {digit} {digit} {digit} {digit} {digit}
dial {digit} {digit} {digit}
please? stop the {device}
"""
HOUSEHOLD_TEMPLATES = tuple(_HOUSEHOLD.splitlines())

MANDARIN_TEMPLATES = """\
请? 打开|关上 {room} 的 {device}
打开|关上 {room} 的 {opening}
请? 把 {device} 打开|关上
{when} 星期 {day}
{when} {hour} 点 叫我
请 给 {person} 打电话
{when} 给 {person} 打电话
{person} 的 电话 是 {digit} {digit} {digit} {digit}
{month} 月 {hour} 号 去 {city}
{person} {when} 去 {city}
{city} {when} 天气 怎么样
我 要 买 {food} 和 {food}
{person} 要 {colour} 色 的 {device|opening}
{colour} 色 的 {opening} 很 大|小
{room} 里 有 {hour} 个 {colour} 色 的 {opening}
请? 停止|播放 {room} 的 音乐
{person} 在 {room} 吗
{digit} {digit} {digit} {digit} {digit}
"""


@dataclass(frozen=True)
class Sentence:
    """A text, its language (`en` or `zh`), and those keywords of it that a decoder might be told about."""

    text: str
    language: str
    keywords: tuple[str, ...] = ()


@cache
def vocabulary() -> tuple[str, ...]:
    """Every English word that a sentence can contain, sorted."""
    words: set[str] = {word for fillers in ENGLISH.values() for filler in fillers for word in filler.split()}
    for item in " ".join(GENERAL_TEMPLATES).split():
        if not item.startswith("{"):
            words.update(item.rstrip("?").split("|"))
    return tuple(sorted(words))


def expand(template: str, slots: dict[str, list[str]], rng: random.Random) -> tuple[list[str], list[str]]:
    """Fill one template; returns its pieces in order and the fillers that could be keywords."""
    pieces: list[str] = []
    candidates: list[str] = []
    for item in template.split():
        if item.endswith("?"):
            if rng.random() >= OPTIONAL:
                continue
            item = item[:-1]
        if item.startswith("{"):
            slot = rng.choice(item[1:-1].split("|"))
            filler = rng.choice([word for word in slots[slot] if slot == "digit" or word not in pieces])
            pieces.append(filler)
            if slot in KEYWORD_SLOTS and filler not in candidates:
                candidates.append(filler)
        else:
            pieces.append(rng.choice(item.split("|")))
    return pieces, candidates


def english(
    rng: random.Random,
    templates: Sequence[str] = GENERAL_TEMPLATES,
    random_share: float = RANDOM_SHARE,
) -> Sentence:
    """One English sentence of MIN_WORDS to MAX_WORDS words."""
    if rng.random() < random_share:
        plain = [word for word in vocabulary() if word not in HOMOPHONES]
        return Sentence(" ".join(rng.sample(plain, rng.randint(MIN_WORDS, 7))), "en")
    pieces, candidates = expand(rng.choice(templates), ENGLISH, rng)
    text = " ".join(pieces)
    if not MIN_WORDS <= len(text.split()) <= MAX_WORDS:
        return english(rng, templates, random_share)
    return Sentence(text, "en", pick_keywords(candidates, rng))


def mandarin(rng: random.Random) -> Sentence:
    """One Mandarin sentence, in simplified characters without spaces."""
    pieces, candidates = expand(rng.choice(MANDARIN_TEMPLATES.splitlines()), MANDARIN, rng)
    return Sentence("".join(pieces), "zh", pick_keywords(candidates, rng))


def pick_keywords(candidates: list[str], rng: random.Random) -> tuple[str, ...]:
    """All candidates for a share of the utterances, none for the others."""
    return tuple(candidates) if candidates and rng.random() < KEYWORD_SHARE else ()


Writer = Callable[[random.Random], Sentence]


def distinct(count: int, write: Writer, rng: random.Random, known: Collection[str] = frozenset()) -> list[Sentence]:
    """`count` sentences, no two with the same text, and none of the `known` texts."""
    result: dict[str, Sentence] = {}
    while len(result) < count:
        sentence = write(rng)
        if sentence.text not in known:
            result.setdefault(sentence.text, sentence)
    return list(result.values())


def deal(
    sizes: list[int],
    mandarin_share: float,
    rng: random.Random,
    write: Writer = english,
    known: Collection[str] = frozenset(),
) -> list[list[Sentence]]:
    """Sentences for splits of the given sizes, none of them `known`; no text occurs twice, in a split or across.

    All are written before any is dealt out: later splits would otherwise get fewer of those short sentences of
    which there are not many.
    """
    mandarin_sizes = [round(size * mandarin_share) for size in sizes]
    pool = distinct(sum(sizes) - sum(mandarin_sizes), write, rng, known)
    mandarin_pool = distinct(sum(mandarin_sizes), mandarin, rng, known)
    rng.shuffle(pool)
    rng.shuffle(mandarin_pool)
    result = []
    for size, mandarin_size in zip(sizes, mandarin_sizes, strict=True):
        part = [pool.pop() for _ in range(size - mandarin_size)]
        part += [mandarin_pool.pop() for _ in range(mandarin_size)]
        rng.shuffle(part)
        result.append(part)
    return result
