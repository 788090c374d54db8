"""Reader for chat data: conversations of which one message holds a recording and the last its transcript."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech.errors import Problem
from speech.manifests.entries import Entry
from speech.manifests.foreign.rows import Ids
from speech.manifests.jsonl import entries

_FUN_ASR = re.compile(r"<\|startofspeech\|>!(.*?)<\|endofspeech\|>", re.DOTALL)


def read_chat(path: Path) -> Iterator[Entry | Problem]:
    """Chat jsonl: `messages` with one `<audio>` in a user message, `audios` with its path; the last message is the
    assistant's transcript. Optional `id`.

    Fun-ASR writes the path into the user message instead: `<|startofspeech|>!a.wav<|endofspeech|>`, and an optional
    `key`.
    """
    names = {"audio": "audios", "text": "messages"}
    ids = Ids()

    def understand(number: int, values: dict[str, Any]) -> Iterator[Entry | Problem]:
        entry = Entry(str(path), number, path.parent, {}, names)
        try:
            audio = _only_audio(values)
            reply = _reply(values)
        except _MalformedChatError as error:
            yield entry.problem(error.key, error.message)
            return
        name = values.get("id", values.get("key"))
        fields = {"id": ids.of(audio, number) if name is None else name, "audio": audio, "text": reply}
        yield Entry(str(path), number, path.parent, fields, names)

    return entries(path, understand)


class _MalformedChatError(Exception):
    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key, self.message = key, message


def _only_audio(values: dict[str, Any]) -> str:
    """The path of the conversation's single audio file."""
    audios = values.get("audios")
    audios = [audios] if isinstance(audios, str) else audios
    if audios is None:
        audios = [part.get("audio") or part.get("audio_url") for part in _parts(values) if part.get("type") == "audio"]
        audios += [path for role, text in _texts(values) if role == "user" for path in _FUN_ASR.findall(text)]
        if not audios:
            message = "missing; expected `audios`, a part of type audio, or <|startofspeech|>!path<|endofspeech|>"
            raise _MalformedChatError("audio", message)
    if not isinstance(audios, list) or len(audios) != 1 or not isinstance(audios[0], str):
        raise _MalformedChatError("audio", "must be a list with the path of exactly one audio file")
    written = sum(text.count("<audio>") for role, text in _texts(values) if role == "user")
    if "audios" in values and written != 1:
        raise _MalformedChatError("text", f"the user messages hold {written} <audio> placeholders, expected 1")
    return audios[0]


def _reply(values: dict[str, Any]) -> str:
    texts = _texts(values)
    if not texts or texts[-1][0] != "assistant":
        raise _MalformedChatError("text", "the last message must be the assistant's (the transcript)")
    return texts[-1][1]


def _texts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of each message."""
    found = []
    for message in _messages(values):
        content = message["content"]
        if isinstance(content, list):
            content = "".join(part.get("text") or "" for part in content)
        found.append((message["role"], content))
    return found


def _parts(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Typed parts (`{"type": "audio", …}`) of the messages whose content is a list."""
    contents = [message["content"] for message in _messages(values)]
    return [part for content in contents if isinstance(content, list) for part in content]


def _messages(values: dict[str, Any]) -> list[dict[str, Any]]:
    messages = values.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _MalformedChatError("text", "must be a non-empty list of messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _MalformedChatError("text", "each message must be an object with 'role' and 'content'")
        content = message.get("content")
        of_parts = isinstance(content, list) and all(
            isinstance(part, dict) and isinstance(part.get("text") or "", str) for part in content
        )
        if not isinstance(content, str) and not of_parts:
            raise _MalformedChatError("text", "the 'content' of a message must be a string or a list of typed parts")
    return messages
