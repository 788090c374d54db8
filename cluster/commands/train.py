"""`speechrl train`: reads the data, then trains a policy or a reward model."""

from __future__ import annotations

from cluster.config import RunConfig
from cluster.data.prompts import load_manifests


def train(config: RunConfig) -> int:
    """Run, or resume, a training run; returns the exit code.

    Raises:
        UserError: bad input or configuration; nothing has been trained then.
    """
    manifests = load_manifests(config)
    # Imported now: Ray and torch take seconds, for which what is wrong with a line should not have to wait.
    if config.objective == "token2text":
        from cluster.token2text.run import train_token2text

        status = train_token2text(config, manifests)
    else:
        from cluster.training.policy_run import train_policy

        status = train_policy(config, manifests)
    return 130 if status == "interrupted" else 0
