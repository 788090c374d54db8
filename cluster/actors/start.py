"""Joining a Ray cluster, or starting Ray on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from cluster.actors.remote import overload
from cluster.config import RunConfig
from cluster.preflight import surrounding_cluster
from rollout.leftovers import free_leftovers
from speech.errors import UserError, last_line
from speech.runtime.importing import worker_setup

logger = logging.getLogger(__name__)

TASKS_REMEMBERED = 10_000
"""Calls of which Ray's head keeps an account for `ray list tasks`: 3 KB of each, by default of 100,000. A step makes
about 40."""
TOO_SLOW = "timed out during startup"
"""What Ray says when its node has not registered in 30 s, which stand in `ray/_private/node.py` without a setting."""


def not_started(error: Exception, standing: str, timeout: float) -> UserError:
    """The end of a run whose actors do not start.

    Args:
        standing: what Ray knows of them; may be empty.
        timeout: `engines.startup_timeout_s`.
    """
    parts = filter(None, (last_line(error), standing, f"engines.startup_timeout_s={timeout:g}"))
    return UserError(f"the run does not start: {'; '.join(parts)}; the logs of the actors say more")


def ensure_token() -> None:
    """Ray writes a token into the home folder when it starts; where it cannot, a token of this run does."""
    folder = Path(os.environ.get("HOME", "~")).expanduser() / ".ray"
    if "RAY_AUTH_TOKEN" in os.environ or (folder / "auth_token").is_file():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        logger.info("%s cannot be written (%s); Ray gets a token in RAY_AUTH_TOKEN", folder, error)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _worker_hook() -> Callable[[], None]:
    """What each worker does first. It travels to workers as code, as that of `worker_setup`."""
    import_ours = worker_setup()

    def begin() -> None:
        import_ours()
        from cluster.actors.leftovers import end_with_raylet

        end_with_raylet()

    return begin


def start_ray(config: RunConfig, listener_cpus: int = 0) -> None:
    """Join the configured cluster, or start Ray here with room for every actor of the run. What dead engines have left
    on this machine is freed first.

    Args:
        listener_cpus: of the actor that listens to evaluations, where there is one.

    Raises:
        UserError: no cluster answers at the address, or Ray does not start here in the time that it gives itself.
    """
    if ray.is_initialized():
        return
    free_leftovers()
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = config.ray.address or surrounding_cluster()
    if address in (None, "local"):
        # On one machine the actors take turns, so each gets its place however few cores there are; thread counts,
        # not Ray's bookkeeping, say how much of the machine an actor uses in its turn.
        engines, encoder, learner = config.engines, config.encoder, config.learner
        needed = (
            engines.max_count * engines.threads + encoder.max_count * encoder.threads + learner.ranks + listener_cpus
        )
        cpus = config.ray.num_cpus or max(os.cpu_count() or 1, needed + config.rewards.max_count)
        store = config.ray.object_store_mb
        settings |= {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": None if store is None else store * 2**20,
            "_system_config": {"task_events_max_num_task_in_gcs": TASKS_REMEMBERED},
        }
        ensure_token()
    if not (address or "").startswith("ray://"):  # whose workers do not see the driver's working folder
        settings["runtime_env"] = {"worker_process_setup_hook": _worker_hook()}
    try:
        ray.init(address=address or "local", **settings)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from error
    except Exception as error:
        if TOO_SLOW not in str(error):
            raise
        reason = overload() or "this machine may be short of memory or slow at reading files"
        raise UserError(
            f"Ray did not start within the 30 s that it gives itself; {reason}. Nothing of the run is lost: end other "
            "work or wait, then give the same command again. If it happens again, raylet.out and gcs_server.out in "
            "/tmp/ray/session_latest/logs say more, and `speechrl doctor` looks at this machine"
        ) from error
