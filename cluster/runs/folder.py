"""A run's folder: everything a run leaves behind, and the way back to its last checkpoint."""

from __future__ import annotations

import errno
import fcntl
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import yaml

from cluster.config import RunConfig, dump_config
from cluster.config.keys import defaults, to_plain
from cluster.runs import durable
from cluster.runs.checkpoints import CheckpointFolder
from cluster.runs.durable import writing
from cluster.runs.ledger import Ledger
from cluster.trackers.trackers import Trackers
from speech.errors import UserError
from speech.records import Group, Reward, Trajectory

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

WITHIN_ROUNDING = (
    "placement",
    "engines.count",
    "engines.lora_rank",
    "engines.threads",
    "engines.max_model_len",
    "engines.max_num_seqs",
    "engines.max_num_batched_tokens",
    "engines.enforce_eager",
    "engines.gpus_per_engine",
    "encoder.count",
    "encoder.threads",
    "encoder.batch_seconds",
    "encoder.gpus",
    "learner.ranks",
    "learner.threads",
    "learner.gpus_per_rank",
    "learner.micro_batch_tokens",
    "learner.logits_chunk",
    "rewards.sound.batch",
    "rewards.sound.threads",
    "rewards.sound.judge.device",
    "rewards.sound.judge.gpus",
    "rewards.sound.second_judge.device",
    "rewards.sound.second_judge.gpus",
    "rewards.sound.speaker.device",
)
"""Keys that a resumed run may set anew and that change in what order numbers are summed: where things run, how many of
them, and what is computed together."""
MAY_CHANGE = (
    *WITHIN_ROUNDING,
    "steps",
    "runs_dir",
    "ray",
    "data.on_bad",
    "data.max_rejected",
    "evaluation",
    "checkpoint",
    "publish",
    "trackers",
    "watchdog_minutes",
    "engines.min",
    "engines.max",
    "engines.heartbeat_s",
    "engines.max_failures",
    "engines.kv_cache_gb",
    "rewards.sound.judge.engine.kv_cache_gb",
    "rewards.sound.second_judge.engine.kv_cache_gb",
    "engines.gpu_memory_utilization",
    "encoder.min",
    "encoder.max",
    "learner.activation_checkpointing",
    "learner.restarts",
    "rewards.count",
    "rewards.min",
    "rewards.max",
    "rewards.retries",
)
"""Keys and sections that a resumed run may set anew, besides all time-outs: what does not say which weights are sought.
(`runs_dir` only says where this folder is, which may have been moved; `steps` says how far to go; another choice of
`data.on_bad` that leaves other utterances is refused by the position in the data.)"""

_ROLLOUT_FILE = re.compile(r"step-(\d+)\.jsonl")


class RunFolder:
    """`<root>/<name>/`, held by one process at a time.

    Metrics whose names begin with `time/` are measurements of the clock; all others are the same in every run of the
    same configuration on the same machine in synchronous mode.
    """

    def __init__(self, root: str | Path, name: str) -> None:
        self.path = Path(root) / name
        self.checkpoints = CheckpointFolder(self.path / "checkpoints")
        self.ledger = Ledger(self.path / "ledger.jsonl")
        self._metrics = self.path / "metrics.jsonl"
        self._rollouts = self.path / "rollouts"
        self._step = -1
        self.damaged: list[str] = []
        self.changed: list[str] = []
        self._lock: IO[str] | None = None
        self._tensorboard: SummaryWriter | None = None
        self._trackers = Trackers((), name, self.path, {})
        self._summary: Mapping[str, Any] = {}

    def open(self, config: RunConfig) -> int | None:
        """Make the folder or return to it, take hold of it, and write `config.yaml`.

        Returns:
            The step of the newest checkpoint that is as it was written, to resume from; None starts at the beginning.
            Call `rewind` next. What was found damaged is in `damaged`, and set aside; what the configuration sets anew
            is in `changed`.

        Raises:
            UserError: the folder cannot be written, another process trains in it, or it holds results of a run with
                another configuration. Nothing of that run has been changed then.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            self.refuse_other_config(config)
            with writing(self.path):
                for folder in (self._rollouts, self.checkpoints.path, self.path / "tensorboard"):
                    folder.mkdir(exist_ok=True)
            self.checkpoints.clean()
            resume_from, self.damaged = self.checkpoints.verified()
            durable.replace(self.path / "config.yaml", dump_config(config))
            self._trackers = Trackers(config.trackers, config.name, self.path, to_plain(config))
        except BaseException:
            self.close()
            raise
        return resume_from

    def rewind(self, step: int | None) -> None:
        """Drop all that was recorded after `step` (None = everything), because training continues from there."""
        step = -1 if step is None else step
        self._step = step
        self._close_tensorboard()
        durable.rewind(self._metrics, step)
        self.ledger.rewind(step)
        with writing(self._rollouts):
            for file in self._rollouts.iterdir():
                match = _ROLLOUT_FILE.fullmatch(file.name)
                if match and int(match[1]) > step:
                    file.unlink()
            (self.path / "summary.json").unlink(missing_ok=True)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step's line to `metrics.jsonl` and its numbers to TensorBoard and the trackers."""
        durable.append(self._metrics, [{"step": step, **values}])
        writer = self._writer()
        with writing(self.path / "tensorboard"):
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        self._trackers.metrics(step, values)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`, for instance to sum up a run that was resumed."""
        return durable.read(self._metrics)

    def rollouts(
        self, step: int, groups: Sequence[Group], logprob_gaps: Sequence[Sequence[float | None]] | None = None
    ) -> None:
        """Write `rollouts/step-NNNNNN.jsonl`, one line per group.

        Args:
            step: 1 for the first.
            groups: scored groups, trained or not.
            logprob_gaps: per group and trajectory, max |learner − engine| log-prob in nats; None where the learner
                did not see the sample.
        """
        gaps = logprob_gaps or [[None] * len(group.trajectories) for group in groups]
        lines = [durable.dumps(_group_line(group, gap)) + "\n" for group, gap in zip(groups, gaps, strict=True)]
        durable.replace(self._rollouts / f"step-{step:06d}.jsonl", "".join(lines))

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text (Markdown) to TensorBoard."""
        writer = self._writer()
        with writing(self.path / "tensorboard"):
            writer.add_text(tag, text, step)

    def audio(self, tag: str, wave: np.ndarray, sample_rate: int, step: int) -> None:
        """Add a sound to TensorBoard and the trackers: (samples,) floats in [-1, 1] at `sample_rate` Hz."""
        writer = self._writer()
        with writing(self.path / "tensorboard"):
            writer.add_audio(tag, wave[np.newaxis, :], step, sample_rate=sample_rate)
        self._trackers.audio(tag, wave, sample_rate, step)

    def table(self, tag: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Give a table to the trackers; TensorBoard has none."""
        self._trackers.table(tag, columns, rows, step)

    def write_text(self, name: str, text: str) -> Path:
        """Write any other file of the run whole, e.g. the hypotheses of an evaluation. Returns its path."""
        durable.replace(self.path / name, text)
        return self.path / name

    def summary(self, values: Mapping[str, Any]) -> Path:
        """Write `summary.json`. Returns its path."""
        self._summary = values
        return self.write_text("summary.json", json.dumps(json.loads(durable.dumps(values)), indent=2) + "\n")

    def close(self) -> None:
        """Flush TensorBoard and the trackers, and let go of the folder."""
        try:
            self._close_tensorboard()
        finally:
            self._trackers.close(self._summary)
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _close_tensorboard(self) -> None:
        if self._tensorboard is not None:
            writer, self._tensorboard = self._tensorboard, None
            with writing(self.path / "tensorboard"):
                writer.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except UserError as second:
            if error is None:
                raise
            error.add_note(f"{second}")  # the run ended for another reason, which must not be hidden

    def _acquire(self) -> None:
        """Two drivers in one folder would destroy each other's results; the lock goes when its process goes."""
        lock = self.path / ".lock"
        with writing(lock):
            self._lock = lock.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise UserError(f"{self.path}: another process is training in this folder") from None
        except OSError as error:
            # Some network file systems have no locks; training there is still better than none.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise

    def refuse_other_config(self, config: RunConfig) -> None:
        """Compare with the configuration of a run that has results here; changes nothing on disk.

        Raises:
            UserError: it is another one.
        """
        file = self.path / "config.yaml"
        has_results = bool(self.checkpoints.steps()) or bool(durable.read(self._metrics))
        if not file.exists() or not has_results:
            return
        try:
            old = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"{file}: not valid YAML: {error}") from error
        changed = changed_keys(with_defaults(old, defaults(RunConfig)), to_plain(config))
        refused = {key: values for key, values in changed.items() if not _may_change(key)}
        self.changed = [
            f"{key}: {was!r} → {now!r}" + (", which may change results by rounding" * _is_of(key, WITHIN_ROUNDING))
            for key, (was, now) in changed.items()
        ]
        if refused:
            lines = "\n".join(f"  {key}: {was!r} → {now!r}" for key, (was, now) in refused.items())
            raise UserError(
                f"{self.path} holds a run with another configuration:\n{lines}\n"
                "choose another name (name=…), remove that folder, or set these back to resume it; "
                "docs/run-folder.md lists what may change"
            )

    def _writer(self) -> SummaryWriter:
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            # Hides the events of steps that a resumed run does again.
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=self._step + 1)
        return self._tensorboard


def changed_keys(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted keys (lists by index) whose values differ, with both values."""
    before, after = _flat(old, ""), _flat(new, "")
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def with_defaults(values: Any, default: Any) -> Any:
    """A run that an earlier release began does not know later keys, and did what their defaults do."""
    if not isinstance(values, dict) or not isinstance(default, dict):
        return values
    return default | {key: with_defaults(value, default.get(key)) for key, value in values.items()}


def _may_change(key: str) -> bool:
    return key.endswith("timeout_s") or _is_of(key, MAY_CHANGE)


def _is_of(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these, or in a section that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict | list):
        return {path: value}
    dot = f"{path}." if path else ""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for name, item in items for key, leaf in _flat(item, f"{dot}{name}").items()}


def _group_line(group: Group, gaps: Sequence[float | None]) -> dict[str, Any]:
    utterance = group.prompt.utterance
    rewards: Sequence[Reward | None] = group.rewards or [None] * len(group.trajectories)
    return {
        "prompt": group.prompt.id,
        "audio": utterance.audio,
        "start": utterance.start,
        "seconds": group.seconds,
        "language": utterance.language,
        "reference": utterance.text,
        "samples": [_sample(*entry) for entry in zip(group.trajectories, rewards, gaps, strict=True)],
    }


def _sample(trajectory: Trajectory, reward: Reward | None, gap: float | None) -> dict[str, Any]:
    return {
        "text": trajectory.text,
        "language": trajectory.language,
        "tokens": len(trajectory.token_ids),
        "finish_reason": trajectory.finish_reason,
        "versions": [trajectory.version_first, trajectory.version_last],
        "seed": trajectory.seed,
        "reward": None if reward is None else reward.total,
        "parts": {} if reward is None else dict(reward.parts),
        "details": {} if reward is None else dict(reward.details),
        "invalid": None if reward is None else reward.invalid,
        "logprob_gap": gap,
    }
