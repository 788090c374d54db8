"""Whose `rewards` is imported: our packages have common names, and so have the files of users.

A user's `rewards.py` or a folder of recordings called `speech` may lie in the working folder, on PYTHONPATH or in the
folder that travels with a job. Our own modules must be found all the same, in every process, and theirs too. And
packages that only an extra brings.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from speech.errors import UserError

PACKAGES = ("speech", "rollout", "rewards", "learner", "cluster")
ROOT = Path(__file__).resolve().parents[2]
"""The folder of our packages: the checkout, or site-packages."""
_THEIRS = "_own"
"""Under this name stand modules of users whose own name one of our packages has."""


def ours_first() -> None:
    """Order `sys.path` so that our packages are found before anything of the same name.

    Folders that hold such a thing go to the end, behind our own. vLLM's processes get the same order from the process
    that starts them.
    """
    root = str(ROOT)
    others = [folder for folder in sys.path if Path(folder).resolve() == ROOT or not _taken(Path(folder))]
    behind = [folder for folder in sys.path if folder not in others]
    if behind or root not in sys.path:
        sys.path[:] = [*others, *([] if root in others else [root]), *behind]


def worker_setup(root: str = str(ROOT)) -> Callable[[], None]:
    """What a Ray worker must run first: it imports our packages, before Ray puts the driver's working folder in front.

    The function is made here so that it travels to workers as code: by its name it would have to be found first.

    Args:
        root: folder of our packages on the driver; a worker where it is not there looks for an installed copy.
    """
    names = PACKAGES

    def import_ours() -> None:
        import importlib
        import sys
        from pathlib import Path

        before = list(sys.path)
        if all(Path(root, name, "__init__.py").is_file() for name in names):
            sys.path.insert(0, root)
        for name in names:
            importlib.import_module(name)
        sys.path[:] = before

    return import_ours


def import_theirs(name: str) -> ModuleType:
    """Import a user's module, also one that has the name of a package of ours.

    Raises:
        Exception: whatever the import raises.
    """
    top = name.partition(".")[0]
    if top in PACKAGES:
        parts = name.split(".")
        for folder in map(Path, sys.path):
            path = folder.joinpath(*parts)
            is_there = path.with_name(f"{parts[-1]}.py").is_file() or (path / "__init__.py").is_file()
            if is_there and folder.resolve() != ROOT:
                if _THEIRS not in sys.modules:
                    sys.modules[_THEIRS] = ModuleType(_THEIRS)
                sys.modules[_THEIRS].__path__ = [str(folder)]
                return importlib.import_module(f"{_THEIRS}.{name}")
    return importlib.import_module(name)


def import_extra(extra: str, module: str, requirement: str, wanted_by: str) -> ModuleType:
    """Import a package that the plain installation does not bring.

    Args:
        extra: of pyproject.toml, which brings it.
        module: what to import.
        requirement: what to install when it is missing, with its version where that matters.
        wanted_by: what needs it, for the message.

    Raises:
        UserError: it, or something that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{wanted_by} needs the package {requirement} ({error}); install it with the extra: "
            f"pip install 'speechrl[{extra}]'"
        ) from error


def _taken(folder: Path) -> bool:
    """Whether it holds a module or a folder of the name of a package of ours."""
    return any((folder / name).is_dir() or (folder / f"{name}.py").is_file() for name in PACKAGES)
