"""What is refused here, before anything is sent, and not minutes later on the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import RunConfig, load_config
from cluster.config.source import read_source
from speech.errors import UserError
from speech.manifests.shards import named
from speech.runtime.codec_source import split_source
from speech.runtime.hub import is_hub_name

if TYPE_CHECKING:
    from cluster.jobs.upload import Upload


def load_for_job(config: str, overrides: Sequence[str]) -> RunConfig:
    """Find here, not minutes later on the cluster, what is wrong with a configuration.

    Raises:
        UserError: what `load_config` raises, or results that would vanish with the job.
    """
    loaded = load_config(config, overrides)
    if not Path(loaded.runs_dir).is_absolute():
        raise UserError(
            f"runs_dir: {loaded.runs_dir!r} would lie in the job's temporary folder; name a folder that all nodes "
            f"share, e.g. runs_dir=/shared/runs"
        )
    return loaded


def check_travels(upload: Upload, file: str, config: RunConfig) -> None:
    """What the job finds by a relative path must travel with it.

    Args:
        file: the configuration's; what its `defaults` name must travel too.

    Raises:
        UserError: something does not; says why, for all of it. Or something travels that would run in our place.
    """
    theirs = upload.sizes.keys() & {"cluster.py", "cluster/__init__.py"}
    if theirs and "cluster/cli.py" not in upload.sizes:
        raise UserError(
            f"{upload.folder}: {min(theirs)} would run in the place of speechrl's own package `cluster`, because the "
            f"job finds the folder that travels first; give it another name, or name it in .gitignore"
        )
    sound = config.rewards.sound
    paths = {
        "model.path": None if config.objective == "token2text" and config.model.path == "new" else config.model.path,
        "model.codec": None if config.model.codec is None else split_source(config.model.codec)[1],
        "data.train": config.data.train,
        "data.valid": config.data.valid,
        "data.test": config.data.test,
        "data.replay": config.data.replay,
        "learner.distillation.teacher": config.learner.distillation.teacher or None,
        "learner.diffro.reward_model": config.learner.diffro.reward_model or None,
    }
    # These may be names on the hub, or of installed modules: only what is here can be missing there.
    maybe = {
        "rewards.sound.judge.path": sound.judge.path,
        "rewards.sound.second_judge.path": sound.second_judge.path,
        "rewards.sound.speaker.path": sound.speaker.path,
    }
    for item in config.rewards.items:
        module = item.name.rpartition(":")[0].replace(".", "/")
        maybe[f"rewards.items: {item.name}"] = f"{module}.py" if (upload.folder / f"{module}.py").is_file() else module
    paths |= {key: path for key, path in maybe.items() if path and (upload.folder / path).exists()}
    files = read_source(file, (), {}, []).files
    relative = {key: path for key, path in paths.items() if path is not None and not Path(path).is_absolute()}
    if is_hub_name(config.model.path):
        del relative["model.path"]
    problems = [f"{name}: {why}" for name in files if (why := upload.lacks(inside(Path(name), upload.folder)))]
    problems += [
        f"{key}: {part}: {why}"
        for key, path in relative.items()
        for part in named(Path(path))
        if (why := upload.lacks(str(part)))
    ]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"the job would not find:\n{listed}\nmove it, or give an absolute path that all nodes share")


def inside(config: Path, folder: Path) -> str:
    """`config` relative to the folder that travels.

    Raises:
        UserError: it lies outside, or the folder is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (--working-dir)")
    try:
        return config.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        raise UserError(
            f"{config}: lies outside {folder.resolve()}, which travels with the job; move it there, name another "
            f"--working-dir, or use --no-upload when the nodes have it"
        ) from None
