"""What there is of one kind, by name: tasks, methods, engines, devices, commands. One file each, whose name is the name.

Names come from the files of a folder, which are imported only when asked for: launch files list what there is on the system's
Python, which has neither NumPy nor PyTorch. Standard library only.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(ValueError):
    """A name that is not registered; the message lists those that are, and how to add one."""


class Registry(Generic[T]):
    """The members of one kind.

    Args:
        kind: for messages: ``method``, ``task``, …
        package: the folder's package; its modules that do not begin with ``_`` are the members, but for ``besides``.
        attribute: what each module defines, such as ``METHOD``.
        besides: modules of the folder that are no members.
        dashes: whether names have dashes where files have underscores, as commands do.
    """

    def __init__(self, kind: str, package: str, attribute: str, besides: tuple[str, ...] = (), dashes: bool = False) -> None:
        self.kind, self.package, self.attribute, self._besides, self._dashes = kind, package, attribute, besides, dashes
        self._added: dict[str, T] = {}

    def names(self) -> list[str]:
        """All names, in order."""
        found = [m.name for m in pkgutil.iter_modules(sys.modules[self.package].__path__)]
        files = [n for n in found if not n.startswith("_") and n not in self._besides]
        return sorted({*(n.replace("_", "-") if self._dashes else n for n in files), *self._added})

    def _stem(self, name: str) -> str:
        """The file's name, without its ending."""
        return name.replace("-", "_") if self._dashes else name

    def summary(self, name: str) -> str:
        """The first line of a member's description: its file's, which is not imported. Errors as of :meth:`check`."""
        if self.check(name) in self._added:
            return (self._added[name].__doc__ or "").partition("\n")[0]
        found = importlib.util.find_spec(f"{self.package}.{self._stem(name)}")
        text = Path(found.origin).read_text(encoding="utf-8") if found and found.origin else ""
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def check(self, name: str) -> str:
        """``name``, if there is a member called so, which is not imported.

        Raises:
            UnknownNameError: there is none.
        """
        if name not in self.names():
            stem = self._stem(name) if self._stem(name).isidentifier() else "<name>"
            raise UnknownNameError(
                f"unknown {self.kind} '{name}', expected one of {', '.join(self.names())}; to add one, write the file "
                f"{self.package.replace('.', '/')}/{stem}.py with its {self.attribute}"
            )
        return name

    def get(self, name: str) -> T:
        """The member called ``name``. Errors as of :meth:`check`."""
        if name in self._added:
            return self._added[name]
        self.check(name)
        member: T = getattr(importlib.import_module(f"{self.package}.{self._stem(name)}"), self.attribute)
        return member

    def add(self, name: str, member: T) -> None:
        """Register a member that is not a file of the folder. ValueError when the name is taken."""
        if name in self.names():
            raise ValueError(f"there is a {self.kind} '{name}' already; choose another name")
        self._added[name] = member

    def remove(self, name: str) -> None:
        """Take back what :meth:`add` registered. KeyError when it did not."""
        del self._added[name]
