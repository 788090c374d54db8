"""What would stop a run on the machine that starts it, found before anything is started.

Loads no torch, and Ray only where GPUs are asked for: whoever mistyped a folder should not have to wait for them.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from cluster.config import RunConfig
from cluster.config.checks import POLICY_OBJECTIVES
from learner.config import SAMPLED_OBJECTIVES
from rewards.config import JudgeConfig
from speech.errors import UserError
from speech.manifests.shards import named
from speech.runtime.checkpoint_files import refuse_chatterbox, require_files, weight_files
from speech.runtime.codec_source import S3_FILES, split_source
from speech.runtime.hub import model_folder
from speech.runtime.schema import Problems

CONNECT_S = 3.0
"""A head that does not take a connection in this time is taken for absent."""
HTTP_S = 1.0
LONGEST_RAY_ROOT = 107 - len("/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store")
"""Bytes of the folder for temporary files: the path of a Unix socket may have 107."""


def surrounding_cluster() -> str | None:
    """The cluster that this process was started in: Ray sets RAY_ADDRESS in its jobs. A Jobs server's http address,
    which users set for `ray job`, is none."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if not address or "://" in address.removeprefix("ray://") else address


def problems_here(config: RunConfig, training: bool = True) -> Problems:
    """(key, message) for everything that configuration, folders and this machine say; keys in capitals are of the
    environment.

    Args:
        training: false for an evaluation, which has no learner.
    """
    found = [*_model(config), *_manifests(config, training)]
    if training and config.uses_diffro and config.learner.diffro.reward_model is not None:
        found += _folder("learner.diffro.reward_model", config.learner.diffro.reward_model)
    if training and config.objective in SAMPLED_OBJECTIVES and config.learner.distillation.teacher is not None:
        found += _folder("learner.distillation.teacher", config.learner.distillation.teacher, is_whole=True)
    sound = config.rewards.sound
    for name, judge in (("judge", sound.judge), ("second_judge", sound.second_judge)):
        found += _judge(f"rewards.sound.{name}.path", judge)
    if training:
        found += [
            (f"trackers.{number}", f"{name} needs its package: pip install 'speechrl[trackers]'")
            for number, name in enumerate(config.trackers)
            if ":" not in name and find_spec(name) is None  # a tracker has its package's name
        ]
    address = config.ray.address or surrounding_cluster()
    if address is None or address == "local":
        found += [*_memory(config), *_gpus(config, training), *temporary_folder()]
        if training and config.learner.lora is not None and find_spec("peft") is None:
            found.append(("learner.lora", "needs the package peft: pip install 'speechrl[lora]'"))
    else:
        found += address_problems(address)
    return found


def gpus_wanted(config: RunConfig, training: bool) -> dict[str, float]:
    """GPUs that must be there before a run starts, by the key that asks for them."""
    engines, encoder, learner = config.engines, config.encoder, config.learner
    wanted = {}
    if config.objective in POLICY_OBJECTIVES:
        wanted["engines.gpus_per_engine"] = float(engines.count * engines.gpus_per_engine)
    if training and config.objective in SAMPLED_OBJECTIVES and config.rewards.sound.judge.gpus:
        wanted["rewards.sound.judge.gpus"] = config.rewards.count * config.rewards.sound.judge.gpus
    if config.placement == "colocated" and engines.gpus_per_engine:
        return wanted  # encoders and learner share these
    wanted["encoder.gpus"] = encoder.count * encoder.gpus
    if training:
        wanted["learner.gpus_per_rank"] = learner.ranks * learner.gpus_per_rank
    return {key: gpus for key, gpus in wanted.items() if gpus}


def _model(config: RunConfig) -> Problems:
    model = config.model
    if config.objective == "token2text":
        found = [] if model.path == "new" else _folder("model.path", model.path)
    else:
        try:
            folder = str(model_folder(model.path))
        except UserError as error:
            return [("model.path", str(error))]
        # A family of one's own may keep its weights and its tokenizer as it likes.
        found = _folder("model.path", folder, is_whole=model.family is None or ":" not in model.family)
    if model.codec is not None:
        codec = split_source(model.codec)[1]
        if not list(Path(codec).glob(S3_FILES)):
            found += _folder("model.codec", codec)
    if not found and config.objective in POLICY_OBJECTIVES:
        found += _context(config, Path(folder))
    return found


def _folder(key: str, path: str, is_whole: bool = False) -> Problems:
    """`is_whole`: it must have weights and a tokenizer, in Hugging Face form."""
    folder = Path(path)
    if not folder.is_dir():
        return [(key, f"folder {path} does not exist (the working folder is {Path.cwd()})")]
    found: Problems = []
    try:
        refuse_chatterbox(folder)
    except UserError as error:
        return [(key, str(error))]
    try:
        require_files(folder, ["config.json"])
    except UserError as error:
        return [(key, f"{error}; is it a checkpoint in Hugging Face form?")]
    if is_whole:
        try:
            weight_files(folder)
        except UserError as error:
            found.append((key, str(error)))
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tekken.json")):
            found.append((key, f"model folder {path} lacks tokenizer.json"))
    return found


def _context(config: RunConfig, folder: Path) -> Problems:
    """vLLM refuses a context that is longer than the model's positions."""
    file = folder / "config.json"
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        parts = [whole, *(part for part in whole.values() if isinstance(part, dict))]
    except (OSError, ValueError, AttributeError) as error:
        return [("model.path", f"{file}: not a JSON object ({error})")]
    known = [part["max_position_embeddings"] for part in parts if "max_position_embeddings" in part]
    scaled = any("factor" in (part.get(name) or {}) for part in parts for name in ("rope_scaling", "rope_parameters"))
    length = config.engines.max_model_len
    if known and not scaled and length > max(known):
        return [("engines.max_model_len", f"{length} is more than the {max(known)} positions of {config.model.path}")]
    return []


def _manifests(config: RunConfig, training: bool) -> Problems:
    data = config.data
    paths: dict[str, str | None] = {"train": data.train}  # of an evaluation: what it evaluates
    if training:
        paths |= {"valid": data.valid if config.evaluation.every else None, "test": data.test, "replay": data.replay}
    return [
        (f"data.{split}", f"{file} does not exist (the working folder is {Path.cwd()})")
        for split, path in paths.items()
        if path is not None
        for file in named(Path(path))
        if not file.exists()
    ]


def _judge(key: str, judge: JudgeConfig) -> Problems:
    """Other kinds may name a model on the hub, unless the path cannot be such a name."""
    is_folder = judge.kind == "demo" or judge.path.startswith(("/", "./", "../", "~"))
    if not judge.path or judge.path.startswith("package:") or not is_folder or Path(judge.path).is_dir():
        return []
    return [(key, f"folder {judge.path} does not exist")]


def _memory(config: RunConfig) -> Problems:
    engines = config.engines
    if engines.gpus_per_engine or config.objective not in POLICY_OBJECTIVES:
        return []
    memory = psutil.virtual_memory()
    total, gib = min([memory.total, *container_limits()]), 2**30
    wanted = engines.kv_cache_gb * engines.max_count * gib
    if wanted <= total and engines.kv_cache_gb * gib <= memory.available:
        return []
    each = "" if engines.max_count == 1 else f" for each of {engines.max_count} engines"
    has = f"this machine has {total / gib:.1f} GiB of memory, of which {memory.available / gib:.1f} are available"
    return [("engines.kv_cache_gb", f"{engines.kv_cache_gb:g} GiB{each}: {has}")]


def container_limits() -> Iterable[int]:
    """Bytes of memory that this process's container may use, where it is in one."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = Path("/sys/fs/cgroup") / name
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            yield int(text)


def _gpus(config: RunConfig, training: bool) -> Problems:
    wanted = gpus_wanted(config, training)
    if not wanted:
        return []
    # What Ray would find when it starts here; it has no public name.
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    has = manager.get_current_node_num_accelerators()
    has = has if visible is None else min(has, len(visible))
    if sum(wanted.values()) <= has:
        return []
    return [(key, f"asks for GPUs, {gpus:g} in all; this machine has {has}") for key, gpus in wanted.items()]


def temporary_folder() -> Problems:
    """Ray opens Unix sockets below it, whose paths the kernel limits. vLLM's are in its engine's home, which moves."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    key = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    length = len(os.fsencode(folder))
    if length > LONGEST_RAY_ROOT:
        return [(key, f"{folder} has {length} bytes; sockets below it leave room for {LONGEST_RAY_ROOT}. Set a shorter "
                      f"folder, such as {key}=/tmp")]  # fmt: skip
    there = next(
        path for path in (Path(folder, "ray"), Path(folder), *Path(folder).absolute().parents) if path.exists()
    )
    if not os.access(there, os.W_OK | os.X_OK):
        return [(key, f"{there} cannot be written, where Ray keeps its session; set {key} to another folder")]
    return []


def address_problems(address: str) -> Problems:
    """Whether somebody listens there who may be a head; Ray finds out whether it is."""
    if address == "auto":
        return []
    parts = urlsplit(address if "://" in address else f"gcs://{address}")
    if parts.scheme not in ("gcs", "ray"):
        hint = "an http address is that of the Jobs server: `speechrl submit --address` takes it"
        return [("ray.address", f"{address!r} is no address of a cluster, such as `auto`, `host:6379`; {hint}")]
    try:
        host, port = parts.hostname, parts.port or (10001 if parts.scheme == "ray" else 6379)
        with socket.create_connection((host or "", port), timeout=CONNECT_S) as connection:
            is_http = _speaks_http(connection)
    except (OSError, ValueError) as error:
        return [("ray.address", f"no Ray cluster answers at {address!r}: {error}")]
    message = f"at {address!r} an HTTP server answers, such as the dashboard; a cluster's own port is 6379"
    return [("ray.address", message)] if is_http else []


def _speaks_http(connection: socket.socket) -> bool:
    """Ray would try for minutes to talk to it."""
    connection.settimeout(HTTP_S)
    try:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(5) == b"HTTP/"
    except OSError:  # it hangs up on what is not its own, or waits for more
        return False
