"""Which batches may be sampled and what may still be trained: the hard bound of staleness. Pure, without I/O."""

from __future__ import annotations


class Admission:
    """Admits batches in order, whole, and no further ahead of the learner than `staleness`.

    A *batch* is the prompts of one training step. Batch w, counted from 0, is trained by the learner at version w,
    so a batch that starts at version v ≥ w − S holds no sample older than S versions when it is trained. Batches are
    trained strictly in their order and whole: one whose samples are all short does not overtake, so that what is
    trained has the lengths of what was submitted.
    """

    def __init__(self, staleness: int, batches: int, first: int = 0) -> None:
        """
        Args:
            staleness: S, the largest difference between a batch's number and the version at which it starts.
            batches: how many there are in the whole run; none starts beyond the last.
            first: the batch that is trained next, where a run is resumed.

        Raises:
            ValueError: a negative bound or batch.
        """
        if staleness < 0 or first < 0:
            raise ValueError(f"staleness {staleness} and the first batch {first} must be at least 0")
        self.staleness = staleness
        self._batches = batches
        self._to_train = self._to_start = first

    @property
    def in_flight(self) -> range:
        """Batches that were started and not yet trained, oldest first."""
        return range(self._to_train, self._to_start)

    def admit(self, version: int) -> range:
        """Batches that may start now that the engines have `version`; they count as started."""
        end = max(self._to_start, min(version + self.staleness + 1, self._batches))
        admitted, self._to_start = range(self._to_start, end), end
        return admitted

    def train(self, batch: int, version: int) -> None:
        """Let the learner at `version` have a batch.

        Raises:
            RuntimeError: it is not the oldest in flight, or it belongs to another version. Both are mistakes of the
                caller, which would break the order or the bound.
        """
        if batch != self._to_train or batch not in self.in_flight:
            raise RuntimeError(f"batch {batch} cannot be trained: in flight are {list(self.in_flight)}, oldest first")
        if batch != version:
            raise RuntimeError(f"batch {batch} belongs to version {batch}, and the learner is at {version}")
        self._to_train += 1

    def too_old(self, version_first: int, version: int) -> bool:
        """Whether a sample whose first token was drawn at `version_first` may not be trained at `version`."""
        return version_first < version - self.staleness
