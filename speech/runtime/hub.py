"""Models named as on the Hugging Face hub: `owner/name`, or `owner/name@revision` for a branch, tag or commit.

A name is looked up where a model is loaded, in each process: nodes of a cluster need no common folder. The driver pins
it to a commit first, so that all of them load the same files.
"""

from __future__ import annotations

import re
from pathlib import Path

from speech.errors import UserError, last_line
from speech.runtime.checkpoint_files import require_files, weight_files

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""Weights, configuration and tokenizer; no code and no pickles."""


def is_hub_name(path: str) -> bool:
    """Whether a path can only be a name on the hub. `a/b` is a folder where there is one, or where there is an `a`."""
    if not _NAME.fullmatch(path) or Path(path).exists():
        return False
    return "@" in path or not Path(path).parent.is_dir()


def model_folder(path: str) -> Path:
    """The folder of a model on this machine; that of a name on the hub is in the hub's cache, and is fetched when it is
    not there. What is cached is used as it is, without asking the network.

    Raises:
        UserError: a name on the hub is not cached, or only in part, and cannot be fetched.
    """
    if not is_hub_name(path):
        return Path(path)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = path.partition("@")

    def look(only_here: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                local_files_only=only_here,
                allow_patterns=list(WANTED),
                ignore_patterns=["*/*"],  # other forms of the same weights
            )
        )

    where = constants.HF_HUB_CACHE
    advice = (
        f"fetch it where there is a network (`hf download {name}`) and copy the cache to every node, or name a folder"
    )
    cached = f"not in the cache {where}"
    try:
        return _whole(look(only_here=True))
    except LocalEntryNotFoundError:
        pass
    except UserError:
        cached = f"only in part in the cache {where}"
    except (HFValidationError, OSError) as error:
        raise UserError(f"{path!r} is no folder here and no model of the hub: {last_line(error)}") from error
    try:
        return _whole(look(only_here=False))
    except UserError as error:  # without a network the hub's library returns the part that is there
        raise UserError(f"{path!r} is {cached}, and the rest cannot be fetched: {error}; {advice}") from error
    except (HfHubHTTPError, OSError) as error:  # among the latter a missing entry, because of a lost connection
        cause = error.__cause__ or error
        here = f"no folder here (the working folder is {Path.cwd()})"
        failed = f"cannot be fetched from the hub: {type(cause).__name__}: {last_line(cause)}"
        raise UserError(f"{path!r} is {here}, {cached}, and {failed}; {advice}") from error


def _whole(folder: Path) -> Path:
    """Raises a `UserError` where a snapshot lacks files."""
    require_files(folder, ["config.json"])
    weight_files(folder)
    return folder


def pinned(path: str) -> str:
    """A path as other processes may be told: a folder's whole path, or a name on the hub with the commit found here.

    Raises:
        UserError: see `model_folder`.
    """
    if not is_hub_name(path):
        return str(Path(path).resolve())
    return f"{path.partition('@')[0]}@{model_folder(path).name}"
