"""Plug-ins by name. A kind of plug-in has a folder; each module in it registers one, under the module's own name.

Names are read off the folder, so a configuration is checked without importing torch or a judge's library. A plug-in is
imported when it is first asked for. A user's own needs no registration: it is written `module:attribute`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

from speech.errors import UserError, did_you_mean
from speech.runtime.importing import import_theirs

Entry = TypeVar("Entry")
Plugin = TypeVar("Plugin", bound=Callable[..., Any])


class Registry(Collection[str], Generic[Entry]):
    """The plug-ins of one kind. As a collection it holds their names, and every name of the form `module:attribute`."""

    def __init__(self, kind: str, *packages: str) -> None:
        """
        Args:
            kind: of plug-in, for messages, such as `reward`.
            packages: dotted names of the folders; every module in them is a plug-in.
        """
        self.kind = kind
        self._packages = packages
        self._entries: dict[str, Entry] = {}

    @cached_property
    def _modules(self) -> dict[str, str]:
        return {
            module.name: f"{package}.{module.name}"
            for package in self._packages
            for module in pkgutil.iter_modules(_paths(package))
            if not module.ispkg
        }

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._modules))

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._modules or ":" in name)

    def register(self, name: str) -> Callable[[Plugin], Plugin]:
        """Decorator of a plug-in in one of the folders.

        Raises:
            ValueError: the module has another name, or another plug-in has this one.
        """

        def enter(plugin: Plugin) -> Plugin:
            if self._modules.get(name) != plugin.__module__:
                raise ValueError(f"{self.kind} {name!r} must be registered by the module of its name, in its folder")
            self._entries[name] = plugin  # type: ignore[assignment]
            return plugin

        return enter

    def find(self, name: str) -> Entry:
        """The plug-in of a name, or a user's own.

        Raises:
            UserError: there is none of that name, or it cannot be imported; the message names the nearest one.
        """
        if ":" in name:
            own: Entry = import_own(self.kind, name)
            return own
        if name not in self._modules:
            hint = did_you_mean(name, self) or f"; known are {', '.join(self)}"
            raise UserError(f"unknown {self.kind} {name!r}{hint}; your own is written module:function")
        importlib.import_module(self._modules[name])
        if name not in self._entries:
            raise ValueError(f"{self._modules[name]} registers no {self.kind} {name!r}")
        return self._entries[name]


def import_own(kind: str, name: str) -> Any:
    """A user's own plug-in, written `module:attribute`.

    Raises:
        UserError: it cannot be imported, or is neither a function nor a class.
    """
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):
        raise UserError(f"{kind} {name!r}: your own is written module:attribute, such as my_module:my_function")
    try:
        module = import_theirs(module_name)
    except Exception as error:  # any error in the user's module: name it, keep the cause for the traceback
        message = f"{kind} {name!r}: cannot import {module_name!r}: {type(error).__name__}: {error}"
        raise UserError(message) from error
    if not hasattr(module, attribute):
        raise UserError(f"{kind} {name!r}: {module_name!r} has no {attribute!r}{did_you_mean(attribute, vars(module))}")
    found = getattr(module, attribute)
    if not callable(found):
        raise UserError(f"{kind} {name!r}: {attribute!r} is a {type(found).__name__}, not a function or class")
    return found


def discover(package: str, base: type[Entry]) -> dict[str, type[Entry]]:
    """Plug-ins that are subclasses of one class, where finding the right one needs all of them.

    Imports every module below a package; the concrete subclasses of `base` found there, by their attribute `name`.
    """
    found: dict[str, type[Entry]] = {}
    for module in sorted(pkgutil.walk_packages(_paths(package), f"{package}."), key=lambda module: module.name):
        for value in vars(importlib.import_module(module.name)).values():
            own = inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.name
            if own and not inspect.isabstract(value) and "name" in vars(value):
                found[vars(value)["name"]] = value
    return found


def named_class(kind: str, name: str, known: Mapping[str, type[Entry]], base: type[Entry]) -> type[Entry]:
    """The class of a name among those that `discover` found, or a user's own as `module:Class`.

    Raises:
        UserError: there is none of that name, it cannot be imported, or is no subclass of `base`.
    """
    if ":" in name:
        own = import_own(kind, name)
        if not (inspect.isclass(own) and issubclass(own, base)):
            package = base.__module__.rpartition(".")[0]  # which exports what its `base` module defines
            raise UserError(f"{kind} {name!r} is no subclass of {package}.{base.__name__}")
        return own
    if name not in known:
        hint = did_you_mean(name, known) or f"; known are {', '.join(sorted(known))}"
        raise UserError(f"unknown {kind} {name!r}{hint}; your own is written module:Class")
    return known[name]


def _paths(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None, package
    return list(spec.submodule_search_locations)
