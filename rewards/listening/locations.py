"""Where a judge's model is: a folder, a name on the hub, or a folder inside an installed Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path, PurePosixPath

from speech.errors import UserError

PREFIX = "package:"
"""`package:name/folder` is the folder `folder` inside the installed package `name`."""


def model_path(path: str, key: str) -> str:
    """The folder behind a path that names a package; any other path as it is.

    The package is looked up and not imported: nothing of it is executed.

    Args:
        key: of the configuration, for messages.

    Raises:
        UserError: the package is not installed, is a single file, or has no such folder; or the path is malformed.
    """
    if not path.startswith(PREFIX):
        return path
    name, _, inside = path.removeprefix(PREFIX).partition("/")
    parts = PurePosixPath(inside).parts
    if not name.isidentifier() or ".." in parts or inside.startswith("/"):
        raise UserError(f"{key}: {path!r} is not of the form {PREFIX}name/folder")
    spec = importlib.util.find_spec(name)  # of a top-level package: that executes nothing
    if spec is None:
        raise UserError(
            f"{key}: {path!r} names the package {name!r}, which is not installed; "
            f"install it: pip install {name.replace('_', '-')}"
        )
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    if not roots:
        raise UserError(f"{key}: {path!r}: {name!r} is a single module and holds no folders")
    for root in roots:
        if root.joinpath(*parts).is_dir():
            return str(root.joinpath(*parts))
    raise UserError(f"{key}: {path!r}: {roots[0]} has no folder {inside!r}")
