"""Reads a pickle without executing anything: it yields plain data, tensors' descriptions, and inert records of everything else.

This is an interpreter of its own for the pickle opcodes (https://docs.python.org/3/library/pickletools.html) and not a subclass of
:class:`pickle.Unpickler`: no class is imported, no function called. A name in the file stays a name.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

Plain = dict[str, Any]


class InertPickleError(ValueError):
    """A pickle that is damaged, or calls what it should not; names the class or the opcode."""


@dataclasses.dataclass(frozen=True)
class Global:
    """The name of a class or function, such as ``torch.FloatStorage``."""

    name: str


@dataclasses.dataclass(eq=False)
class Record:
    """An object of a class that is not imported: the class's name, its arguments and its state."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


Calls = Mapping[str, Callable[..., Any]]
"""Functions that take the place of those that a pickle calls, by the latter's names."""

_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MAKERS: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GETS, _PUTS = ("BINGET", "LONG_BINGET"), ("BINPUT", "LONG_BINPUT")
_RECORDED = ("omegaconf.", "typing.", "pathlib.", "numpy.", "dill._dill._load_type")
"""Calls that are recorded as they are: settings hold such objects, of which only the plain values in them are used."""


def read_pickle(data: bytes, calls: Calls, load_persistent: Callable[[Any], Any] | None = None) -> Any:
    """The value of the pickle ``data``.

    Args:
        data: the pickle; memory and time grow with its length only.
        calls: replacements for called functions; those of a few harmless standard ones are built in.
        load_persistent: makes the value of a persistent id.

    Raises:
        InertPickleError: a call of anything else, which is named and not executed; an unknown opcode; damaged data.
    """
    try:
        return _Machine({**_STANDARD, **calls}, load_persistent).run(data)
    except InertPickleError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError) as error:
        raise InertPickleError(f"its pickle is damaged ({type(error).__name__}: {error})") from error


class _Machine:
    """The stack machine that a pickle is a program of."""

    def __init__(self, calls: Calls, load_persistent: Callable[[Any], Any] | None) -> None:
        self.calls, self.load_persistent = calls, load_persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.execute(opcode.name, argument)
        raise InertPickleError("its pickle has no end")

    def execute(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _NUMBERS or name in _TEXTS:
            stack.append(argument)
        elif name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _MAKERS:
            stack.append(_MAKERS[name]())
        elif name in _PUTS:
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _GETS:
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(self.pop(_TUPLES[name])))
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self.pop_marked()
            stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _with_items({}, items))
        elif name in ("APPEND", "APPENDS"):
            items = self.pop_marked() if name == "APPENDS" else self.pop(1)
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.pop_marked() if name == "SETITEMS" else self.pop(2)
            if isinstance(stack[-1], dict):
                _with_items(stack[-1], items)
        elif name in ("GLOBAL", "INST"):
            found = Global(argument.replace(" ", "."))
            stack.append(found if name == "GLOBAL" else self.call(found, tuple(self.pop_marked())))
        elif name == "STACK_GLOBAL":
            module, attribute = self.pop(2)
            stack.append(Global(f"{module}.{attribute}"))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            kind, arguments, *_ = self.pop(2 if name == "NEWOBJ" else 3)
            stack.append(Record(kind.name, arguments))
        elif name == "REDUCE":
            function, arguments = self.pop(2)
            stack.append(self.call(function, arguments))
        elif name == "OBJ":
            function, *rest = self.pop_marked()
            stack.append(self.call(function, tuple(rest)))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Record):
                stack[-1].state = state
        elif name == "BINPERSID" and self.load_persistent is not None:
            stack.append(self.load_persistent(stack.pop()))
        elif name not in ("PROTO", "FRAME"):
            raise InertPickleError(f"its pickle holds the opcode {name}, which no checkpoint needs")

    def pop(self, count: int) -> list[Any]:
        items = self.stack[len(self.stack) - count :]
        if len(items) != count:
            raise InertPickleError("its pickle is damaged (it takes more than there is)")
        del self.stack[-count:]
        return items

    def pop_marked(self) -> list[Any]:
        first = self.marks.pop()
        items = self.stack[first:]
        del self.stack[first:]
        return items

    def call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, Global) else type(function).__name__
        if name in self.calls:
            return self.calls[name](*arguments)
        if name.startswith(_RECORDED):
            return Record(name, arguments)
        raise InertPickleError(
            f"it calls {name} when it is loaded, which is no part of a checkpoint; nothing was executed. Use a file from a source "
            f"that you trust, or save it without such objects"
        )


def _with_items(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """``target`` with keys and values that alternate in ``items``."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, int, float, bytes, type(None))):  # hashing nested tuples could take forever
            raise InertPickleError(f"its pickle has a dictionary key of the type {type(key).__name__}, expected text or a number")
        target[key] = value
    return target


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise InertPickleError(f"its pickle has bytes in the encoding {encoding!r:.40}, expected latin1")
    return text.encode("latin1")


_STANDARD: Calls = {
    "_codecs.encode": _encode,  # how protocol 2 writes bytes
    "collections.OrderedDict": lambda: {},
    "collections.defaultdict": lambda factory: {},
    **{f"{module}.set": list for module in ("builtins", "__builtin__")},
}
