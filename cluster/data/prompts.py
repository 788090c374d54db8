"""Which utterance is trained when, and the account of what became of it. Pure, but for the ledger's file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from cluster.config import DataConfig, RunConfig
from cluster.data.unreadable import with_unreadable
from speech.errors import InputError, UserError
from speech.manifests import Manifest, load_manifest
from speech.manifests.store import stored
from speech.records import Prompt, Utterance


def load_split(config: DataConfig, path: str) -> Manifest:
    """A manifest, read as the run's `data` section says.

    Raises:
        InputError: naming every bad line, unless `data.on_bad` is `skip`.
    """
    return load_manifest(
        path,
        format=config.format,
        on_bad=config.on_bad,
        limits=config.limits,
        check_audio="lazy",
    )


def load_manifests(config: RunConfig) -> dict[str, Manifest]:
    """The manifests that a run reads, by split.

    Raises:
        InputError: naming every bad line of all of them, unless `data.on_bad` is `skip`.
    """
    manifests: dict[str, Manifest] = {}
    errors: list[InputError] = []
    for split, path in (
        ("train", config.data.train),
        ("valid", config.data.valid if config.evaluation.every else None),
        ("test", config.data.test),
        ("replay", config.data.replay),
    ):
        if path is None:
            continue
        try:
            manifests[split] = load_split(config.data, path)
        except InputError as error:
            errors.append(error)
    if len(errors) > 1:
        raise InputError(f"{len(errors)} manifests:", [problem for error in errors for problem in error.problems])
    if errors:
        raise errors[0]
    return manifests | {"train": with_unreadable(config.data, manifests["train"])}


def derived_seed(*parts: int | str) -> int:
    """A 31-bit seed from whatever identifies the draw; the same on every machine and Python version."""
    return int.from_bytes(_digest(*parts)[:4], "big") >> 1


class PromptSource:
    """Deals out every utterance exactly once per epoch, in an order that depends only on (seed, epoch).

    The epochs are one endless stream, so a batch may hold the end of one epoch and the beginning of the next; nothing
    is dropped and no batch is short. With fewer utterances than prompts in a batch, an utterance can be in it twice, as
    prompts of different epochs.

    The order of the next epoch is found by a thread beside the present one: for a million utterances it takes a second.
    """

    def __init__(self, utterances: Sequence[Utterance], seed: int, shuffle: bool = True) -> None:
        """Start at the first prompt of epoch 0.

        Raises:
            ValueError: there are no utterances, or an id occurs twice.
        """
        if not utterances:
            raise ValueError("need at least one utterance")
        self._utterances = stored(utterances)
        if self._utterances.repeated():
            raise ValueError("utterance ids are not unique")
        self._seed = seed
        self._shuffle = shuffle
        self._sorter = ThreadPoolExecutor(1, thread_name_prefix="order")
        self._orders: dict[int, Future[np.ndarray]] = {}
        self._go_to(0, 0)

    def __len__(self) -> int:
        """Prompts per epoch."""
        return len(self._utterances)

    @property
    def complete_epochs(self) -> int:
        """Epochs whose prompts have all been dealt out."""
        return self._epoch

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts: a batch, or what stands in for groups without variance."""
        prompts = []
        for _ in range(count):
            prompts.append(self._prompt(self._position, self._epoch, self._orders[self._epoch].result()))
            if self._position + 1 < len(self):
                self._position += 1
            else:
                self._go_to(self._epoch + 1, 0)
        return prompts

    def at(self, places: Iterable[tuple[int, int]]) -> list[Prompt]:
        """The prompts at given (epoch, position), which were dealt out before; the position stays where it is."""
        wanted = list(places)
        orders = {
            epoch: self._orders[epoch].result() if epoch in self._orders else self._epoch_order(epoch)
            for epoch in {epoch for epoch, _ in wanted}
        }
        return [self._prompt(position, epoch, orders[epoch]) for epoch, position in wanted]

    def state(self) -> dict[str, Any]:
        """The position, as plain JSON values, for a checkpoint."""
        content = self._utterances.fingerprint()
        return {"epoch": self._epoch, "position": self._position, "seed": self._seed, "content": content}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state()` was taken.

        Raises:
            UserError: the state is of other utterances or of another seed, so that there is no such place.
        """
        if state["seed"] != self._seed:
            raise UserError(f"the checkpoint was made with seed {state['seed']}, this run has seed {self._seed}")
        if "content" in state:
            same = state["content"] == self._utterances.fingerprint()
        else:  # checkpoints of earlier releases know the ids alone
            same = state["data"] == _hash(self._utterances.ids()).hexdigest()
        if not same:
            raise UserError(
                "the training utterances have changed since the checkpoint (another manifest or order, other texts, or "
                "other lines left out); resume with the old data, or start a run with another name"
            )
        self._go_to(state["epoch"], state["position"])

    def _go_to(self, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        wanted = (epoch, epoch + 1)
        for other in self._orders.keys() - set(wanted):
            self._orders.pop(other).cancel()
        for one in wanted:
            if one not in self._orders:
                self._orders[one] = self._sorter.submit(self._epoch_order, one)

    def _prompt(self, position: int, epoch: int, order: np.ndarray) -> Prompt:
        utterance = self._utterances[int(order[position])]
        return Prompt(
            id=f"{epoch}/{utterance.id}",
            utterance=utterance,
            epoch=epoch,
            position=position,
            seed=derived_seed("prompt", self._seed, epoch, utterance.id),
        )

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Indices of the utterances, int64 (utterances,)."""
        if not self._shuffle:
            return np.arange(len(self))
        # Sorting by a hash is a shuffle that does not depend on any library's random generator.
        start = _hash(_parts("order", self._seed, epoch))
        digests = bytearray()
        for name in self._utterances.ids():
            digest = start.copy()
            digest.update(len(name).to_bytes(4, "big") + name)
            digests += digest.digest()
        # Big-endian numbers have the order of the bytes. Equal ones, should there be any, keep the order of the data.
        return np.argsort(np.frombuffer(digests, ">u8"), kind="stable")


def _digest(*parts: int | str) -> bytes:
    return _hash(_parts(*parts)).digest()


def _parts(*parts: int | str) -> Iterable[bytes]:
    return (str(part).encode("utf-8") for part in parts)


def _hash(parts: Iterable[bytes]) -> hashlib.blake2b:
    """A hash of a sequence; the lengths keep ("a", "bc") and ("ab", "c") apart."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest
