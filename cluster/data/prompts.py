"""Which utterance is trained when, and the account of what became of it. Pure, but for the ledger's file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from cluster.config import DataConfig, RunConfig
from cluster.data.unreadable import with_unreadable
from speech.errors import UserError
from speech.manifests import Manifest, load_manifest
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
    )


def load_manifests(config: RunConfig) -> dict[str, Manifest]:
    """The manifests that a run reads, by split.

    Raises:
        InputError: naming every bad line, unless `data.on_bad` is `skip`.
    """
    manifests = {
        split: load_split(config.data, path)
        for split, path in (
            ("train", config.data.train),
            ("valid", config.data.valid if config.evaluation.every else None),
            ("test", config.data.test),
            ("replay", config.data.replay),
        )
        if path is not None
    }
    return manifests | {"train": with_unreadable(config.data, manifests["train"])}


def derived_seed(*parts: int | str) -> int:
    """A 31-bit seed from whatever identifies the draw; the same on every machine and Python version."""
    return int.from_bytes(_digest(*parts)[:4], "big") >> 1


class PromptSource:
    """Deals out every utterance exactly once per epoch, in an order that depends only on (seed, epoch).

    The epochs are one endless stream that is cut into batches of equal size, so a batch may hold the end of one epoch
    and the beginning of the next; nothing is dropped and no batch is short. With fewer utterances than prompts per
    batch, an utterance can be in a batch twice, as prompts of different epochs.
    """

    def __init__(self, utterances: Sequence[Utterance], seed: int, batch_prompts: int, shuffle: bool = True) -> None:
        """Start at the first prompt of epoch 0.

        Raises:
            ValueError: there are no utterances, an id occurs twice, or the batch is empty.
        """
        if not utterances or batch_prompts < 1:
            raise ValueError("need at least one utterance and one prompt per batch")
        if len({u.id for u in utterances}) != len(utterances):
            raise ValueError("utterance ids are not unique")
        self._utterances = tuple(utterances)
        self._seed = seed
        self._batch_prompts = batch_prompts
        self._shuffle = shuffle
        self._epoch = 0
        self._position = 0
        self._order = self._epoch_order(0)
        self._fingerprint = _digest(*(u.id for u in self._utterances)).hex()

    def __len__(self) -> int:
        """Prompts per epoch."""
        return len(self._utterances)

    @property
    def complete_epochs(self) -> int:
        """Epochs whose prompts have all been dealt out."""
        return self._epoch

    def next_batch(self) -> list[Prompt]:
        """The next `batch_prompts` prompts."""
        return self.take(self._batch_prompts)

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts, for instance to stand in for groups without variance."""
        prompts = []
        for _ in range(count):
            prompts.append(self._prompt(self._position, self._epoch, self._order))
            self._position += 1
            if self._position == len(self._order):
                self._epoch += 1
                self._position = 0
                self._order = self._epoch_order(self._epoch)
        return prompts

    def at(self, places: Iterable[tuple[int, int]]) -> list[Prompt]:
        """The prompts at given (epoch, position), which were dealt out before; the position stays where it is."""
        wanted = list(places)
        orders = {epoch: self._epoch_order(epoch) for epoch in {epoch for epoch, _ in wanted}}
        return [self._prompt(position, epoch, orders[epoch]) for epoch, position in wanted]

    def state(self) -> dict[str, Any]:
        """The position, as plain JSON values, for a checkpoint."""
        return {"epoch": self._epoch, "position": self._position, "seed": self._seed, "data": self._fingerprint}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state()` was taken.

        Raises:
            UserError: the state is of other utterances or of another seed, so that there is no such place.
        """
        if state["seed"] != self._seed:
            raise UserError(f"the checkpoint was made with seed {state['seed']}, this run has seed {self._seed}")
        if state["data"] != self._fingerprint:
            raise UserError(
                "the training utterances have changed since the checkpoint (another manifest, order, or other lines "
                "left out); resume with the old data, or start a run with another name"
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._epoch_order(self._epoch)

    def _prompt(self, position: int, epoch: int, order: Sequence[int]) -> Prompt:
        utterance = self._utterances[order[position]]
        return Prompt(
            id=f"{epoch}/{utterance.id}",
            utterance=utterance,
            epoch=epoch,
            position=position,
            seed=derived_seed("prompt", self._seed, epoch, utterance.id),
        )

    def _epoch_order(self, epoch: int) -> list[int]:
        indices = range(len(self._utterances))
        if not self._shuffle:
            return list(indices)
        # Sorting by a hash is a shuffle that does not depend on any library's random generator.
        return sorted(indices, key=lambda i: _digest("order", self._seed, epoch, self._utterances[i].id))


def _digest(*parts: int | str) -> bytes:
    """A hash of a sequence; the lengths keep ("a", "bc") and ("ab", "c") apart."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = str(part).encode("utf-8")
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.digest()
